"""Shows a bundle in a browser: the viewer at `/`, and the bundle's files beside it. On this machine alone.

Of several bundles (a shelf) `bundles.json` lists the names and where each has its files: `{"bundles": [{"name": "a",
"path": "a/"}]}`, `path` being relative to the page and not encoded; it is there instead of a manifest.

What is served is decided by name: the files bundles have, nothing else in the folder, and no link that leads out of it.
Requests must name this server as their host, so that a page elsewhere cannot reach it under a name of its own (DNS
rebinding). Files are read as they are at the moment, so a run that is still being written can be followed.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socketserver
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from unipo_hooks.export import bundle_file, titled, viewer_page
from unipo_hooks.shelf import Shelf

HOST = "127.0.0.1"
PORT = 8765
"""The port that is tried first."""

BUNDLES = "bundles.json"
"""What lists the bundles of a shelf."""

_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
}
_CHUNK = 1 << 18


class BundleServer(ThreadingHTTPServer):
    """Serves a bundle, or a shelf of them, on 127.0.0.1.

    It is bound to its port from the start, and answers once `serve_forever` runs.
    """

    daemon_threads = True

    def __init__(self, shown: Path | Shelf, port: int = PORT) -> None:
        """Bind to `port`, or to a free one where it is taken. Raises ExportError where the viewer was never built."""
        self.shown = shown.resolve() if isinstance(shown, Path) else shown
        self.page = titled(viewer_page(), self.shown.name if isinstance(self.shown, Path) else self.shown.title)
        self.page_tag = tag_of(self.page)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError):
            # Taken, or not ours to take: any other will do.
            super().__init__((HOST, 0), _Handler)

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where to point a browser."""
        return f"http://{HOST}:{self.port}/"

    def bundles(self) -> bytes | None:
        """What `bundles.json` says now; None where one bundle is served. Raises OSError where it cannot be known."""
        if isinstance(self.shown, Path):
            return None
        found = [{"name": name, "path": f"{name}/"} for name in self.shown.names()]
        return json.dumps({"bundles": found}).encode()

    def file(self, name: str) -> Path | None:
        """The file a request names, by its path without the first slash; None where there is none to give."""
        bundle: Path | None
        if isinstance(self.shown, Path):
            bundle = self.shown
        else:
            folder, _, name = name.partition("/")
            bundle = self.shown.bundle(unquote(folder))
        return bundle and bundle_file(bundle, name)

    def server_bind(self) -> None:
        """Bind without asking the network for a host name, as the standard server does: it can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def serve(shown: Path | Shelf, *, port: int = PORT, ready: Callable[[BundleServer], None]) -> None:
    """Serve a bundle or a shelf until Ctrl-C.

    `ready` is called once the port is bound, before the first request is answered.
    """
    with BundleServer(shown, port) as server, suppress(KeyboardInterrupt):
        ready(server)
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    server: BundleServer
    protocol_version = "HTTP/1.1"
    server_version = "unipo-hooks"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _not_allowed(self) -> None:
        # A body that is not read would be taken for the next request.
        self.close_connection = True
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", Allow="GET, HEAD", Connection="close")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _not_allowed

    def _answer(self) -> None:
        if not self._host_is_ours():
            self._say(HTTPStatus.FORBIDDEN, f"open this page as {self.server.url}")
            return
        path = self.path.partition("?")[0]
        if path in ("/", "/index.html"):
            self._send(self.server.page, "text/html; charset=utf-8", self.server.page_tag)
        elif path == f"/{BUNDLES}":
            self._send_list()
        elif (file := self.server.file(path.removeprefix("/"))) is not None:
            self._send_file(file)
        else:
            self._say(HTTPStatus.NOT_FOUND, "no such file in what is shown")

    def _host_is_ours(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        names = (HOST, "localhost", "[::1]")
        ours = {f"{name}:{self.server.port}" for name in names} | (set(names) if self.server.port == 80 else set())
        return len(hosts) == 1 and hosts[0].strip().lower() in ours

    def _send_list(self) -> None:
        try:
            listed = self.server.bundles()
        except OSError as error:
            self._say(HTTPStatus.NOT_FOUND, error.strerror or "it cannot be read")
            return
        if listed is None:
            self._say(HTTPStatus.NOT_FOUND, "one bundle is shown: it is beside this page")
        else:
            self._send(listed, _TYPES[".json"], tag_of(listed))

    def _send(self, body: bytes, content_type: str, tag: str) -> None:
        if self._start(content_type, len(body), tag):
            self.wfile.write(body)

    def _send_file(self, path: Path) -> None:
        try:
            file = path.open("rb")
        except OSError as error:
            self._say(HTTPStatus.NOT_FOUND, error.strerror or "it cannot be read")
            return
        with file:
            # Size and tag are those of the opened file: a manifest replaced meanwhile is the next request's.
            stat = os.fstat(file.fileno())
            tag = f'"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"'
            if not self._start(_TYPES[path.suffix], stat.st_size, tag):
                return
            left = stat.st_size
            while left and (data := file.read(min(left, _CHUNK))):
                self.wfile.write(data)
                left -= len(data)
            if left:  # it became shorter: what was promised cannot be kept, so the browser is told by the end
                self.close_connection = True

    def _start(self, content_type: str, size: int, tag: str) -> bool:
        """Send the head of an answer; whether a body is to follow.

        Everything is checked again at each use (`no-cache`), segments too: another bundle may be served under the same
        address and names tomorrow.
        """
        known = [value.strip().removeprefix("W/") for value in self.headers.get("If-None-Match", "").split(",")]
        fresh = tag in known or "*" in known
        self.send_response(HTTPStatus.NOT_MODIFIED if fresh else HTTPStatus.OK)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache")
        self._send_safety()
        if not fresh:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(size))
        self.end_headers()
        return not fresh and self.command != "HEAD"

    def _say(self, status: HTTPStatus, text: str, **headers: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self._send_safety()
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_safety(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the person."""


def tag_of(content: bytes) -> str:
    """The ETag of some content."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def ssh_line(port: int, connection: str) -> str:
    """The command that brings `port` of this machine to the person's own, given `SSH_CONNECTION`.

    It names the address the person's machine reached this one at.
    """
    fields = connection.split()
    address, ssh_port = (fields[2], fields[3]) if len(fields) == 4 else ("this-machine", "22")
    through = "" if ssh_port == "22" else f"-p {ssh_port} "
    return f"ssh -N {through}-L {port}:{HOST}:{port} {getpass.getuser()}@{address}"

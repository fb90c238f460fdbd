"""The server, over real sockets: what it serves, what it refuses, and that it follows a run."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from unipo_hooks import server
from unipo_hooks.errors import ExportError
from unipo_hooks.server import BundleServer, ssh_line
from unipo_hooks.shelf import FolderShelf, GivenShelf, Shelf

PAGE = b"<!doctype html><title>unipo-hooks</title><!--unipo-bundle-->"
TITLED = PAGE.replace(b"<title>", "<title>run · ".encode())
SEGMENT = "segments/r0-000000.responses.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle = tmp_path / "run"
    (bundle / "segments").mkdir(parents=True)
    (bundle / "manifest.json").write_text('{"format": "unipo-bundle"}')
    (bundle / "index.r0.jsonl").write_text('{"entry": "update"}\n{"entry": "upd')
    (bundle / "metrics.r11.jsonl").write_text("{}\n")
    (bundle / SEGMENT).write_bytes(bytes(range(256)) * 4000)
    return bundle


@pytest.fixture
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BundleServer]:
    monkeypatch.setattr(server, "viewer_page", lambda: PAGE)
    with BundleServer(folder, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(serving: BundleServer, path: str, method: str = "GET", **headers: str) -> SimpleNamespace:
    """One request with `path` sent as it is; `Host` is the right one unless given."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return SimpleNamespace(status=answer.status, body=answer.read(), headers=answer.headers)
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/", "/index.html", "/?update=3", "/index.html?a=b"])
def test_the_viewer_is_at_the_root(serving: BundleServer, path: str) -> None:
    answer = ask(serving, path)
    assert (answer.status, answer.body) == (200, TITLED)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


def test_the_title_is_the_bundles_name_and_never_markup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "viewer_page", lambda: PAGE)
    nasty = folder.rename(folder.with_name("<b> & co"))
    with BundleServer(nasty, 0) as running:
        expected = "<title>&lt;b&gt; &amp; co · unipo-hooks</title>"
        assert running.page == PAGE.replace(b"<title>unipo-hooks</title>", expected.encode())


def test_the_title_changes_no_script(folder: Path) -> None:
    try:
        built = server.viewer_page()
    except ExportError:
        pytest.skip("the viewer is not built")
    with BundleServer(folder, 0) as running:
        hashes = re.findall(rb"'sha256-([A-Za-z0-9+/=]+)'", running.page)
        scripts = re.findall(rb"<script[^>]*>(.*?)</script>", running.page, re.DOTALL)
        assert hashes and scripts == re.findall(rb"<script[^>]*>(.*?)</script>", built, re.DOTALL)
        assert b"<title>run \xc2\xb7 unipo-hooks</title>" in running.page
        assert base64.b64encode(hashlib.sha256(scripts[0]).digest()) in hashes


def test_the_bundles_own_page_is_not_served(serving: BundleServer, folder: Path) -> None:
    (folder / "index.html").write_text("<script>alert(1)</script>")
    assert ask(serving, "/index.html").body == TITLED


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("manifest.json", "application/json"),
        ("index.r0.jsonl", "application/x-ndjson"),
        ("metrics.r11.jsonl", "application/x-ndjson"),
        (SEGMENT, "application/vnd.apache.parquet"),
    ],
)
def test_files_of_the_bundle_are_served_as_they_are(serving: BundleServer, folder: Path, name: str, kind: str) -> None:
    answer = ask(serving, f"/{name}")
    assert (answer.status, answer.body) == (200, (folder / name).read_bytes())
    assert answer.headers["Content-Type"] == kind
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/segments/../../secret.txt",
        "/segments/../manifest.json",
        "/%2e%2e/secret.txt",
        "/segments%2fr0-000000.responses.parquet",
        "/segments/",
        "/segments",
        "//manifest.json/",
        "/./manifest.json",
        "/notes.txt",
        "/.env",
        "/manifest.json.tmp",
        "/manifest.json\x00",
        "/index.r0.jsonl.bak",
        "/index.rx.jsonl",
        "/index.r1.jsonl",
        "/index.r\u0661.jsonl",
        "/segments/r0-000000.responses.parquet.tmp",
        "/segments/r0-000000.secrets.parquet",
        "/segments/r0-000001.responses.parquet",
        "/segments/folder.parquet",
        "http://elsewhere/manifest.json",
        "manifest.json/../../secret.txt",
    ],
)
def test_nothing_else_is_served(serving: BundleServer, folder: Path, path: str) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    for name in ("notes.txt", ".env", "manifest.json.tmp", "index.r0.jsonl.bak", f"{SEGMENT}.tmp"):
        (folder / name).write_text("secret")
    (folder / "segments" / "r0-000000.secrets.parquet").write_text("secret")
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as raw:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{serving.port}\r\nConnection: close\r\n\r\n"
        raw.sendall(head.encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ")[1] in (b"404", b"400")
    assert b"secret" not in answer and b"unipo-bundle" not in answer


@pytest.mark.parametrize("name", ["manifest.json", "index.r1.jsonl", "segments/r0-000005.responses.parquet"])
def test_links_out_of_the_bundle_are_not_followed(serving: BundleServer, folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    secret.write_text("secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    assert ask(serving, f"/{name}").status == 404


def test_a_linked_folder_of_segments_is_not_followed(serving: BundleServer, folder: Path) -> None:
    (folder / "segments").rename(folder.parent / "elsewhere")
    (folder / "segments").symlink_to(folder.parent / "elsewhere")
    assert ask(serving, f"/{SEGMENT}").status == 404


def test_links_inside_the_bundle_are_followed(serving: BundleServer, folder: Path) -> None:
    (folder / "index.r1.jsonl").symlink_to("index.r0.jsonl")
    assert ask(serving, "/index.r1.jsonl").body == (folder / "index.r0.jsonl").read_bytes()


def test_a_bundle_may_itself_be_a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "viewer_page", lambda: PAGE)
    link = folder.parent / "latest"
    link.symlink_to(folder)
    with BundleServer(link, 0) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        assert ask(running, "/manifest.json").status == 200
        running.shutdown()


def test_folders_and_pipes_under_a_bundles_name_are_not_opened(serving: BundleServer, folder: Path) -> None:
    (folder / "index.r2.jsonl").mkdir()
    os.mkfifo(folder / "index.r3.jsonl")
    assert ask(serving, "/index.r2.jsonl").status == 404
    assert ask(serving, "/index.r3.jsonl").status == 404


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST:{port}"])
def test_it_answers_to_its_own_name(serving: BundleServer, host: str) -> None:
    assert ask(serving, "/manifest.json", Host=host.format(port=serving.port)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{port}",
        "127.0.0.1:{port}.evil.example",
        "127.0.0.1:{port}, evil.example",
        "",
    ],
)
def test_it_answers_to_no_other_name(serving: BundleServer, host: str) -> None:
    for path in ("/", "/manifest.json"):
        answer = ask(serving, path, Host=host.format(port=serving.port))
        assert answer.status == 403
        assert serving.url.encode() in answer.body


@pytest.mark.parametrize("lines", ["", "Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n"])
def test_it_wants_exactly_one_name(serving: BundleServer, lines: str) -> None:
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as raw:
        raw.sendall(f"GET / HTTP/1.0\r\n{lines.format(port=serving.port)}\r\n".encode())
        assert raw.recv(65536).split(b" ")[1] == b"403"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(serving: BundleServer, folder: Path, method: str) -> None:
    before = (folder / "manifest.json").read_bytes()
    answer = ask(serving, "/manifest.json", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("path", ["/", "/manifest.json", f"/{SEGMENT}", "/nothing"])
def test_head_is_get_without_a_body(serving: BundleServer, path: str) -> None:
    got, head = ask(serving, path), ask(serving, path, "HEAD")
    assert head.body == b""
    assert head.status == got.status
    assert {k: v for k, v in head.headers.items() if k != "Date"} == {
        k: v for k, v in got.headers.items() if k != "Date"
    }
    assert int(head.headers["Content-Length"]) == len(got.body)


@pytest.mark.parametrize("path", ["/", "/manifest.json", "/index.r0.jsonl", f"/{SEGMENT}"])
def test_what_has_not_changed_is_not_sent_again(serving: BundleServer, path: str) -> None:
    tag = ask(serving, path).headers["ETag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        answer = ask(serving, path, If_None_Match=known)
        assert (answer.status, answer.body) == (304, b"")
    assert ask(serving, path, If_None_Match='"other"').status == 200


def test_a_line_that_was_appended_is_sent(serving: BundleServer, folder: Path) -> None:
    tag = ask(serving, "/index.r0.jsonl").headers["ETag"]
    with (folder / "index.r0.jsonl").open("a") as index:
        index.write("ate}\n")
    answer = ask(serving, "/index.r0.jsonl", If_None_Match=tag)
    assert (answer.status, answer.body) == (200, b'{"entry": "update"}\n{"entry": "update}\n')


def test_a_manifest_replaced_by_one_of_the_same_size_and_time_is_sent(serving: BundleServer, folder: Path) -> None:
    manifest, other = folder / "manifest.json", folder / "manifest.json.tmp"
    tag = ask(serving, "/manifest.json").headers["ETag"]
    stat = manifest.stat()
    other.write_text(manifest.read_text().upper())
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(manifest)
    assert ask(serving, "/manifest.json", If_None_Match=tag).status == 200


def test_one_connection_carries_many_requests(serving: BundleServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=10)
    for path, status in (("/", 200), ("/nothing", 404), ("/manifest.json", 200), (f"/{SEGMENT}", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, len(answer.read())) == (status, int(answer.headers["Content-Length"]))
    connection.close()


def test_a_browser_that_goes_away_is_no_news(serving: BundleServer, folder: Path, capfd: pytest.CaptureFixture) -> None:
    (folder / SEGMENT).write_bytes(bytes(30_000_000))
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as raw:
        raw.sendall(f"GET /{SEGMENT} HTTP/1.1\r\nHost: 127.0.0.1:{serving.port}\r\n\r\n".encode())
        raw.recv(1000)
    assert ask(serving, "/manifest.json").status == 200
    assert capfd.readouterr() == ("", "")


def test_only_this_machine_is_served(serving: BundleServer) -> None:
    assert serving.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_left_alone(serving: BundleServer, folder: Path) -> None:
    with BundleServer(folder, serving.port) as second:
        assert second.port not in (0, serving.port)


def test_a_viewer_that_was_never_built_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bytes:
        raise ExportError("the viewer is not built; run make viewer")

    monkeypatch.setattr(server, "viewer_page", missing)
    with pytest.raises(ExportError, match="run make viewer"):
        BundleServer(folder, 0)


# --- several bundles --------------------------------------------------------------------------------------------------


def bundle_at(path: Path) -> Path:
    """A folder with a manifest that says where it is, and a segment that does too."""
    (path / "segments").mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"at": path.name}))
    (path / SEGMENT).write_bytes(os.fsencode(path.name) * 1000)
    return path


@pytest.fixture
def shelf_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Shelf], BundleServer]]:
    """Serves shelves until the test ends."""
    monkeypatch.setattr(server, "viewer_page", lambda: PAGE)

    @contextmanager
    def serving(shelf: Shelf) -> Iterator[BundleServer]:
        with BundleServer(shelf, 0) as running:
            thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            yield running
            running.shutdown()
            thread.join()

    with ExitStack() as stack:
        yield lambda shelf: stack.enter_context(serving(shelf))


ShelfOf = Callable[[Shelf], BundleServer]


def listed(serving: BundleServer) -> list[tuple[str, str]]:
    """Names and paths of `bundles.json`."""
    answer = ask(serving, "/bundles.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    return [(each["name"], each["path"]) for each in json.loads(answer.body)["bundles"]]


def test_a_folder_lists_its_bundles_and_serves_their_files(shelf_of: ShelfOf, tmp_path: Path) -> None:
    for name in ("zeta", "alpha", "a b&c#d?e%2f"):
        bundle_at(tmp_path / "runs" / name)
    bundle_at(tmp_path / "runs" / "alpha" / "nested")
    (tmp_path / "runs" / "no bundle").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    running = shelf_of(FolderShelf(tmp_path / "runs"))
    assert listed(running) == [("a b&c#d?e%2f", "a b&c#d?e%2f/"), ("alpha", "alpha/"), ("zeta", "zeta/")]
    for name, plain in listed(running):
        path = quote(plain)
        assert json.loads(ask(running, f"/{path}manifest.json").body) == {"at": name}
        answer = ask(running, f"/{path}{SEGMENT}")
        assert (answer.status, answer.body) == (200, name.encode() * 1000)
        assert ask(running, f"/{path}{SEGMENT}", If_None_Match=answer.headers["ETag"]).status == 304
    assert ask(running, "/").body == PAGE.replace(b"<title>", "<title>runs · ".encode())


@pytest.mark.parametrize(
    "path",
    [
        "/manifest.json",
        "/alpha",
        "/alpha/",
        "/alpha/notes.txt",
        "/alpha/nested/manifest.json",
        "/alpha%2fnested/manifest.json",
        "/alpha//manifest.json",
        "/alpha/../beta/manifest.json",
        "/../secret/manifest.json",
        "/%2e%2e/manifest.json",
        "/%2e%2e%2fsecret/manifest.json",
        "/./manifest.json",
        "/%2e/manifest.json",
        "//manifest.json",
        "/secret/manifest.json",
        "/linked/manifest.json",
        "/looping/manifest.json",
        "/alpha%00/manifest.json",
        "/%ff/manifest.json",
        "/bundles.json/manifest.json",
    ],
)
def test_of_a_folder_nothing_else_is_served(shelf_of: ShelfOf, tmp_path: Path, path: str) -> None:
    runs = tmp_path / "runs"
    bundle_at(runs / "alpha" / "nested")
    (bundle_at(runs / "beta") / "notes.txt").write_text("")
    (runs / "alpha" / "manifest.json").write_text("{}")
    (runs / "alpha" / "notes.txt").write_text("secret")
    (runs / "linked").symlink_to(bundle_at(tmp_path / "secret"))
    (runs / "looping").symlink_to(runs / "looping")
    (tmp_path / "manifest.json").write_text("{}")
    running = shelf_of(FolderShelf(runs))
    assert [name for name, _ in listed(running)] == ["alpha", "beta"]
    assert ask(running, path).status == 404


def test_a_run_that_begins_meanwhile_is_there(shelf_of: ShelfOf, tmp_path: Path) -> None:
    bundle_at(tmp_path / "runs" / "first")
    running = shelf_of(FolderShelf(tmp_path / "runs"))
    tag = ask(running, "/bundles.json").headers["ETag"]
    assert ask(running, "/bundles.json", If_None_Match=tag).status == 304
    second = bundle_at(tmp_path / "runs" / "second")
    assert ask(running, "/bundles.json", If_None_Match=tag).status == 200
    assert [name for name, _ in listed(running)] == ["first", "second"]
    (second / "index.r0.jsonl").write_text("{}\n")
    assert ask(running, "/second/index.r0.jsonl").body == b"{}\n"
    with (second / "index.r0.jsonl").open("a") as index:
        index.write("{}\n")
    assert ask(running, "/second/index.r0.jsonl").body == b"{}\n{}\n"


def test_a_name_no_address_can_hold_is_left_out_or_made_plain(shelf_of: ShelfOf, tmp_path: Path) -> None:
    odd = [bundle_at(tmp_path / "runs" / name) for name in ("fine", "line\nend", "back\\slash")]
    with suppress(OSError):  # a file system that wants names to be text
        odd.append(bundle_at(tmp_path / "runs" / os.fsdecode(b"\xff<b>")))
    running = shelf_of(FolderShelf(tmp_path / "runs"))
    assert listed(running) == [("fine", "fine/")]
    for path in ("line%0Aend", "back%5Cslash", "%FF%3Cb%3E"):
        assert ask(running, f"/{path}/manifest.json").status == 404
    running = shelf_of(GivenShelf(odd))
    assert [name for name, _ in listed(running)][:3] == ["fine", "line_end", "back_slash"]
    assert all(ask(running, f"/{quote(path)}manifest.json").status == 200 for _, path in listed(running))


def test_bundles_that_were_named_are_served_in_their_order(shelf_of: ShelfOf, tmp_path: Path) -> None:
    paths = [bundle_at(tmp_path / parent / name) for parent, name in (("x", "run"), ("y", "other"), ("y", "run"))]
    bundle_at(tmp_path / "y" / "unnamed")
    running = shelf_of(GivenShelf([*paths, paths[0]]))
    assert listed(running) == [("run", "run/"), ("other", "other/"), ("run-2", "run-2/")]
    (paths[2] / "manifest.json").write_text('{"at": "y"}')
    assert json.loads(ask(running, "/run-2/manifest.json").body) == {"at": "y"}
    assert json.loads(ask(running, "/run/manifest.json").body) == {"at": "run"}
    assert ask(running, "/unnamed/manifest.json").status == 404
    assert b"3 runs" in ask(running, "/").body


def test_a_shelf_answers_to_its_own_name_alone(shelf_of: ShelfOf, tmp_path: Path) -> None:
    bundle_at(tmp_path / "runs" / "alpha")
    running = shelf_of(FolderShelf(tmp_path / "runs"))
    for path in ("/", "/bundles.json", "/alpha/manifest.json"):
        assert ask(running, path, Host=f"evil.example:{running.port}").status == 403


def test_one_bundle_has_no_list(serving: BundleServer) -> None:
    assert ask(serving, "/bundles.json").status == 404


def test_the_ssh_line_names_the_address_one_came_by() -> None:
    assert ssh_line(8765, "10.0.0.2 50000 10.0.0.7 22").endswith("@10.0.0.7")
    assert ssh_line(8765, "10.0.0.2 50000 10.0.0.7 22").startswith("ssh -N -L 8765:127.0.0.1:8765 ")
    assert ssh_line(9000, "::1 50000 fe80::7 2222").startswith("ssh -N -p 2222 -L 9000:127.0.0.1:9000 ")

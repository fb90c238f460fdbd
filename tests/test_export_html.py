"""The self-contained page: every byte of the bundle is in it, and nothing of the bundle can become markup."""

from __future__ import annotations

import base64
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bundle.builder import Builder, response, simple, token

from unipo_hooks import export, open_bundle
from unipo_hooks.errors import BundleError, ExportError
from unipo_hooks.export import bundle_file, html, is_bundle_file, viewer_page
from unipo_hooks.export.html import contents, export_html, size_note

PAGE = (
    b"<!doctype html><html><head><title>unipo-hooks</title></head><body><div id=app></div>"
    b"<script>const title = '<title>'; run()</script>\n<!--unipo-bundle-->\n</body></html>"
)


class Page(HTMLParser):
    """Scripts, title and tags of a page, as a browser's parser would see them."""

    def __init__(self, page: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.files: dict[str, bytes] = {}
        self.tags: list[str] = []
        self.title = ""
        self._open: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(page.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._open = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._open
        if tag == "title":
            self.title += data
        name = attributes.get("data-bundle-file")
        if tag == "script" and name is not None:
            assert attributes["type"] == "text/plain"
            assert name not in self.files
            self.files[name] = base64.b64decode(data, validate=True)


@pytest.fixture(autouse=True)
def viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "viewer_page", lambda: PAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return simple(tmp_path / "run").write()


def on_disk(bundle: Path) -> dict[str, bytes]:
    return {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def test_every_file_of_the_bundle_is_in_the_page_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    out = export_html(folder, tmp_path / "new" / "run.html")
    assert out == tmp_path / "new" / "run.html"
    page = Page(out)
    assert page.files == {name: data for name, data in on_disk(folder).items() if data}
    assert len(page.files) > 6
    assert page.title == "run · unipo-hooks"


def test_the_files_are_where_the_viewer_looks_for_them(folder: Path, tmp_path: Path) -> None:
    text = export_html(folder, tmp_path / "run.html").read_bytes()
    before, after = PAGE.split(b"<!--unipo-bundle-->")
    assert text.startswith(before.replace(b"<title>unipo-hooks", b"<title>run \xc2\xb7 unipo-hooks", 1))
    assert text.endswith(after)
    assert b"<!--unipo-bundle-->" not in text


def test_nothing_in_a_bundle_becomes_markup(tmp_path: Path) -> None:
    nasty = "</script><img src=x onerror=alert(1)><!--unipo-bundle--></title>"
    built = Builder(tmp_path / "<img src=x> & \"'", header={"algorithm": nasty, "task": nasty})
    rows = [response(0, [token(1, strings=nasty)], prompt=nasty)]
    built.rollout(0, rows).update(0, [(0, rows[0])]).metrics(0, {nasty: [1.0, 1.0, 1.0]})
    folder = built.write()
    page = Page(export_html(folder, tmp_path / "page.html"))
    assert page.tags == ["html", "head", "title", "body", "div", *["script"] * (1 + len(page.files))]
    assert page.title == "<img src=x> & \"' · unipo-hooks"
    assert page.files == on_disk(folder)


def test_a_running_bundle_is_cut_between_two_lines(folder: Path, tmp_path: Path) -> None:
    whole = on_disk(folder)
    for name in ("index.r0.jsonl", "metrics.r0.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"entry": "update", "segment": "r0-0000')
    page = Page(export_html(folder, tmp_path / "run.html"))
    assert page.files == whole


def test_a_file_without_a_whole_line_is_empty(folder: Path, tmp_path: Path) -> None:
    (folder / "index.r0.jsonl").write_text('{"entry": "upd' * 100_000)
    page = Page(export_html(folder, tmp_path / "run.html"))
    assert set(page.files) == {"manifest.json", "metrics.r0.jsonl"}


def test_only_what_the_index_refers_to_is_in_the_page(folder: Path, tmp_path: Path) -> None:
    whole = on_disk(folder)
    for name in ("r0-000009.responses.parquet", "r0-000000.responses.parquet.tmp", "notes.parquet"):
        (folder / "segments" / name).write_bytes(b"left over")
    (folder / "secrets.env").write_text("token")
    (folder / "index.html").write_text("an older page")
    assert Page(export_html(folder, tmp_path / "run.html")).files == whole


def test_all_ranks_are_in_the_page(tmp_path: Path) -> None:
    built = Builder(tmp_path / "run", ranks=11)
    for rank in range(11):
        rows = [response(0, [token(rank)])]
        built.rollout(0, rows, rank=rank).update(0, [(0, rows[0])], rank=rank).metrics(0, {}, rank=rank)
    folder = built.write()
    assert Page(export_html(folder, tmp_path / "run.html")).files == on_disk(folder)
    names = [part.name for part in contents(folder).parts if part.name.startswith("index")]
    assert names == [f"index.r{rank}.jsonl" for rank in range(11)]


def test_a_large_file_comes_back_whole(folder: Path, tmp_path: Path) -> None:
    segment = folder / "segments" / "r0-000000.rollout_tokens.parquet"
    segment.write_bytes(os.urandom(2_000_001))
    heard: list[tuple[int, int]] = []
    page = Page(export_html(folder, tmp_path / "run.html", lambda done, total: heard.append((done, total))))
    assert page.files[f"segments/{segment.name}"] == segment.read_bytes()
    total = sum(map(len, on_disk(folder).values()))
    assert heard[-1] == (total, total)
    assert heard == sorted(heard)


def test_a_missing_file_is_named_and_the_rest_exported(folder: Path, tmp_path: Path) -> None:
    gone = "segments/r0-000001.update_tokens.parquet"
    (folder / gone).unlink()
    assert contents(folder).missing == [gone]
    assert Page(export_html(folder, tmp_path / "run.html")).files == on_disk(folder)


@pytest.mark.parametrize("data", [b"", b"PAR1", None])
def test_a_damaged_file_is_named_and_exported(folder: Path, tmp_path: Path, data: bytes | None) -> None:
    name = "segments/r0-000001.update_tokens.parquet"
    (folder / name).write_bytes((folder / name).read_bytes()[:-20] if data is None else data)
    holds = contents(folder)
    assert (holds.missing, holds.damaged) == ([], [name])
    assert Page(export_html(folder, tmp_path / "run.html")).files.keys() >= set(on_disk(folder)) - {name}


def test_no_file_of_a_bundle_is_written_over(folder: Path, tmp_path: Path) -> None:
    before = on_disk(folder)
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link", tmp_path / "link" / "..", folder / "segments"):
        name = "run" if place.name == ".." else "manifest.json"
        with pytest.raises(ExportError, match="is inside the bundle"):
            export_html(folder, place / name)
    other = simple(tmp_path / "other").write()
    with pytest.raises(ExportError, match="belongs to another bundle"):
        export_html(folder, other / "manifest.json")
    assert on_disk(folder) == before


def test_a_link_out_of_the_bundle_is_not_followed(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    segment = folder / "segments" / "r0-000000.responses.parquet"
    segment.unlink()
    segment.symlink_to(secret)
    assert contents(folder).missing == [f"segments/{segment.name}"]
    assert f"segments/{segment.name}" not in Page(export_html(folder, tmp_path / "run.html")).files
    (folder / "index.r1.jsonl").symlink_to(secret)
    with pytest.raises(BundleError, match=r"index\.r1\.jsonl leads outside the bundle"):
        export_html(folder, tmp_path / "run.html")


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        "",
        '{"entry": "update"}',
        '{"entry": "update", "segment": "../../secret", "responses": [0, 1], "tokens": [0, 1]}',
        '{"entry": "update", "segment": "r0-000000", "responses": 3, "tokens": [0, 1]}',
        '{"entry": "update", "segment": "r0-000000", "responses": ["a", 1], "tokens": [0, 1]}',
    ],
)
def test_a_damaged_index_is_named_by_file_and_line(folder: Path, tmp_path: Path, line: str) -> None:
    index = folder / "index.r0.jsonl"
    first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([first, line, *rest]) + "\n")
    with pytest.raises(BundleError) as caught:
        export_html(folder, tmp_path / "run.html")
    assert str(caught.value).startswith(f"{index}:2: ")
    with pytest.raises(BundleError) as read:
        open_bundle(folder).updates()
    assert str(read.value) == str(caught.value)
    assert not (tmp_path / "run.html").exists()


def test_entries_of_a_newer_minor_version_are_left_to_the_viewer(folder: Path, tmp_path: Path) -> None:
    with (folder / "index.r0.jsonl").open("a") as index:
        index.write(json.dumps({"entry": "checkpoint"}) + "\n")
    assert Page(export_html(folder, tmp_path / "run.html")).files == on_disk(folder)


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_no_bundle_is_one_line(tmp_path: Path, where: str) -> None:
    with pytest.raises(BundleError, match="give the folder that a run was captured to"):
        export_html(tmp_path / where, tmp_path / "run.html")


def test_a_bundle_of_the_future_is_one_line(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "run", version="2.0").write()
    with pytest.raises(BundleError, match="update it"):
        export_html(folder, tmp_path / "run.html")


def test_a_manifest_that_leads_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json leads outside"):
        export_html(folder, tmp_path / "run.html")


def test_a_failure_leaves_the_older_page_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "run.html"
    out.parent.mkdir()
    out.write_text("older")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_html(folder, out, stop)
    assert [(p.name, p.read_text()) for p in out.parent.iterdir()] == [("run.html", "older")]


def test_only_files_are_written_over(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for out, problem in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is no file"),
        (Path("/dev/null"), "is no file"),
    ):
        with pytest.raises(ExportError, match=problem):
            export_html(folder, out)
    assert not Path("/dev/null").is_file()


def test_a_place_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "deeper" / "run.html"
    with pytest.raises(ExportError, match=r"^cannot write .*run\.html: ") as caught:
        export_html(folder, out)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("page", [b"<title></title>", PAGE + b"<!--unipo-bundle-->"])
def test_a_viewer_without_one_place_for_data_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: bytes
) -> None:
    monkeypatch.setattr(html, "viewer_page", lambda: page)
    with pytest.raises(ExportError, match="run make viewer"):
        export_html(folder, tmp_path / "run.html")


def test_a_viewer_that_was_never_built_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export.resources, "files", lambda package: tmp_path)
    with pytest.raises(ExportError, match=r"^the viewer is not built; run make viewer$"):
        viewer_page()
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "index.html").write_bytes(PAGE)
    assert viewer_page() == PAGE


def test_a_page_too_large_for_an_e_mail_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    page = export_html(folder, tmp_path / "run.html")
    assert size_note(page) is None
    os.truncate(page, 26_000_000)
    note = size_note(page)
    assert note is not None and "26 MB" in note and "zip" in note


def test_names_of_a_bundle(folder: Path) -> None:
    for name, data in on_disk(folder).items():
        assert is_bundle_file(name)
        path = bundle_file(folder, name)
        assert path is not None and path.read_bytes() == data
    for name in ("", "manifest.json\n", "manifest_json", "index.r-1.jsonl", "segments/r0-1.responses.parquet", "/etc"):
        assert bundle_file(folder, name) is None

"""What the reader says of what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle.builder import Builder, simple, write_rows

from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.errors import BundleError


def message(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_path_that_does_not_exist_is_named(tmp_path: Path):
    assert message(tmp_path / "gone").startswith(f"{tmp_path / 'gone'} does not exist; give the folder")


def test_a_file_is_not_a_bundle(tmp_path: Path):
    file = tmp_path / "run.json"
    file.write_text("{}")
    assert message(file).startswith(f"{file} is a file; give the folder")


def test_a_file_of_a_bundle_leads_to_it(tmp_path: Path):
    path = simple(tmp_path / "run").write()
    for name in ("manifest.json", "segments/r0-000000.responses.parquet"):
        assert message(path / name) == f"{path / name} is a file; give the folder it is in: {path}"
    page = path.with_name("run.html")
    page.write_text("")
    assert message(page) == f"{page} is a file; open it in a browser"


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path):
    assert message(tmp_path).startswith(f"{tmp_path} is not a bundle: it has no manifest.json; give the folder")


def test_a_folder_that_holds_bundles_lists_them(tmp_path: Path):
    Builder(tmp_path / "gsm8k").write()
    assert message(tmp_path) == f"{tmp_path} holds 1 bundle: gsm8k; open it"
    Builder(tmp_path / "demo").write()
    or_all = f"open one of them, or see all: unipo-hooks view {tmp_path}"
    assert message(tmp_path) == f"{tmp_path} holds 2 bundles: demo, gsm8k; {or_all}"
    for number in range(20):
        Builder(tmp_path / f"run-{number:02d}").write()
    assert message(tmp_path).endswith(f"run-07, …; {or_all}")
    assert "holds 22 bundles" in message(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": "unipo-bundle",', "manifest.json: not JSON: "),
        ("[]", "manifest.json: not a JSON object"),
        ("\xff", "manifest.json: "),
        ("[" * 100_000, "manifest.json: "),
        ("{}", "has format None; expected 'unipo-bundle'"),
        ('{"format": "zip"}', "has format 'zip'; expected 'unipo-bundle'"),
        ('{"format": "unipo-bundle", "version": "2.0"}', "has format 2.0; this unipo-hooks reads 1.x: update it"),
        ('{"format": "unipo-bundle", "version": "new"}', "has format new; expected 1.x"),
        ('{"format": "unipo-bundle", "version": "1.0"}', "manifest.json: created: Field required"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(tmp_path: Path, text: str, said: str):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    assert said in message(tmp_path)


def test_a_manifest_that_is_a_folder_is_one_clear_line(tmp_path: Path):
    (tmp_path / "manifest.json").mkdir()
    assert message(tmp_path).startswith("cannot read ")


def test_a_minor_version_that_is_newer_is_read(tmp_path: Path):
    built = simple(tmp_path)
    built.manifest["version"] = "1.99"
    assert open_bundle(built.write()).updates().num_rows == 3


@pytest.mark.parametrize("table", ["responses", "rollout_tokens", "update_responses", "update_tokens"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "is missing"),
        ("truncated", "is truncated or damaged"),
        ("other columns", "lacks the column "),
        ("shorter", "has 1 rows where the index asks for rows "),
        ("folder", "is truncated or damaged"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_run(tmp_path: Path, table: str, how: str, said: str):
    built = simple(tmp_path)
    path = built.write() / "segments" / f"r0-000000.{table}.parquet"
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "shorter":
        write_rows(path, built.tables["r0-000000", table][:1])
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        write_rows(path, [{"novel": 1.0}] * 9)
    bundle = open_bundle(tmp_path)
    with pytest.raises(BundleError) as caught:
        (bundle.responses if "responses" in table else bundle.tokens)(update=0)
    text = str(caught.value)
    assert f"r0-000000.{table}.parquet {said}" in text
    assert f"run `unipo-hooks validate {tmp_path}`" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"entry": "update", ', "not JSON"),
        ("7", "not a JSON object"),
        ('{"entry": "update"}', "attempt: Field required"),
        ("\xff", "codec"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named_by_number(tmp_path: Path, line: str, said: str):
    path = simple(tmp_path).write()
    lines = (path / "index.r0.jsonl").read_bytes().split(b"\n")
    (path / "index.r0.jsonl").write_bytes(b"\n".join([lines[0], line.encode("latin-1"), *lines[2:]]))
    with pytest.raises(BundleError, match=rf"index\.r0\.jsonl:2: .*{said}.*unipo-hooks validate"):
        open_bundle(path).updates()


@pytest.mark.parametrize("segment", ["../../secret", "r0-000000/../../x", "r1-000000", "r0-0", ""])
def test_a_segment_outside_the_bundle_is_never_opened(tmp_path: Path, segment: str):
    built = simple(tmp_path)
    built.index[0][0]["segment"] = segment
    with pytest.raises(BundleError, match=r"index\.r0\.jsonl:1: .* is not a segment of rank 0"):
        open_bundle(built.write()).tokens()


def test_tokens_that_do_not_line_up_are_refused(tmp_path: Path):
    built = simple(tmp_path)
    built.index[0][0]["tokens"] = [1, 6]
    with pytest.raises(BundleError, match="update 0 has 3 tokens of row 0 where its rollout has 2"):
        open_bundle(built.write()).tokens(update=0)


def test_an_update_whose_rollout_is_not_there_shows_what_is_known(tmp_path: Path):
    built = simple(tmp_path)
    del built.index[0][0]
    tokens = open_bundle(built.write()).tokens(update=0)
    assert tokens["row"].to_pylist() == [3, 3, 0, 0, 0]
    assert tokens["position"].to_pylist() == [0, 1, 0, 1, 2]
    assert tokens["strings"].to_pylist() == [None] * 5
    assert tokens["group"].to_pylist() == [None] * 5
    assert open_bundle(tmp_path).responses(update=0)["reward"].null_count == 0
    assert open_bundle(tmp_path).responses(update=0)["row"].to_pylist() == [3, 0]

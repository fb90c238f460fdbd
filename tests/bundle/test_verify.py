"""`verify` on bundles with one thing wrong each."""

from __future__ import annotations

import errno
import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bundle.builder import Builder, attempt, response, simple, token, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo_hooks.bundle import check_segments
from unipo_hooks.bundle.reader import open_bundle
from unipo_hooks.bundle.verify import Fault, verify
from unipo_hooks.errors import BundleError

INDEX = "index.r0.jsonl"
METRICS = "metrics.r0.jsonl"


def said(path: Path) -> list[str]:
    """Faults and notes as text, notes marked."""
    return [f"{fault} [note]" if fault.severity == "note" else str(fault) for fault in verify(path)]


def test_a_sound_bundle_has_no_faults(tmp_path: Path):
    assert said(simple(tmp_path).write()) == []


def test_an_empty_bundle_has_no_faults(tmp_path: Path):
    assert said(Builder(tmp_path).write()) == []


def test_a_bundle_of_two_ranks_and_two_attempts_has_no_faults(tmp_path: Path):
    built = Builder(tmp_path, ranks=2, attempts=[attempt(0), attempt(1, first_update=0)])
    for number in range(2):
        for rank in range(2):
            rows = [response(0, [token(1)], reward=math.nan)]
            built.rollout(0, rows, rank=rank, segment=number, attempt=number)
            built.update(0, [(0, rows[0])], rank=rank, segment=number, attempt=number)
            built.metrics(0, {"policy_loss": [None, 1.0, None]}, rank=rank, attempt=number)
    assert said(built.write()) == []


def test_a_fault_reads_as_file_line_and_message():
    assert str(Fault(INDEX, 12, "is odd")) == "index.r0.jsonl:12: is odd"
    assert str(Fault("manifest.json", None, "is missing")) == "manifest.json: is missing"
    assert Fault(INDEX, 12, "is odd").severity == "fault"


# --- the folder and the manifest ------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_is_one_fault(tmp_path: Path):
    advice = "give the folder that a run was captured to"
    assert said(tmp_path / "gone") == [f"{tmp_path / 'gone'}: does not exist; {advice}"]


def test_a_file_is_one_fault(tmp_path: Path):
    (tmp_path / "x").write_text("")
    assert said(tmp_path / "x") == [f"{tmp_path / 'x'}: is a file; give the folder that a run was captured to"]


def test_an_empty_folder_is_one_fault(tmp_path: Path):
    (found,) = said(tmp_path)
    assert found.startswith(f"{tmp_path}: is not a bundle: it has no manifest.json; give the folder")


def test_a_folder_of_bundles_names_them(tmp_path: Path):
    simple(tmp_path / "a").write()
    simple(tmp_path / "b").write()
    (line,) = said(tmp_path)
    assert line.startswith(f"{tmp_path}: holds 2 bundles: a, b; open one of them, or see all: ")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (
            '{\n"format": 1,,\n}',
            ["manifest.json:2: not JSON: Expecting property name enclosed in double quotes (column 13)"],
        ),
        ("[]", ["manifest.json: not a JSON object"]),
        ('{"format": "unipo-bundle", "version": "1.0", "created": NaN}', ["manifest.json: not JSON: NaN"]),
        ('{"format": "zip"}', ["manifest.json: format 'zip'; expected 'unipo-bundle'"]),
        (
            '{"format": "unipo-bundle", "version": "2.1"}',
            ["manifest.json: format 2.1; this unipo-hooks reads 1.x: update it"],
        ),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, text: str, faults: list[str]):
    (tmp_path / "manifest.json").write_text(text)
    assert said(tmp_path) == faults


def test_every_schema_violation_of_the_manifest_is_named_by_its_path(tmp_path: Path):
    built = simple(tmp_path)
    del built.manifest["header"]["algorithm"]
    built.manifest["attempts"] = [attempt(0), {"attempt": "one"}]
    assert said(built.write()) == [
        "manifest.json: header.algorithm: Field required",
        "manifest.json: attempts[1].attempt: Input should be a valid integer, unable to parse string as an integer",
        "manifest.json: attempts[1].started: Field required",
    ]


def test_the_rest_is_checked_where_the_manifest_is_missing(tmp_path: Path):
    path = simple(tmp_path).write()
    (path / "manifest.json").unlink()
    (path / "segments" / "r0-000001.responses.parquet").unlink()
    assert len(said(path)) == 2


# --- lines ----------------------------------------------------------------------------------------------------------

LINES = {
    "not JSON": (b'{"entry": "upd', "not JSON: Unterminated string starting at (column 11)"),
    "not JSON: NaN": (b'{"entry": NaN}', "not JSON: NaN"),
    "empty": (b"", "not JSON: Expecting value (column 1)"),
    "not an object": (b"[1]", "not a JSON object"),
    "not UTF-8": (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    "unknown entry": (b'{"entry": "checkpoint"}', "entry 'checkpoint' is not one of the format's"),
}


@pytest.mark.parametrize("file", [INDEX, METRICS])
@pytest.mark.parametrize(("text", "message"), LINES.values(), ids=LINES.keys())
def test_a_line_that_cannot_be_read_is_named_by_number(tmp_path: Path, file: str, text: bytes, message: str):
    path = simple(tmp_path).write()
    with (path / file).open("ab") as stream:
        stream.write(text + b"\n")
    number = len((path / file).read_bytes().splitlines())
    assert said(path) == [f"{file}:{number}: {message}"]


def test_every_schema_violation_of_a_line_is_named(tmp_path: Path):
    path = simple(tmp_path).write()
    with (path / METRICS).open("a") as stream:
        stream.write('{"entry": "log", "attempt": 0, "update": 1.5, "scalars": {}}\n')
    assert said(path) == [
        f"{METRICS}:4: update: Input should be a valid integer, got a number with a fractional part",
        f"{METRICS}:4: step: Field required",
    ]


@pytest.mark.parametrize("file", [INDEX, METRICS])
def test_a_half_written_last_line_is_a_note(tmp_path: Path, file: str):
    path = simple(tmp_path).write()
    with (path / file).open("a") as stream:
        stream.write('{"entry": "upd')
    lines = len((path / file).read_bytes().splitlines())
    assert said(path) == [f"{file}:{lines}: the last line is half-written; readers pass over it [note]"]


def test_an_entry_of_a_newer_minor_version_is_a_note(tmp_path: Path):
    built = simple(tmp_path)
    built.manifest["version"] = "1.10"
    built.metric_lines[0].append({"entry": "checkpoint"})
    assert said(built.write()) == [f"{METRICS}:4: entry 'checkpoint' is of a newer version and is passed over [note]"]


def test_an_entry_in_the_wrong_file_is_named(tmp_path: Path):
    built = simple(tmp_path)
    built.metric_lines[0].append(built.index[0][1])
    built.index[0].append(built.metric_lines[0][0])
    assert said(built.write()) == [
        f"{INDEX}:6: entry 'metrics' belongs in {METRICS}",
        f"{METRICS}:4: entry 'update' belongs in {INDEX}",
    ]


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path):
    path = simple(tmp_path).write()
    (path / METRICS).unlink()
    (path / METRICS).mkdir()
    assert said(path) == [f"{METRICS}: cannot be read: Is a directory"]


@pytest.mark.parametrize("name", [INDEX, METRICS, "manifest.json"])
def test_a_file_that_cannot_be_read_is_its_own_fault_and_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    path, read = simple(tmp_path).write(), Path.read_bytes

    def refusing(file: Path) -> bytes:
        if file.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    assert said(path) == [f"{name}: cannot be read: Permission denied"]


def test_a_damaged_index_line_says_nothing_of_the_segments_left_over(tmp_path: Path):
    path = simple(tmp_path).write()
    (path / INDEX).write_text("not json\n")
    assert said(path) == [f"{INDEX}:1: not JSON: Expecting value (column 1)"]


def test_a_segment_file_that_may_not_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, opened = simple(tmp_path).write(), check_segments.pq.ParquetFile
    name = "segments/r0-000001.update_tokens.parquet"

    def refusing(file: Path) -> object:
        if file == path / name:
            raise PermissionError(errno.EACCES, f"Failed to open local file '{file}'. Detail: [errno 13]")
        return opened(file)

    monkeypatch.setattr(check_segments.pq, "ParquetFile", refusing)
    assert said(path) == [f"{name}: cannot be read: Permission denied"]


def test_a_negative_count_is_named(tmp_path: Path):
    built = simple(tmp_path).metrics(3, {"kl": [1.0, -2.0, 1.0]})
    assert said(built.write()) == [f"{METRICS}:4: the count of kl is negative: -2"]


def test_metrics_of_an_update_come_once(tmp_path: Path):
    built = simple(tmp_path).metrics(1, {}).log(1, {}).log(1, {}).metrics(1, {}, kind="eval")
    assert said(built.write()) == [f"{METRICS}:4: update 1 is already on line 2"]


def test_an_attempt_the_manifest_does_not_know_is_named(tmp_path: Path):
    built = simple(tmp_path).metrics(3, {}, attempt=1)
    assert said(built.write()) == [f"{METRICS}:4: attempt 1 is not one of the attempts in manifest.json"]


def test_a_rank_the_manifest_does_not_count_is_named(tmp_path: Path):
    path = simple(tmp_path).write()
    (path / "index.r3.jsonl").write_text("")
    assert said(path) == ["index.r3.jsonl: is of rank 3, and manifest.json counts 1: it is not read"]


def test_a_rank_that_wrote_no_index_is_a_note(tmp_path: Path):
    built = simple(tmp_path)
    built.manifest["ranks"] = 3
    assert said(built.write()) == ["manifest.json: 2 of 3 ranks have written no index [note]"]


def test_an_entry_comes_once_in_an_attempt(tmp_path: Path):
    built = simple(tmp_path)
    rows = [response(0, [token(1), token(2)])]
    built.rollout(1, rows, segment=5).update(2, [(1, rows[0])], segment=5)
    assert said(built.write()) == [
        f"{INDEX}:6: rollout 1 is already on line 4",
        f"{INDEX}:7: update 2 is already on line 5",
    ]


# --- segments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["responses", "rollout_tokens", "update_responses", "update_tokens"])
def test_a_segment_file_that_is_missing_or_damaged_is_named(tmp_path: Path, table: str):
    path = simple(tmp_path).write()
    name = f"segments/r0-000001.{table}.parquet"
    whole = (path / name).read_bytes()
    (path / name).unlink()
    line = 5 if table.startswith("update") else 4
    assert said(path) == [f"{name}: is missing; {INDEX}:{line} has rows in it"]
    for data in (whole[:-30], b"", b"PAR1 and no more", whole[:20] + bytes(len(whole) - 40) + whole[-20:]):
        (path / name).write_bytes(data)
        (found,) = said(path)
        assert found.startswith(f"{name}: is truncated or not Parquet: ")


COLUMNS = [
    ("responses", "kind rollout row group prompt length counted kept reward"),
    ("rollout_tokens", "kind rollout row ids strings mask"),
    ("update_responses", "kind update rollout row micro_batch counted log_ratio_sum"),
    ("update_tokens", "kind update rollout row micro_batch log_probs"),
]


@pytest.mark.parametrize(("table", "column"), [(table, name) for table, names in COLUMNS for name in names.split()])
def test_a_required_column_that_is_missing_null_or_of_a_wrong_type_is_named(tmp_path: Path, table: str, column: str):
    path = simple(tmp_path).write()
    name = f"segments/r0-000001.{table}.parquet"
    data = pq.read_table(path / name)
    pq.write_table(data.drop_columns([column]), path / name)
    assert said(path) == [f"{name}: lacks column {column}"]

    place, kind = data.column_names.index(column), data.schema.field(column).type
    other = pa.array([[1]] * data.num_rows)
    pq.write_table(data.set_column(place, column, other), path / name)
    (found,) = said(path)
    assert found.startswith(f"{name}: column {column} is list<")

    if not pa.types.is_floating(kind):
        pq.write_table(data.set_column(place, column, pa.nulls(data.num_rows, kind)), path / name)
        assert said(path) == [f"{name}: column {column} has {data.num_rows} nulls"]


def test_an_optional_column_of_a_wrong_type_is_named_and_the_rest_is_checked(tmp_path: Path):
    built = Builder(tmp_path).rollout(0, [response(0, [token(1, old_log_probs=1.0)], advantages=0.5)])
    path = built.write() / "segments" / "r0-000000.responses.parquet"
    data = pq.read_table(path)
    pq.write_table(data.set_column(data.column_names.index("advantages"), "advantages", pa.array(["x"])), path)
    assert said(tmp_path) == [
        "segments/r0-000000.responses.parquet: column advantages is string, not float",
        f"{INDEX}:1: old_log_probs is positive or infinite (row 0 of segments/r0-000000.rollout_tokens.parquet)",
    ]


def test_a_column_nobody_knows_is_no_fault(tmp_path: Path):
    built = Builder(tmp_path).rollout(0, [response(0, [token(1, novelty=2.0)], fancy=1.0)], whatever=True)
    assert said(built.write()) == []


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (("a", "b"), (0,), "lacks column reward_components.1, and manifest.json names 2 reward functions"),
        (("a",), (0, 1), "has column reward_components.1, and manifest.json names 1 reward functions"),
        ((), (0,), "has column reward_components.0, and manifest.json names 0 reward functions"),
        (("a", "b"), (0, 1), None),
        (("a", "b"), (), None),
    ],
)
def test_reward_components_must_match_the_reward_names(
    tmp_path: Path, names: tuple[str, ...], columns: tuple[int, ...], message: str | None
):
    components = {f"reward_components.{n}": 1.0 for n in columns}
    built = Builder(tmp_path, reward_names=names).rollout(0, [response(0, [token(1)], **components)])
    assert said(built.write()) == ([f"segments/r0-000000.responses.parquet: {message}"] if message else [])


@pytest.mark.parametrize("segment", ["../../secret", "r0-000000/../../x", "r1-000000", "r0-0"])
def test_a_segment_that_is_not_the_ranks_own_is_named(tmp_path: Path, segment: str):
    built = Builder(tmp_path).rollout(0, [])
    built.index[0][0]["segment"] = segment
    assert said(built.write()) == [f"{INDEX}:1: {segment!r} is not a segment of rank 0"]


def test_segment_files_no_line_refers_to_are_notes(tmp_path: Path):
    path = simple(tmp_path).write()
    write_rows(path / "segments" / "r0-000009.responses.parquet", [{"row": 1}])
    (path / "segments" / "r0-000010.responses.parquet.tmp").write_bytes(b"PAR1")
    (path / "manifest.json.tmp").write_text("{")
    (path / "segments" / "readme.txt").write_text("mine")
    unfinished = "was being written when the run was killed, or is now; harmless [note]"
    unreferred = "no index line refers to it: lost when the run was killed; harmless [note]"
    assert said(path) == [
        f"manifest.json.tmp: {unfinished}",
        f"segments/r0-000009.responses.parquet: {unreferred}",
        f"segments/r0-000010.responses.parquet.tmp: {unfinished}",
    ]


# --- whatever the bytes ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_of_any_kind_raises_nothing_and_the_reader_only_its_own_error(
    tmp_path_factory: pytest.TempPathFactory, seed: int
):
    rng = random.Random(seed)
    path = simple(tmp_path_factory.mktemp("bundle")).write()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in rng.sample(files, rng.randrange(1, 4)):
        data = bytearray(file.read_bytes())
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 40)]
                case _:
                    data[at:at] = rng.randbytes(rng.randrange(1, 20))
            if not data:
                break
        file.write_bytes(data)
    assert all(isinstance(fault, Fault) for fault in verify(path))
    try:
        bundle = open_bundle(path)
        for read in (bundle.updates, bundle.rollouts, bundle.metrics, bundle.groups, bundle.responses, bundle.tokens):
            read()
        for update in range(3):
            bundle.tokens(update=update)
            bundle.responses(update=update)
    except BundleError as error:
        assert "\n" not in str(error)


def test_lines_nested_without_end_are_named(tmp_path: Path):
    path = simple(tmp_path).write()
    with (path / INDEX).open("a") as stream:
        stream.write("[" * 100_000 + "\n")
    (found,) = said(path)
    assert found.startswith(f"{INDEX}:6: ")


def test_what_verify_passes_the_reader_reads(tmp_path: Path):
    path = simple(tmp_path).write()
    assert verify(path) == []
    assert [open_bundle(path).tokens(update=n).num_rows for n in range(3)] == [5, 1, 2]
    assert json.loads((path / "manifest.json").read_text())["ranks"] == 1

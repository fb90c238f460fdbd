"""The command line: what people see, what scripts get, and one clear line for what goes wrong."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import types
import urllib.request
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from bundle.builder import Builder, attempt, response, simple, token
from typer.testing import CliRunner, Result

from unipo_hooks import cli, server
from unipo_hooks.bundle import check_files
from unipo_hooks.cli import summary, terminal
from unipo_hooks.cli.demo import example_page, place
from unipo_hooks.cli.viewing import what_to_show
from unipo_hooks.errors import ExportError
from unipo_hooks.export import html
from unipo_hooks.shelf import FolderShelf, GivenShelf

PAGE = b"<!doctype html><title>unipo-hooks</title><!--unipo-bundle-->"
COMMANDS = ("demo", "view", "info", "validate", "export")
COMMAND = [sys.executable, "-m", "unipo_hooks.cli"]


@pytest.fixture(autouse=True)
def viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (server, html):
        monkeypatch.setattr(module, "viewer_page", lambda: PAGE)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return simple(tmp_path / "run").write()


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*arguments: object) -> str:
    """The one line a call that fails says."""
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("unipo-hooks: ")
    return line.removeprefix("unipo-hooks: ")


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    text = call("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert "UnipoCallback" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(command: str) -> None:
    assert f"unipo-hooks {command}" in " ".join(call(command, "--help").stdout.split())


def test_the_version() -> None:
    assert re.fullmatch(r"unipo-hooks \S.*\n", call("--version").stdout)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from unipo_hooks.cli import app\n"
        "try: app(['--help'])\n"
        "finally: print(sorted({'pyarrow', 'numpy', 'pydantic', 'torch', 'trl', 'http.server'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_as_json(folder: Path) -> None:
    facts = json.loads(call("info", folder, "--json").stdout)
    assert facts["updates"] == {"seen": 3, "captured": 3, "trained": 3, "superseded": 0}
    assert (facts["rollouts"], facts["groups"], facts["responses"]) == (2, 4, 6)
    assert facts["tokens"] == {"rollout": 8, "update": 8, "tool": 0}
    size = sum(path.stat().st_size for path in (folder / "segments").iterdir())
    assert (facts["segment_bytes"], facts["bytes_per_token"]) == (size, size / 8)
    assert facts["reward"] == {"first_tenth": 0.5, "last_tenth": 0.5}
    assert (facts["responses_without_reward"], facts["damaged"]) == (0, [])
    assert "÷ captured tokens" in facts["bytes_per_token_means"]
    assert facts["status"] == "finished" and facts["ranks"] == 1
    assert facts["trainer"] == {"library": "trl", "version": "1.16.0", "trainer_class": "GRPOTrainer"}


def test_info_for_people(tmp_path: Path) -> None:
    built = simple(tmp_path / "run")
    built.manifest.update(
        header={
            "algorithm": "grpo",
            "task": "digits",
            "hparams": {"clip_eps": 0.2, "loss_type": "GRPO", "secret": 7},
            "totalSteps": 1200,
        },
        status="running",
        attempts=[attempt(0, status="interrupted"), attempt(1, first_update=3, status="running")],
        policy={"every": 2, "max_groups": None, "max_bytes": 1 << 30, "seed": 0},
        lost={"rollouts": 1, "updates": 2, "tokens": 0, "bytes": 3_000_000, "reason": "the queue was full"},
        cost={"hook_seconds": 0.006, "writer_cpu_seconds": 1.25, "segment_bytes": 1},
    )
    text = call("info", built.write()).stdout
    for line in (
        r"run +digits",
        r"trainer +trl 1\.16\.0, GRPOTrainer",
        r"algorithm +grpo, clip_eps 0\.2$",
        r"status +running, or killed, 3 of 1,200 updates so far",
        r"updates +3 captured of 5 trained",
        r"rollouts +2 captured, with 4 groups and 6 responses$",
        r"tokens +8 in responses, 8 over all updates",
        r"size +\S+ kB, \S+ bytes a token$",
        r"attempts +2 \(from update 0: interrupted, from update 3: running\)",
        r"sampling +every 2, max_bytes 1 GiB$",
        r"lost +1 rollout, 2 updates, 3\.0 MB of records: the queue was full",
        r"cost +2\.00 ms an update in the hooks, 1\.2 s of CPU",
        r"reward +mean 0\.500 in the first update, 0\.500 in the last$",
    ):
        assert re.search(rf"^{line}", text, re.MULTILINE), f"{line}\n{text}"
    assert "secret" not in text
    assert not re.search(r" $", text, re.MULTILINE)


def info_row(folder: Path, label: str) -> str:
    """What `info` says in a row, on one line."""
    (value,) = re.findall(rf"^{label} +(.*)$", call("info", folder).stdout, re.MULTILINE)
    return str(value)


def test_updates_that_were_lost_were_trained_all_the_same(tmp_path: Path) -> None:
    """Of lost ones the metrics may be there, or not even these."""
    built = simple(tmp_path / "run")
    built.metrics(3, {}, captured=True)
    built.manifest.update(lost={"updates": 3, "reason": "the disk was full"})
    assert info_row(built.write(), "updates") == "3 captured of 6 trained"
    built.manifest["header"] |= {"totalSteps": 5}
    assert info_row(built.write(), "updates") == "3 captured of 5 trained"


def test_a_rank_that_wrote_nothing_is_named(tmp_path: Path) -> None:
    built = Builder(tmp_path / "run", ranks=3)
    rows = [response(0, [token(1)])]
    for update in range(2):
        for rank in (0, 2):
            built.rollout(update, rows, rank=rank, groups=1).update(update, [(update, rows[0])], rank=rank)
    folder = built.write()
    assert info_row(folder, "lost") == "nothing that was counted, but there is nothing of rank 1 in 2 updates"
    expected = "3; of 2 updates and 2 rollouts not every rank's part is there: rank 1 is missing"
    assert info_row(folder, "ranks") == expected
    assert json.loads(call("info", folder, "--json").stdout)["missing_ranks"] == {"1": 2}


def test_tokens_of_tools_are_told_from_the_models(tmp_path: Path) -> None:
    built = simple(tmp_path / "run")
    built.manifest["channels"] = ["ids", "mask", "mask_reason"]
    folder = built.write()
    assert info_row(folder, "tokens") == "8 in responses, 7 of them the model's, 8 over all updates"
    for path in (folder / "segments").glob("*.rollout_tokens.parquet"):
        path.write_bytes(b"PAR1")
    assert info_row(folder, "tokens") == "8 in responses, 8 over all updates"


def test_updates_that_were_done_again_are_counted(tmp_path: Path) -> None:
    built = simple(tmp_path / "run")
    built.manifest["attempts"] = [attempt(0, status="interrupted"), attempt(1, first_update=2)]
    expected = "2 (from update 0: interrupted, from update 2: finished; 1 update done again later and hidden)"
    assert info_row(built.write(), "attempts") == expected


def test_evaluations_are_batches(tmp_path: Path) -> None:
    built = simple(tmp_path / "run")
    built.metrics(0, {}, kind="eval")
    assert info_row(built.write(), "evaluations") == "1 batch"
    built.metrics(1, {}, kind="eval")
    assert info_row(built.write(), "evaluations") == "2 batches"


def test_an_algorithm_goes_by_what_can_be_looked_up(tmp_path: Path) -> None:
    parts = {"gate": {"part": "ppo_clip"}, "aggregation": {"part": "token_mean"}}
    spec = {"id": "trl.dapo_kl", "name": "dapo of TRL with a KL penalty", "parent": "dapo.trl", "parts": parts}
    folder = Builder(tmp_path / "composed", algorithm=spec).write()
    assert info_row(folder, "algorithm") == ("dapo of TRL with a KL penalty (see unipo-hooks algorithms show dapo.trl)")
    assert call("algorithms", "show", "dapo.trl").exit_code == 0
    folder = Builder(tmp_path / "shipped", algorithm=spec | {"id": "dapo.trl"}).write()
    assert info_row(folder, "algorithm") == "dapo.trl"
    folder = Builder(tmp_path / "own", algorithm=spec | {"id": "mine", "parent": "theirs"}).write()
    assert info_row(folder, "algorithm") == "dapo of TRL with a KL penalty"


def test_the_reward_is_that_of_the_first_and_last_tenth(tmp_path: Path) -> None:
    built = Builder(tmp_path / "run")
    rows = [response(row, [token(1)], reward=[1.0, math.nan][row % 2]) for row in range(4)]
    built.rollout(0, rows)
    for update in range(20):
        built.metrics(update, {"reward": [float(update % 2 + update // 10), 1.0, 0.0]})
    text = call("info", built.write()).stdout
    assert re.search(r"^reward +mean 0\.500 in the first tenth of the run, 1\.500 in the last$", text, re.MULTILINE)
    assert re.search(r"^reward +2 of 4 responses have no reward$", text, re.MULTILINE)


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "pipe"])
def test_info_shows_damage(folder: Path, how: str) -> None:
    name = "segments/r0-000000.responses.parquet"
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if how == "pipe":
        os.mkfifo(folder / name)
    elif how != "missing":
        (folder / name).write_bytes(whole[: -20 if how == "truncated" else 0])
    if how == "pipe":  # whatever it is, `damaged` is found without opening it
        assert check_files.damaged_segments(folder, 1) == [name]
        return
    result = call("info", folder)
    assert result.exit_code == 0
    line = f"1 segment file (first: {name}); run unipo-hooks validate {folder}"
    assert re.search(rf"^damaged +{re.escape(line)}$", result.stdout, re.MULTILINE)
    facts = json.loads(call("info", folder, "--json").stdout)
    assert (facts["damaged"], facts["responses_without_reward"]) == ([name], None)


def test_info_on_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "run", status="running").write()
    facts = json.loads(call("info", folder, "--json").stdout)
    assert (facts["bytes_per_token"], facts["reward"], facts["hook_ms_per_update"]) == (None, None, None)
    assert "0 captured of 0 trained" in call("info", folder).stdout


def test_text_of_a_run_is_neither_markup_nor_control(tmp_path: Path) -> None:
    nasty = "[bold]x[/bold] [/nope] \x1b[31mred :smile:\u202e"
    folder = simple(tmp_path / "run")
    folder.manifest.update(header={"algorithm": nasty, "task": nasty})
    text = call("info", folder.write()).stdout
    assert text.count("[bold]x[/bold] [/nope] \\x1b[31mred :smile:\\u202e") == 2
    assert "\x1b" not in text


# --- validate --------------------------------------------------------------------------------------------------------


def test_a_sound_bundle(folder: Path) -> None:
    result = call("validate", folder)
    assert (result.exit_code, result.stdout) == (0, f"{folder}: valid\n")
    result = call("validate", folder, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"ok": True, "found": []})


def test_notes_are_no_faults(folder: Path) -> None:
    with (folder / "index.r0.jsonl").open("a") as index:
        index.write('{"entry": "upd')
    result = call("validate", folder)
    assert result.exit_code == 0
    *notes, verdict = result.stdout.splitlines()
    assert len(notes) == 1 and notes[0].startswith("note: index.r0.jsonl:6: ")
    assert verdict == f"{folder}: valid, 1 note"


def test_every_fault_has_a_line(folder: Path) -> None:
    index = folder / "index.r0.jsonl"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:2], "not json", *lines[3:]]) + "\n")
    (folder / "segments" / "r0-000001.update_tokens.parquet").unlink()
    result = call("validate", folder)
    assert result.exit_code == 1
    *faults, verdict = result.stdout.splitlines()
    assert any(fault.startswith("index.r0.jsonl:3: ") for fault in faults)
    assert any("r0-000001.update_tokens.parquet" in fault for fault in faults)
    assert verdict.startswith(f"{folder}: {sum(not fault.startswith('note: ') for fault in faults)} faults")
    found = json.loads(call("validate", folder, "--json").stdout)
    assert found["ok"] is False and len(found["found"]) == len(faults)
    assert set(found["found"][0]) == {"file", "line", "severity", "message"}


# --- export ----------------------------------------------------------------------------------------------------------


def test_exports_go_beside_the_bundle(folder: Path) -> None:
    result = call("export", folder, "--html", "--canonical")
    assert result.exit_code == 0
    page, run = folder.with_name("run.html"), folder.with_name("run.canonical.json")
    assert page.is_file() and len(json.loads(run.read_text())["entries"]) == 3
    assert [line.split(" (")[0] for line in result.stdout.splitlines()] == [str(page), str(run)]
    assert "needs at least 22 updates" in result.stderr


@pytest.mark.parametrize(
    "order", [("{run}", "--html", "{out}"), ("--html", "{run}", "{out}"), ("{run}", "{out}", "--html")]
)
def test_an_export_goes_where_it_is_told(folder: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    out = tmp_path / "deep" / "er" / "to share.html"
    assert call("export", *(part.format(run=folder, out=out) for part in order)).exit_code == 0
    assert out.is_file() and not folder.with_name("run.html").exists()


def test_two_exports_are_told_apart_by_their_names(folder: Path, tmp_path: Path) -> None:
    page, run = tmp_path / "a.html", tmp_path / "b.JSON"
    assert call("export", folder, "--html", "--canonical", run, page).exit_code == 0
    assert page.read_bytes().startswith(b"<!doctype") and "entries" in json.loads(run.read_text())


def test_a_bundle_with_dots_in_its_name(tmp_path: Path) -> None:
    folder = simple(tmp_path / "lr1.5e-4").write()
    assert call("export", f"{folder}/", "--html").exit_code == 0
    assert (tmp_path / "lr1.5e-4.html").is_file()


def test_a_bundle_called_by_a_dot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert call("export", ".", "--html").exit_code == 0
    assert folder.with_name("run.html").is_file()


def test_a_missing_file_is_a_note(folder: Path) -> None:
    (folder / "segments" / "r0-000001.update_tokens.parquet").unlink()
    result = call("export", folder, "--html")
    assert result.exit_code == 0
    assert "goes without segments/r0-000001.update_tokens.parquet: missing" in result.stderr
    (folder / "segments" / "r0-000001.update_tokens.parquet").write_bytes(b"")
    (folder / "segments" / "r0-000000.update_tokens.parquet").write_bytes(b"PAR1")
    result = call("export", folder, "--html")
    assert result.exit_code == 0
    expected = "cannot show segments/r0-000000.update_tokens.parquet and 1 more: truncated or damaged; run `unipo-hooks"
    assert expected in result.stderr


def test_a_page_too_large_for_an_e_mail_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAIL_LIMIT", 10)
    assert "zip it" in call("export", folder, "--html").stderr


def test_work_that_takes_long_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    seen = Console(stderr=True, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "console", lambda stderr=False: seen)
    for patience, shown in ((-1.0, True), (60.0, False)):
        monkeypatch.setattr(terminal, "PATIENCE_S", patience)
        with seen.capture() as output, terminal.progress("writing [the] page") as report:
            report(1, 2)
            report(2, 2)
        assert ("writing [the] page" in output.get()) is shown


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("view",), ("info",), ("validate",), ("export", "--html"), ("export", "--canonical")]
)
def test_no_bundle_is_one_clear_line(folder: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    assert "does not exist" in fails(*command, tmp_path / "nowhere")
    assert "is a file" in fails(*command, folder / "manifest.json")
    (tmp_path / "empty").mkdir()
    assert "not a bundle" in fails(*command, tmp_path / "empty")
    if command != ("view",):  # which shows what a folder holds
        assert "holds 1 bundle: run; open it" in fails(*command, tmp_path)
    if command == ("validate",):  # it goes on to name faults
        return
    future = Builder(tmp_path / "future", version="2.0").write()
    assert "update it" in fails(*command, future)
    (future / "manifest.json").write_text("{")
    assert "manifest.json" in fails(*command, future)


def test_a_damaged_bundle_is_one_clear_line(folder: Path) -> None:
    (folder / "segments" / "r0-000000.responses.parquet").write_bytes(b"PAR1 and no more")
    assert "r0-000000.responses.parquet" in fails("export", folder, "--canonical")
    (folder / "index.r0.jsonl").write_text("nonsense\n")
    assert "index.r0.jsonl:1" in fails("info", folder)
    assert "index.r0.jsonl:1" in fails("export", folder, "--html")


def test_exports_that_make_no_sense(folder: Path, tmp_path: Path) -> None:
    assert "--html, --canonical or both" in fails("export", folder)
    assert fails("export", folder, "--html", "--canonical", "x.txt") == "x.txt: name a file that ends in .html or .json"
    assert fails("export", folder, "--html", "x.json") == "x.json: name a file that ends in .html"
    assert fails("export", folder, "--canonical", "x") == "x: name a file that ends in .json"
    assert fails("export", folder, "--html", "a.html", "b.html").startswith("b.html: a.html was given already")
    assert "is inside the bundle" in fails("export", folder, "--canonical", folder / "manifest.json")
    assert "is inside the bundle" in fails("export", folder, "--html", "--canonical", folder / "x.html")
    assert not folder.with_name("run.canonical.json").exists()
    assert "is a folder" in fails("export", folder, "--html", tmp_path)


def test_a_viewer_that_was_never_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bytes:
        raise ExportError("the viewer is not built; run make viewer")

    for module in (server, html):
        monkeypatch.setattr(module, "viewer_page", missing)
    assert fails("view", folder, "--no-browser") == "the viewer is not built; run make viewer"
    assert fails("export", folder, "--html") == "the viewer is not built; run make viewer"


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    folder = simple(tmp_path / "run").write()

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [*COMMAND, "export", str(folder), "--canonical"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=small_disk,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"unipo-hooks: cannot write .*run\.canonical\.json: File too large\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- view ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends as with Ctrl-C as soon as it would answer."""

    def stop(self: object, poll_interval: float = 0.5) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.BundleServer, "serve_forever", stop)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened in the browser."""
    urls: list[str] = []
    monkeypatch.setattr(webbrowser, "open", urls.append)
    monkeypatch.setattr(cli, "_open_browser", webbrowser.open)
    return urls


@pytest.mark.usefixtures("no_serving")
def test_view_opens_the_browser(folder: Path, opened: list[str]) -> None:
    result = call("view", folder, "--port", "0")
    assert result.exit_code == 0
    (url,) = opened
    assert f"{folder} is at {url} (Ctrl-C ends it)" in result.stdout


@pytest.mark.usefixtures("no_serving")
def test_view_of_a_folder_shows_the_bundles_in_it(tmp_path: Path, opened: list[str]) -> None:
    for number in range(6):
        simple(tmp_path / "runs" / f"run-{number}").write()
    said = call("view", tmp_path / "runs" / "run-0", "--port", "0").stdout
    assert f"{tmp_path / 'runs' / 'run-0'} is at {opened[0]}" in said
    said = call("view", tmp_path / "runs", "--port", "0").stdout
    names = "run-0, run-1, run-2, run-3, run-4 and 1 more"
    assert f"{tmp_path / 'runs'} (6 bundles: {names}) is at {opened[1]} (Ctrl-C ends it)" in said
    said = call("view", tmp_path / "runs" / "run-3", tmp_path / "runs" / "run-1", "--port", "0").stdout
    assert f"run-3, run-1 are at {opened[2]}" in said


def test_what_is_viewed(tmp_path: Path) -> None:
    one, two = (simple(tmp_path / "runs" / name).write() for name in ("one", "two"))
    assert what_to_show([one]) == one
    folder = what_to_show([tmp_path / "runs"])
    assert isinstance(folder, FolderShelf) and folder.names() == ["one", "two"]
    given = what_to_show([two, one])
    assert isinstance(given, GivenShelf) and given.names() == ["two", "one"]
    simple(tmp_path / "runs").write()  # a bundle that has others in it is itself
    assert what_to_show([tmp_path / "runs"]) == tmp_path / "runs"


def test_of_several_paths_each_has_to_be_a_bundle(folder: Path, tmp_path: Path) -> None:
    assert "does not exist" in fails("view", folder, tmp_path / "nowhere")
    simple(tmp_path / "runs" / "a").write()
    simple(tmp_path / "runs" / "b").write()
    line = fails("view", folder, tmp_path / "runs")
    assert line.endswith(f"holds 2 bundles: a, b; open one of them, or see all: unipo-hooks view {tmp_path / 'runs'}")


@pytest.mark.usefixtures("no_serving")
def test_view_can_leave_the_browser_alone(folder: Path, opened: list[str]) -> None:
    assert call("view", folder, "--port", "0", "--no-browser").exit_code == 0
    assert opened == []


@pytest.mark.usefixtures("no_serving")
def test_view_over_ssh_prints_the_line_to_run(folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 50000 10.0.0.7 22")
    text = call("view", folder, "--port", "0").stdout
    port = re.search(r"127\.0\.0\.1:(\d+)/", text)
    assert port and re.search(rf"ssh -N -L {port[1]}:127\.0\.0\.1:{port[1]} \S+@10\.0\.0\.7", text)
    assert opened == []


@pytest.mark.usefixtures("no_serving")
def test_view_says_that_a_port_is_taken(folder: Path, opened: list[str]) -> None:
    with server.BundleServer(folder, 0) as taken:
        text = call("view", folder, "--port", taken.port).stdout
    assert re.match(rf"port {taken.port} is taken; using \d+\n", text)
    assert f":{taken.port}/" not in opened[0]


def test_view_serves_until_ctrl_c_and_ends_quietly(folder: Path, tmp_path: Path) -> None:
    code = (
        "from unipo_hooks import server, cli\n"
        f"server.viewer_page = lambda: {PAGE!r}\n"
        f"cli.app(['view', {str(folder)!r}, '--port', '0', '--no-browser'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout and serving.stderr
        line = serving.stdout.readline()
        url = re.search(r"http://\S+", line)
        assert url, line + serving.stderr.read()
        page = urllib.request.urlopen(url[0], timeout=30).read()
        with (folder / "index.r0.jsonl").open("a") as index:
            index.write("{}\n")
        assert urllib.request.urlopen(url[0] + "index.r0.jsonl", timeout=30).read().endswith(b"{}\n")
        serving.send_signal(signal.SIGINT)
        assert serving.wait(30) == 0
        assert serving.stderr.read() == ""
    assert page == PAGE.replace(b"<title>", "<title>run · ".encode())


# --- demo ------------------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, main: Any) -> None:
    """Put `main` in the place of the packaged example, so that the command is tested without training."""
    for name, members in (("trl", {}), ("unipo_hooks.examples.trl_grpo", {"main": main})):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)


def test_the_demo_shows_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(path: str) -> Path:
        built = Builder(Path(path))
        rows = [response(0, [token(1), token(2)])]
        built.rollout(0, rows)
        for update in range(20):
            built.update(update, [(0, rows[0])]).metrics(update, {"reward": [update // 2 / 10, 1.0, 0.0]})
        built.write()
        return Path(path)

    stand_in(monkeypatch, main)
    result = call("demo", tmp_path / "runs" / "demo")
    assert result.exit_code == 0
    bundle, page = tmp_path / "runs" / "demo", tmp_path / "runs" / "demo.html"
    assert page.is_file()
    text = result.stdout
    assert f"bundle  {bundle}\n" in text and f"page    {page}\n" in text
    assert re.search(r"reward by tenth of the run +\.00 \.10 \.20 \.30 \.40 \.50 \.60 \.70 \.80 \.90", text), text
    assert re.search(r"updates captured +20 of 20", text)
    assert re.search(r"tokens +40", text)
    assert re.search(r"^size +\S+ kB, \S+ bytes a token$", text, re.MULTILINE)
    assert f"unipo-hooks view {bundle}" in text


def test_the_demo_leaves_a_page_of_a_real_model_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "runs" / "smollm2.html"

    def main(path: str) -> Path:
        assert page.is_file()
        return made(Path(path))

    stand_in(monkeypatch, main)
    text = call("demo", tmp_path / "runs" / "demo").stdout
    assert text.startswith(f"page    {page}  a real model, SmolLM2, captured earlier: open it now, nothing to train\n")
    names = re.findall(rb'data-bundle-file="([^"]+)"', page.read_bytes())
    assert names[0] == b"manifest.json" and any(name.endswith(b".update_tokens.parquet") for name in names)


@pytest.mark.parametrize("taken", ["the demo's own", "another"])
def test_the_page_of_a_bundle_is_never_replaced_by_the_examples(tmp_path: Path, taken: str) -> None:
    if taken == "another":
        simple(tmp_path / "smollm2").write()
    bundle = tmp_path / ("demo" if taken == "another" else "smollm2")
    assert example_page(bundle) == tmp_path / "smollm2-example.html"


def test_the_page_of_a_real_model_needs_no_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert call("demo", tmp_path / "demo").exit_code == 1
    assert (tmp_path / "smollm2.html").is_file()


def test_the_packaged_run_is_a_real_one_and_sound() -> None:
    from unipo_hooks import open_bundle
    from unipo_hooks.bundle.verify import verify

    path = Path(cli.__file__).parents[2] / "examples" / "smollm2"
    assert verify(path) == []
    bundle = open_bundle(path)
    assert bundle.header.model_name == "SmolLM2-135M-Instruct"
    assert bundle.manifest.status == "finished"
    assert not re.search(r'"[^"]*(/tmp|/home|/root|/work)[^"]*"', (path / "manifest.json").read_text())
    assert sum(file.stat().st_size for file in path.rglob("*")) < 400_000
    responses = bundle.responses()
    assert min(responses["length"].to_pylist()) >= 64
    assert set(bundle.manifest.channels) >= {"ref_log_probs", "token_kl", "entropies", "reward_components"}
    groups = bundle.groups().to_pylist()
    assert {group["size"] for group in groups} == {4}
    assert sum(group["reward_std"] > 0 for group in groups) > len(groups) / 2
    assert any(group["reward_std"] == 0 for group in groups), "none that teaches why a tie gives no signal"
    metrics = bundle.metrics().to_pylist()
    assert any(row["clip_fraction_low"] > 0 and row["clip_fraction_high"] > 0 for row in metrics)


def test_a_demo_beside_an_older_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda path: made(Path(f"{path}-3")))
    text = call("demo", tmp_path / "demo").stdout
    assert f"bundle  {tmp_path / 'demo-3'}\n" in text
    assert (tmp_path / "demo-3.html").is_file()


def test_a_demo_that_cannot_write_fails_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda path: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    assert fails("demo", tmp_path / "file" / "demo") == f"cannot write to {tmp_path / 'file' / 'demo'}: Not a directory"


def test_the_look_beforehand_leaves_nothing(tmp_path: Path) -> None:
    assert place(tmp_path / "a" / "b" / "demo") == tmp_path / "a" / "b" / "demo"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    assert place(tmp_path / "there") == tmp_path / "there"
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    simple(tmp_path / "there").write()
    assert place(tmp_path / "there") == tmp_path / "there-2"
    assert not (tmp_path / "there-2").exists()


@pytest.mark.parametrize("captured", [True, False])
def test_ctrl_c_says_where_the_demo_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: bool) -> None:
    def main(path: str) -> Path:
        if captured:
            made(Path(path))
        raise KeyboardInterrupt

    stand_in(monkeypatch, main)
    result = call("demo", tmp_path / "demo")
    assert result.exit_code == 130
    (line,) = result.stderr.split("\n")[1:-1]
    assert (f"unipo-hooks view {tmp_path / 'demo'}" in line) is captured
    assert captured or "before anything was captured" in line


def made(path: Path) -> Path:
    simple(path).write()
    return path


def test_a_demo_without_the_viewer_has_all_but_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> bytes:
        raise ExportError("the viewer is not built; run make viewer")

    monkeypatch.setattr(html, "viewer_page", missing)
    stand_in(monkeypatch, lambda path: made(Path(path)))
    result = call("demo", tmp_path / "demo")
    assert result.exit_code == 0
    assert "no page: the viewer is not built; run make viewer" in result.stderr


def test_a_demo_without_trl_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    result = call("demo", tmp_path / "demo")
    assert result.exit_code == 1
    assert "pip install 'unipo-hooks[trl]'" in result.stderr


def test_a_short_run_has_as_many_tenths_as_updates(folder: Path) -> None:
    from unipo_hooks import open_bundle

    assert summary.reward_by_tenth(open_bundle(folder)) == [0.5, 0.5, 0.5]

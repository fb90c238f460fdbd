"""Two processes that train together leave one bundle, which holds what each of their trainers computed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_runs import BUDGET, LOSSES
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from unipo_hooks import algorithms, cli, evaluate, open_bundle
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify
from unipo_hooks.export.canonical import canonical_run
from unipo_hooks.export.html import export_html

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
RANKS = (0, 1)
HURT = ("unwritable", "without_rank_1", "half", "unheard", "no_store")
"""Scenarios in which capture fails on a rank or more."""


def launch(scenarios, model, folder):
    """Run scenarios in two processes, one after another; what torchrun returned and printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(TESTS / "rank_runs.py"), ",".join(scenarios), str(model), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(saved_model, tmp_path_factory):
    """Everything but what goes on after a kill, in one launch that ends in the kill."""
    folder = tmp_path_factory.mktemp("ranks")
    code, said = launch(["plain", "without", "second", *HURT, "losses", "sampled", "killed"], saved_model, folder)
    assert code and (folder / "killed" / layout.MANIFEST).exists(), said
    (folder / "said").write_text(said)
    return folder


@pytest.fixture(scope="module")
def resumed(runs, saved_model):
    """The killed run gone on with, after a kill that came before rank 0 had written what rank 1 had."""
    lose_lines(runs / "killed" / layout.index_name(0), 2)
    lose_lines(runs / "killed" / layout.metrics_name(0), 2)
    before = rank_lines(runs / "killed")
    code, said = launch(["resumed"], saved_model, runs)
    assert code == 0, said
    return before, runs / "killed"


def lose_lines(path, count):
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, last][:-count]) + last[:30])


def rank_lines(path):
    """Rollouts and updates in each rank's index."""
    texts = [(path / layout.index_name(rank)).read_text().split("\n")[:-1] for rank in RANKS]
    lines = [[json.loads(text) for text in each] for each in texts]
    return [[(line["entry"], line["attempt"], line[line["entry"]]) for line in each] for each in lines]


def kept(folder, scenario):
    """What the trainer of each rank computed."""
    return [torch.load(folder / f"{scenario}.r{rank}.pt", weights_only=False) for rank in RANKS]


def faults(path):
    return [str(each) for each in verify(path)]


def test_training_is_bit_identical_on_every_rank_whatever_capture_does(runs):
    without = kept(runs, "without")[0]["weights"]
    for scenario in ("without", "second", *HURT):
        for rank, run in zip(RANKS, kept(runs, scenario), strict=True):
            assert run["steps"] == 4
            assert all(torch.equal(run["weights"][name], without[name]) for name in without), (scenario, rank)


def test_all_ranks_write_to_one_folder_and_a_second_run_goes_beside_it(runs):
    for scenario, name in (("plain", "run"), ("second", "run-2")):
        assert [run["path"] for run in kept(runs, scenario)] == [str(runs / name)] * 2
        names = {each.name for each in (runs / name).iterdir()}
        assert names == {
            layout.MANIFEST,
            layout.SEGMENTS,
            layout.rank_name(1),
            *(of(rank) for rank in RANKS for of in (layout.index_name, layout.metrics_name)),
        }
        assert faults(runs / name) == []
        manifest = open_bundle(runs / name).manifest
        assert (manifest.status, manifest.ranks, len(manifest.attempts)) == ("finished", 2, 1)
    assert not (runs / "run-3").exists()
    assert [run["heard"] for run in kept(runs, "plain")] == [[], []]


def test_only_rank_0_says_where_the_run_is(runs):
    said = [line for line in (runs / "said").read_text().splitlines() if line.startswith("unipo-hooks: ")]
    assert [line for line in said if line.endswith(str(runs / "run"))] == [
        f"unipo-hooks: to see this run, now or later: unipo-hooks view {runs / 'run'}",
        f"unipo-hooks: 6 updates are in {runs / 'run'}",
    ]


def test_every_row_of_every_rank_is_there_as_often_as_it_was_trained_on_bit_for_bit(runs):
    bundle, passes, compared, widths = open_bundle(runs / "run"), {}, 0, []
    for update in range(6):
        table, members = bundle.tokens(update=update).to_pandas(), bundle.responses(update=update).to_pandas()
        for rank, run in zip(RANKS, kept(runs, "plain"), strict=True):
            trained = [each for each in run["losses"] if each["train"] and each["step"] == update]
            of_kind = zip(run["generated"], run["generated_for"], strict=True)
            generated = [each for each, kind in of_kind if kind == "train"]
            for number, loss in enumerate(trained):
                widths.append((rank, update, loss["ids"].shape[1]))
                mine = members[(members["rank"] == rank) & (members["micro_batch"] == number)]
                assert len(mine) == len(loss["ids"])
                for i, (rollout, row) in enumerate(zip(mine["rollout"], mine["row"], strict=True)):
                    n = int(loss["mask"][i].sum())
                    own = (table["rank"] == rank) & (table["micro_batch"] == number)
                    tokens = table[own & (table["rollout"] == rollout) & (table["row"] == row)]
                    assert tokens["ids"].tolist() == loss["ids"][i, :n].tolist()
                    batch = generated[rollout]
                    for name, values in (
                        ("log_probs", loss["log_probs"][i]),
                        ("entropies", loss["entropies"][i]),
                        ("old_log_probs", batch["old_per_token_logps"][row]),
                        ("ref_log_probs", batch["ref_per_token_logps"][row]),
                    ):
                        assert tokens[name].to_numpy(np.float32).tobytes() == values[:n].numpy().tobytes(), name
                    assert np.float32(tokens["advantages"].iloc[0]) == batch["advantages"][row].item()
                    passes[rank, rollout, row] = passes.get((rank, rollout, row), 0) + 1
                    compared += n
    by_rank = [[width for rank, _, width in widths if rank == each] for each in RANKS]
    print(f"{len(passes)} responses, {compared} tokens bit for bit; widths {by_rank}")
    assert by_rank[0] != by_rank[1], "ranks were padded alike: nothing was tried"
    assert set(passes.values()) == {2} and len(passes) == 3 * 8


def test_a_group_that_spans_ranks_is_shown_whole(runs):
    bundle, runs_of = open_bundle(runs / "run"), kept(runs, "plain")
    responses = bundle.responses().to_pandas()
    worst, logged = 0.0, [entry for entry in runs_of[0]["history"] if "reward_std" in entry]
    assert set(responses["rank"]) == set(RANKS)
    for group, entry in zip(bundle.groups().to_pylist(), logged, strict=True):
        mine = responses[(responses["rollout"] == group["rollout"]) & (responses["group"] == group["group"])]
        assert len(mine) == group["size"] == 8 and set(mine["rank"]) == set(RANKS)
        assert mine["prompt"].nunique() == 1 and group["kept"]
        worst = max(worst, abs(group["reward_mean"] - entry["reward"]), abs(group["reward_std"] - entry["reward_std"]))
        expected = (mine["reward"] - group["reward_mean"]) / (group["reward_std"] + 1e-4)
        worst = max(worst, np.abs(mine["advantages"] - expected).max())
    print(f"largest error of a group's mean, deviation and advantages {worst:.1e}")
    assert worst < 1e-5


def test_metrics_are_the_trainers_own_over_all_ranks(runs):
    names = {
        "policy_loss": "loss",
        "entropy": "entropy",
        "kl": "kl",
        "clip_fraction_low": "clip_ratio/low_mean",
        "clip_fraction_high": "clip_ratio/high_mean",
        "clip_fraction": "clip_ratio/region_mean",
        "grad_norm": "grad_norm",
    }
    of_rollouts = {
        "reward": "reward",
        "reward_std": "reward_std",
        "group_reward_std": "reward_std",
        "zero_std_groups": "frac_reward_zero_std",
        "response_length": "completions/mean_length",
    }
    rows = open_bundle(runs / "run").metrics().to_pylist()
    history = [entry for entry in kept(runs, "plain")[0]["history"] if "loss" in entry]
    assert [row["ranks"] for row in rows] == [2] * 6
    worst = {}
    for row, entry in zip(rows, history, strict=True):
        wanted = names | (of_rollouts if row["is_first_step_after_rollout_phase"] else {})
        for ours, theirs in wanted.items():
            worst[ours] = max(worst.get(ours, 0.0), abs(row[ours] - entry[theirs]))
    print("largest error of each metric:", {name: f"{error:.1e}" for name, error in worst.items()})
    assert max(worst.values()) < 2e-6 and worst.keys() >= {"group_reward_std", "clip_fraction", "kl"}


def test_evaluations_of_two_ranks_are_kept_apart_and_whole(runs):
    bundle = open_bundle(runs / "run")
    updates = bundle.updates(kind="eval").to_pylist()
    losses = [[each["loss"] for each in run["losses"] if not each["train"]] for run in kept(runs, "plain")]
    assert [row["ranks"] for row in updates] == [2] * len(losses[0]) and updates
    for rank in RANKS:
        stored = [part["loss"] for row in updates for part in row["micro_batches"] if part["rank"] == rank]
        assert stored == losses[rank]
    assert set(bundle.groups(kind="eval")["size"].to_pylist()) == {8}


@pytest.mark.parametrize("setting", LOSSES)
def test_the_gradient_weight_is_the_derivative_of_the_mean_over_ranks(runs, saved_model, setting):
    bundle, trained = open_bundle(runs / setting), [run[setting] for run in kept(runs, "losses")]
    model = AutoModelForCausalLM.from_pretrained(saved_model)
    worst, largest_gap, compared = 0.0, 0.0, 0
    for update in range(2):
        parts = bundle.micro_batches(update)
        assert {part.rank for part in parts} == set(RANKS)
        for part in parts:
            spec = algorithms.get(bundle.manifest.attempt(part.attempt).algorithm)
            found = evaluate(algorithms.as_recorded(spec, part.batch.arrays), part.batch)
            entry = [each for each in trained[part.rank]["losses"] if each["step"] == update][part.micro_batch]
            width = found.gradient_weight.shape[1]
            theirs = entry["gradient"][:, :width].double().numpy() / len(RANKS)
            assert not entry["gradient"][:, width:].any()
            worst = max(worst, np.abs(found.gradient_weight - theirs).max() / np.abs(theirs).max())
            largest_gap = max(largest_gap, abs(found.loss - entry["loss"]))
            compared += 1
            if update == 0:  # the weights were still those of the saved model
                log_probs_of(model, entry)[:, :width].backward(torch.tensor(found.gradient_weight, dtype=torch.float32))
    averaged = trained[0]["gradients"]
    scale = max(gradient.abs().max() for gradient in averaged.values())
    off = max((each.grad - averaged[name]).abs().max() for name, each in model.named_parameters()) / scale
    print(f"{setting}: {compared} micro-batches, derivative {worst:.1e}, loss {largest_gap:.1e}, parameters {off:.1e}")
    assert worst < 1e-6 and largest_gap < 1e-6 and off < 1e-5
    gaps = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    assert all(abs(part["loss_gap"]) <= part["loss_tolerance"] and part["token_gap"] < 1e-5 for part in gaps)


def log_probs_of(model, entry):
    """(b, T) log-probs of the completions a loss was computed of, by another forward pass."""
    ids = torch.cat([entry["prompt_ids"], entry["ids"]], 1)
    mask = torch.cat([entry["prompt_mask"], entry["mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    width = entry["ids"].shape[1]
    return logits[:, -width:].log_softmax(-1).gather(2, entry["ids"][:, :, None])[:, :, 0]


def test_a_rank_that_cannot_be_captured_says_so_in_one_line_and_nobody_waits(runs):
    off = "unipo-hooks: rank {}: capture is off: {}. Training goes on."
    alone = "unipo-hooks: nothing of rank 1 was captured: make the callback on every rank"
    unwritable = f"cannot write to {runs / 'file' / 'run'}: Not a directory"
    unheard = "rank 0 has not said within 0.3 s where the bundle is; make the callback on every rank"
    expected = {
        "unwritable": [[off.format(0, unwritable)], [off.format(1, f"rank 0 captures nothing: {unwritable}")]],
        "without_rank_1": [[alone], [off.format(1, "ZeroDivisionError: division by zero")]],
        "unheard": [[], [off.format(1, unheard)]],
        "no_store": [
            ["unipo-hooks: only rank 0 is captured: torch.distributed has no store that all ranks see"],
            [off.format(1, "torch.distributed has no store that all ranks see, so only rank 0 is captured")],
        ],
    }
    assert {name: [run["heard"] for run in kept(runs, name)] for name in expected} == expected
    assert not any((runs / name).exists() for name in ("elsewhere", "unheard"))
    for name in ("rank0", "alone"):
        assert open_bundle(runs / name).updates()["ranks"].to_pylist() == [1] * 4
        assert faults(runs / name) == ["manifest.json: 1 of 2 ranks have written no index"]


def test_what_a_rank_lost_is_counted_and_what_it_lacks_is_said(runs):
    bundle = open_bundle(runs / "half")
    assert bundle.updates()["ranks"].to_pylist() == bundle.metrics()["ranks"].to_pylist() == [2, 2, 1, 1]
    assert bundle.manifest.lost.updates == 2 and bundle.manifest.lost.reason.startswith("rank 1: ")
    assert [len(bundle.micro_batches(update)) for update in range(4)] == [2, 2, 1, 1]
    (note,) = verify(bundle.path)
    assert note.severity == "note"
    assert str(note) == "index.r1.jsonl: lacks 2 updates that other ranks have (first: update 2)"
    facts = json.loads(info(bundle.path, "--json"))
    assert facts["incomplete"] == {"updates": 2, "rollouts": 0}
    assert "2; of 2 updates not every rank's part is there" in info(bundle.path)


def info(*arguments):
    result = CliRunner().invoke(cli.app, ["info", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split()) if "--json" not in arguments else result.output


def test_info_counts_every_rank(runs):
    said, bundle = info(runs / "run"), open_bundle(runs / "run")
    own = [json.loads((runs / "run" / name).read_text()) for name in (layout.MANIFEST, layout.rank_name(1))]
    assert bundle.manifest.cost.segment_bytes == sum(each["cost"]["segment_bytes"] for each in own)
    assert all(each["cost"]["segment_bytes"] > 0 and each["cost"]["hook_seconds"] > 0 for each in own)
    assert "updates 6 captured of 6 trained" in said and "3 groups and 24 responses" in said
    assert "ranks 2 attempts" in said and "lost nothing" in said


def test_ranks_keep_the_same_rollouts_of_a_run_too_long_for_its_budget(runs):
    first, second = ([each for each in lines if each[0] == "rollout"] for lines in rank_lines(runs / "sampled"))
    bundle = open_bundle(runs / "sampled")
    size = sum(file.stat().st_size for file in (runs / "sampled" / layout.SEGMENTS).iterdir())
    print(f"{len(first)} of 40 rollouts, {size} bytes of {BUDGET}")
    assert first == second and 3 < len(first) < 40
    assert size <= BUDGET
    assert set(bundle.groups()["size"].to_pylist()) == {8}
    assert faults(bundle.path) == []


def test_a_killed_run_is_readable_with_what_one_rank_alone_has(resumed):
    (first, second), _ = resumed
    assert second[: len(first)] == first and len(second) > len(first), (
        "the kill left both ranks alike: nothing was tried"
    )


def test_a_resumed_run_goes_on_with_numbers_all_ranks_share(resumed, runs):
    (_, before), path = resumed
    bundle = open_bundle(path)
    assert [each for each in verify(path) if each.severity == "fault"] == []
    assert [(a.first_update, a.status, a.ranks) for a in bundle.manifest.attempts] == [
        (0, "interrupted", 2),
        (4, "finished", 2),
    ]
    assert bundle.manifest.status == "finished"
    assert bundle.updates()["update"].to_pylist() == list(range(8))
    again = [[each for each in lines if each[1] == 1] for lines in rank_lines(path)]
    assert again[0] == again[1]
    taken = {number for entry, _, number in before if entry == "rollout"}
    assert min(number for entry, _, number in again[0] if entry == "rollout") == max(taken) + 1
    new = bundle.groups().to_pandas().query("attempt == 1")
    assert new["size"].tolist() == [8] * 4
    history = [entry for entry in kept(runs, "resumed")[0]["history"] if "reward_std" in entry][-4:]
    assert np.allclose(new["reward_std"], [entry["reward_std"] for entry in history], atol=1e-6)


def test_a_bundle_of_two_ranks_leaves_as_one_page_and_as_a_canonical_run(runs, tmp_path):
    page = export_html(runs / "run", tmp_path / "run.html")
    for name in (layout.rank_name(1), *map(layout.index_name, RANKS), *map(layout.metrics_name, RANKS)):
        assert f'data-bundle-file="{name}"' in page.read_text()
    entries = canonical_run(open_bundle(runs / "run")).entries
    sizes = [[len(prompt.responses) for prompt in entry.prompts] for entry in entries]
    assert sizes == [[8]] * 6
    ids = [response.id for entry in entries[:1] for prompt in entry.prompts for response in prompt.responses]
    assert len(set(ids)) == 8

"""What is captured of the real main_ppo is what its driver and its workers computed, bit for bit.

A witness notes both by means of its own (`witness`). Rows of a rollout are in the order of the driver's batch, padding
left out; forward passes of a rank in the order in which it made them: nothing else joins the two.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from transformers import PreTrainedTokenizerFast

from unipo_hooks.bundle.verify import verify
from verl_cpu.captured import ALWAYS, CHANNELS, EPOCHS, EVERY, SETUPS, VERSIONS, rows_of
from verl_cpu.runs import assets

pytestmark = pytest.mark.slow

SAMPLES, OF_A_TOOL = 4, 1
"""Of a prompt; the value of `mask_reason` of a token that the policy did not write."""


@pytest.fixture(scope="module", params=SETUPS)
def run(request, captured):
    return captured(request.param)


def kept_of(run, rollout):
    """Groups of a rollout whose tokens are kept."""
    kept = run.bundle.rollouts().to_pylist()[rollout]["kept"]
    return set(range(run.setup.prompts)) if kept is None else set(kept)


def test_the_bundle_is_whole_and_finished_and_nothing_was_lost(run):
    setup, manifest = run.setup, run.bundle.manifest
    assert verify(run.path) == []
    assert manifest.status == "finished"
    assert manifest.lost.model_dump(exclude_defaults=True) == {}
    assert manifest.algorithm is not None and manifest.algorithm_notes == []
    assert set(manifest.channels) == ALWAYS | setup.has
    updates = run.bundle.updates().to_pylist()
    assert [row["update"] for row in updates] == list(range(setup.steps * setup.updates_a_step))
    assert [row["step"] for row in updates] == [1 + n // setup.updates_a_step for n in range(len(updates))]
    fresh = [row["is_first_step_after_rollout_phase"] for row in updates]
    assert fresh == [n % setup.updates_a_step == 0 for n in range(len(updates))]
    assert [row["step"] for row in run.bundle.rollouts().to_pylist()] == list(range(1, setup.steps + 1))
    print(f"{len(updates)} updates, {run.bundle.tokens(EVERY).num_rows} tokens, {manifest.cost}")


def test_a_run_that_resumes_goes_on_in_its_bundle_and_little_is_said(run):
    setup, attempts = run.setup, run.bundle.attempts().to_pylist()
    ends = [0, *setup.starts[:-1]]
    assert [row["first_update"] for row in attempts] == [end * setup.updates_a_step for end in ends]
    assert {row["status"] for row in attempts} == {"finished"}
    assert run.bundle.updates(superseded=True).num_rows == run.bundle.updates().num_rows
    assert list(run.path.parent.glob("bundle*")) == [run.path]
    for end, each in zip(ends, run.runs, strict=True):
        said = [line.partition("unipo-hooks: ")[2] for line in each.output.splitlines() if "unipo-hooks: " in line]
        # Where it can be seen; where it goes on; what is there at the end.
        assert len(said) == 2 + (end > 0), said
        assert (f"from update {end * setup.updates_a_step}" in said[-2]) == (end > 0)
        assert f"unipo-hooks view {run.path}" in said[0] and f"are in {run.path}" in said[-1]


def test_every_row_of_every_step_is_captured_once_an_epoch_with_its_uid(run):
    setup, times = run.setup, Counter()
    for row in run.bundle.responses(update=EVERY).to_pylist():
        times[row["rollout"], row["row"]] += 1
    rows = setup.prompts * SAMPLES
    assert times == {(rollout, row): EPOCHS for rollout in range(setup.steps) for row in range(rows)}
    for rollout, (stored, theirs) in enumerate(zip(run.responses, run.rows, strict=True)):
        assert [row["row"] for row in stored] == list(range(rows)) == list(range(len(theirs)))
        assert [row["labels.uid"] for row in stored] == [row.uid for row in theirs]
        numbers = {uid: n for n, uid in enumerate(dict.fromkeys(row.uid for row in theirs))}
        assert [row["group"] for row in stored] == [numbers[row.uid] for row in theirs]
        assert [row["kept"] for row in stored] == [row["group"] in kept_of(run, rollout) for row in stored]
        assert [row["length"] for row in stored] == [len(row.tokens["responses"]) for row in theirs]
    print(f"{len(times)} rows, each {EPOCHS} times")


def test_what_a_rollout_fixes_is_the_drivers_bit_for_bit(run):
    compared, largest = Counter(), 0.0
    for rollout, theirs in enumerate(run.rows):
        for number, row in enumerate(theirs):
            stored = run.tokens.get((rollout, number))
            assert (stored is not None) == run.responses[rollout][number]["kept"]
            if stored is None:
                continue
            mask = row.tokens["response_mask"].astype(bool)
            assert stored["mask"].tolist() == mask.tolist()
            for name, channel in CHANNELS.items():
                assert (channel in stored) == (channel in ALWAYS | run.setup.has), name
                if channel in stored:
                    ours, value = stored[channel].to_numpy(), row.tokens[name].astype(np.float32)
                    largest = max(largest, np.abs(ours - value)[mask].max())
                    assert np.array_equal(ours[mask], value[mask]), (name, rollout, number)
                    compared[channel] += int(mask.sum())
    assert set(compared) == {*CHANNELS.values()} & (ALWAYS | run.setup.has)
    print(f"{dict(compared)} values: largest difference {largest}")


def test_what_a_tool_wrote_is_a_hole_in_the_mask_and_no_sampler_drew_it(run):
    holes, rows, counted = 0, 0, 0
    for (rollout, number), stored in run.tokens.items():
        row = run.rows[rollout][number]
        hole = row.tokens["response_mask"] == 0
        counted += int((~hole).sum())
        if not hole.any():
            continue
        assert stored["mask_reason"].tolist() == np.where(hole, OF_A_TOOL, 0).tolist()
        assert np.isnan(stored["rollout_log_probs"][hole]).all()
        assert (row.tokens["rollout_log_probs"][hole] == 0).all()
        assert np.array_equal(stored["old_log_probs"], row.tokens["old_log_probs"].astype(np.float32))
        assert (stored["old_log_probs"][hole] < 0).all()
        holes, rows = holes + int(hole.sum()), rows + 1
    print(f"{holes} tokens of a tool in {rows} of {len(run.tokens)} responses, beside {counted} of the policy")
    assert (holes > 0) == ("mask_reason" in run.setup.has)


def test_rewards_and_what_else_is_said_of_responses_are_the_drivers(run):
    assert run.bundle.manifest.reward_names == ["acc", "digits", "score"]
    for stored, theirs in zip(run.responses, run.rows, strict=True):
        assert [row["reward"] for row in stored] == [row.score for row in theirs]
        for n, name in enumerate(run.bundle.manifest.reward_names):
            values = [float(row.said[name]) for row in theirs]
            assert [row[f"reward_components.{n}"] for row in stored] == values
            assert len(set(values)) > 1 or name == "acc"
        assert [row["labels.data_source"] for row in stored] == [row.said["source"] for row in theirs]
        versions = [tuple(row[f"labels.{name}"] for name in VERSIONS) for row in stored]
        assert versions == [tuple(int(row.said[name]) for name in VERSIONS) for row in theirs]
        print(f"step {stored[0]['step']}: sampled with the weights of {set(versions)}")


def test_texts_are_the_tokenizers(run):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(assets().model)
    decoded = 0
    for rollout, theirs in enumerate(run.rows):
        for number, row in enumerate(theirs):
            kept, stored = run.responses[rollout][number], run.tokens.get((rollout, number))
            prompt = tokenizer.decode(row.prompt)
            assert kept["prompt"] == prompt
            (message,) = json.loads(kept["messages"])
            assert message["role"] == "user" and message["content"] in prompt
            if stored is not None:
                assert stored["ids"].tolist() == row.tokens["responses"].tolist()
                assert "".join(stored["strings"]) == tokenizer.decode(row.tokens["responses"])
                decoded += len(stored)
    print(f"{decoded} tokens")


def test_passes_hold_the_rows_log_probs_and_losses_of_the_workers(run):
    passed = dict(iter(run.bundle.responses(update=EVERY).to_pandas().groupby(["update", "micro_batch"])))
    frame = run.bundle.tokens(EVERY).to_pandas().sort_values("position", kind="stable")
    tokens = dict(iter(frame.groupby(["update", "micro_batch", "row"])))
    compared, padded, losses = 0, 0, 0.0
    for update, part, seen in run.passes:
        rollout = update["rollouts"][0]
        driver, theirs = run.rows[rollout], rows_of(seen.columns)
        padded += len(seen.columns["uid"]) - len(theirs)
        place = update["update"], part["micro_batch"]
        rows = passed[place]["row"].tolist() if place in passed else []
        assert part["rows"] == len(rows) == len(theirs)
        # A row's place in its pass says nothing: those that are kept come first.
        marks = {row: driver[row].mark for row in rows}
        assert Counter(marks.values()) == Counter(row.mark for row in theirs)
        kept = [row for row in rows if run.responses[rollout][row]["kept"]]
        uids = {driver[row].uid for row in kept}
        ours = [(*marks[row], tokens[*place, row]["log_probs"].to_numpy().tobytes()) for row in kept]
        given = [(*row.mark, row.tokens["log_probs"].tobytes()) for row in theirs if row.uid in uids]
        assert Counter(ours) == Counter(given)
        compared += sum(len(tokens[*place, row]) for row in kept)
        losses = max(losses, abs(part["loss"] - seen.loss))
        counted = sum(int(row.tokens["response_mask"].sum()) for row in theirs)
        assert (part["tokens"], part["counted_rows"]) == (counted, len(theirs))
        ranks = int(seen.columns["dp_size"])
        assert update["data_parallel_size"] == ranks == run.setup.ranks
        assert part["update_tokens"] * ranks == float(seen.columns["batch_num_tokens"])
        assert part["update_rows"] * ranks == float(seen.columns["global_batch_size"])
    print(f"{len(run.passes)} passes, {compared} log-probs: largest difference 0, of losses {losses}; {padded} padding")
    assert losses == 0
    assert (padded > 0) == (run.setup.prompts % 4 > 0)


def test_the_loss_follows_from_what_was_captured(run):
    shares = [abs(part["loss_gap"]) / part["loss_tolerance"] for _, part, _ in run.passes if part["rows"]]
    largest = max(abs(part["loss_gap"]) for _, part, _ in run.passes if part["rows"])
    print(f"{len(shares)} passes: largest gap {largest:.1e}, {max(shares):.1%} of the tolerance")
    assert max(shares) <= 1


def test_metrics_are_of_all_responses_kept_or_not(run):
    stored = {row["update"]: row for row in run.bundle.metrics().to_pylist()}
    worst: dict[str, float] = {}
    for number, row in stored.items():
        expected = metrics_of(run, number)
        for name, value in expected.items():
            error = abs(row[name] - value) / max(1e-3, abs(value))
            worst[name] = max(worst.get(name, 0.0), error)
    print({name: f"{error:.1e}" for name, error in worst.items()})
    assert max(worst.values()) < 1e-6
    norms = [row["grad_norm"] for row in stored.values()]
    assert len(set(norms)) == len(norms) and min(norms) > 0
    logged = [each for run_ in run.runs for each in run_.rows]
    for step, theirs in enumerate(logged):
        mine = [row for row in stored.values() if row["step"] == step + 1]
        assert np.mean([row["grad_norm"] for row in mine]) == pytest.approx(theirs["actor/grad_norm"], rel=1e-6)
        assert mine[-1]["critic/score/mean"] == pytest.approx(theirs["critic/score/mean"], rel=1e-8)


def metrics_of(run, number):
    """Metrics of an update, from what the witness saw alone."""
    passes = [(update, seen) for update, _, seen in run.passes if update["update"] == number]
    low, high = run.setup.clip
    ratios, clipped = [], []
    for _, seen in passes:
        for row in rows_of(seen.columns):
            mask = row.tokens["response_mask"].astype(bool)
            log_ratio = (row.tokens["log_probs"].astype(float) - row.tokens["old_log_probs"])[mask]
            ratio = np.exp(log_ratio.mean(keepdims=True) if run.setup.sequence else log_ratio)
            advantage = row.tokens["advantages"][mask]
            ratios.append(ratio)
            clipped.append(((ratio < low) & (advantage < 0)) | ((ratio > high) & (advantage > 0)))
    expected = {
        "importance_sampling_ratio": np.concatenate(ratios).mean(),
        "reward": np.mean([row.score for row in run.rows[passes[0][0]["rollouts"][0]]]),
        "total_loss": sum(seen.loss for _, seen in passes) / run.setup.ranks,
    }
    if not run.setup.sequence:
        expected["clip_fraction"] = np.concatenate(clipped).mean()
    if "entropies" not in run.setup.has:  # neither a bonus nor a penalty is in the loss
        expected["policy_loss"] = sum(seen.pg_loss for _, seen in passes) / run.setup.ranks
    return expected

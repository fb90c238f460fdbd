"""What is captured of verl's engine workers is what verl computed, in each supported release beside the newest."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("verl.trainer.ppo", reason="needs verl: make compat runs it")

import verl
from verl_cpu import witness
from verl_cpu.runs import main_ppo

from unipo_hooks import open_bundle
from unipo_hooks.bundle.verify import verify

pytestmark = pytest.mark.slow

ROWS, EPOCHS, STEPS = 32, 2, 2
FIXED = ("old_log_probs", "rollout_log_probs", "advantages")
"""Channels that are in the driver's batch under the same name."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(bundle, what the driver's batches and the workers' losses held) of two steps with two ranks."""
    folder = tmp_path_factory.mktemp("run")
    notes = folder / "notes"
    done = main_ppo(
        folder,
        f"+unipo.path={folder / 'bundle'}",
        ranks=2,
        steps=STEPS,
        modules=("verl_cpu.witness", "unipo_hooks.adapters.verl"),
        env={witness.FOLDER: str(notes)},
    )
    print(f"verl {verl.__version__}: {done.seconds:.0f} s")
    assert verify(folder / "bundle") == [], done.output[-3000:]
    return open_bundle(folder / "bundle"), witness.read(notes)


def padded_rows(table, channel, width):
    """(rows, width) of a channel, NaN behind the responses, in the order of rollouts and rows."""
    place = list(zip(table["rollout"].to_pylist(), table["row"].to_pylist(), strict=True))
    number = {each: n for n, each in enumerate(sorted(set(place)))}
    out = np.full((len(number), width), np.nan, np.float32)
    out[[number[each] for each in place], table["position"].to_numpy()] = table[channel].to_numpy()
    return out


def test_every_row_is_trained_on_once_an_epoch(run):
    bundle, seen = run
    responses = bundle.responses(update=range(10**6))
    times = {}
    for place in zip(responses["rollout"].to_pylist(), responses["row"].to_pylist(), strict=True):
        times[place] = times.get(place, 0) + 1
    assert times == {(rollout, row): EPOCHS for rollout in range(STEPS) for row in range(ROWS)}
    assert len(bundle.micro_batches(0)) == len([each for each in seen.passes if each.step == 1]) / (EPOCHS * 2)
    assert set(responses["rank"].to_pylist()) == {0}
    print(f"{len(times)} rows, each {EPOCHS} times")


def test_what_the_loss_takes_of_the_rollout_is_the_drivers_bit_for_bit(run):
    bundle, seen = run
    tokens = bundle.tokens()
    mask = np.concatenate([each.columns["response_mask"] for each in seen.updates]).astype(bool)
    for channel in FIXED:
        theirs = np.concatenate([each.columns[channel] for each in seen.updates])
        ours = padded_rows(tokens, channel, mask.shape[1])
        assert np.array_equal(ours[mask], theirs[mask].astype(np.float32)), channel
    print(f"{int(mask.sum())} tokens, channels {', '.join(FIXED)}: largest error 0")


def test_each_response_is_of_the_prompt_the_driver_says(run):
    bundle, seen = run
    groups = bundle.responses()["group"].to_numpy().reshape(STEPS, ROWS)
    for group_B, update in zip(groups, seen.updates, strict=True):
        uid_B = update.columns["uid"]
        assert np.array_equal(group_B[:, None] == group_B, uid_B[:, None] == uid_B)


def test_log_probs_and_losses_are_those_of_the_workers(run):
    bundle, seen = run
    tokens = bundle.tokens(range(10**6))
    ours = np.sort(tokens["log_probs"].to_numpy())
    theirs = [each.columns["log_probs"][each.columns["response_mask"].astype(bool)] for each in seen.passes]
    theirs = np.sort(np.concatenate(theirs).astype(np.float32))
    # Single turns: every token of a response is trained on.
    assert np.array_equal(ours, theirs)
    losses = [part["loss"] for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    assert sorted(losses) == pytest.approx(sorted(each.loss for each in seen.passes), abs=0)
    print(f"{len(ours)} log-probs, {len(losses)} losses: largest error 0")


def test_the_loss_follows_from_what_is_captured(run):
    bundle, _ = run
    parts = [part for row in bundle.updates().to_pylist() for part in row["micro_batches"]]
    assert all(part["loss_gap"] is not None for part in parts)
    gaps = [abs(part["loss_gap"]) / part["loss_tolerance"] for part in parts]
    largest = max(abs(part["loss_gap"]) for part in parts)
    assert max(gaps) <= 1
    print(f"largest gap: {largest:.1e}, {max(gaps):.1%} of the tolerance, of {len(gaps)} losses")


def test_every_update_has_its_own_norm_of_the_gradient(run):
    bundle, _ = run
    norms = bundle.metrics()["grad_norm"].to_pylist()
    assert len(norms) == STEPS * EPOCHS * 2
    assert len(set(norms)) == len(norms)
    assert all(norm > 0 for norm in norms)

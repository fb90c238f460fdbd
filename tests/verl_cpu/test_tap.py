"""Around verl's own loss: what was noted is what the loss was given, and nothing of it is felt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

from unipo_hooks.adapters.verl import worker as worker_module
from unipo_hooks.adapters.verl.batches import EVERYWHERE, PROMPTS, RETURNS, ROW, TOKENS, batch_of
from unipo_hooks.adapters.verl.settings import estimator_of
from unipo_hooks.adapters.verl.translate import captured_rollout, groups_of
from unipo_hooks.adapters.verl.worker import Capture, Tap, capturing
from unipo_hooks.metrics import token_sums
from unipo_hooks.reconcile import gap_of
from unipo_hooks.record import CapturedUpdate
from verl_cpu.pieces import Worker, as_queued, as_trained, composed, info, proto

ACTOR = "actor_rollout_ref.actor."
GRPO = "algorithm.adv_estimator=grpo"
ENTROPY, KL = (f"{ACTOR}entropy_coeff=0.01",), (f"{ACTOR}use_kl_loss=True", f"{ACTOR}kl_loss_coef=0.1")
WAYS = {"V0": as_trained, "V1": as_queued}


def tapped(*overrides, **more):
    """A worker with a tap around it."""
    worker = Worker(*overrides, **more)
    coefficient = float(composed(*overrides).actor_rollout_ref.actor.entropy_coeff)
    return worker, Tap(worker, info(*overrides), coefficient)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other take longer over a few numbers than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def given_to_the_loss(monkeypatch):
    """Everything verl's vanilla loss is called with, call by call."""
    calls, original = [], core_algos.POLICY_LOSS_REGISTRY["vanilla"]

    def noting(**values):
        names = ("log_prob", "old_log_prob", "advantages", "response_mask")
        calls.append({name: values[name].detach().clone() for name in names})
        calls[-1] |= {"info": dict(values["config"].global_batch_info)}
        return original(**values)

    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "vanilla", noting)
    return calls


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_noted_is_bit_for_bit_what_the_loss_had(given_to_the_loss, way, dynamic, ranks):
    batch = proto(8, seed=2)
    lengths = batch.batch["attention_mask"][:, -7:].sum(1)
    batch_of(batch).mark(None)
    worker, tap = tapped(GRPO, *ENTROPY, dynamic=dynamic, rank=ranks - 1, ranks=ranks)
    entropies, returned, loss_fn = [], [], worker.loss_fn

    def watched(**values):
        entropies.append(no_padding_2_padding(values["model_output"]["entropy"], values["data"]).detach().clone())
        returned.append(loss_fn(**values))
        return returned[-1]

    worker.loss_fn = watched
    worker.train_batch(WAYS[way](batch))
    [(rate, norm, passes)] = tap.drain(compare=True).steps
    assert rate == 0.25 and norm == pytest.approx(float(worker.engine.table.grad.norm()))
    assert len(passes) == len(given_to_the_loss) >= 2
    for each, had, entropy, (loss, metrics) in zip(passes, given_to_the_loss, entropies, returned, strict=True):
        width = each.channels["log_probs"].shape[1]
        assert width == lengths[each.rows_b].max()
        for place, row in enumerate(each.rows_b):
            n = lengths[row]
            for channel, values in (("log_probs", had["log_prob"]), ("entropies", entropy)):
                assert np.array_equal(each.channels[channel][place, :n], values[place, :n].numpy())
                assert np.isnan(each.channels[channel][place, n:]).all()
            assert torch.equal(had["old_log_prob"][place, :n], batch.batch["old_log_probs"][row, :n])
        assert each.loss == loss.item()
        assert each.entropy_coef == 0.01
        assert each.entropy_bonus == metrics["actor/entropy_loss"].values[-1]
        assert each.policy_loss == pytest.approx(metrics["actor/pg_loss"].values[-1], abs=1e-6)
        assert each.update_tokens == had["info"]["batch_num_tokens"] / ranks
        assert each.update_rows == had["info"]["global_batch_size"] / ranks
        assert (each.rank, each.dtype, each.left_behind) == (ranks - 1, "float32", None)
    rows = np.concatenate([each.rows_b for each in passes])
    assert sorted(rows) == list(range(8))


def test_half_precision_is_named_and_kept_exactly():
    batch = proto(4, seed=3)
    batch_of(batch).mark(None)
    worker, tap = tapped(GRPO, dtype=torch.bfloat16)
    worker.train_batch(as_trained(batch))
    [each] = tap.drain(compare=True).steps[0][2]
    values = each.channels["log_probs"][np.isfinite(each.channels["log_probs"])]
    assert each.dtype == "bfloat16" and values.dtype == np.float32
    assert np.array_equal(torch.as_tensor(values).bfloat16().float().numpy(), values)


def test_rows_of_padding_are_left_out_and_a_pass_of_padding_alone_has_none():
    batch = proto(8, seed=5)
    batch.batch[ROW] = torch.tensor([-1, 0, -1, 1, -1, -1, -1, -1])
    worker, tap = tapped(GRPO)
    worker.train_batch(as_trained(batch))
    first, second = tap.drain(compare=True).steps[0][2]
    assert first.rows_b.tolist() == [0, 1] and first.channels["log_probs"].shape[0] == 2
    assert second.rows_b.shape == (0,) and second.channels["log_probs"].shape[0] == 0


def test_steps_are_kept_apart_and_given_away_once():
    batch = proto(8, seed=6)
    batch_of(batch).mark(None)
    worker, tap = tapped(GRPO)
    data = as_trained(batch)
    for half in tu.chunk_tensordict(data, 2):
        worker.train_batch(half)
    drained = tap.drain(compare=True)
    assert [[each.rows_b.tolist() for each in passes] for _, _, passes in drained.steps] == [
        [[0, 1, 2, 3]],
        [[4, 5, 6, 7]],
    ]
    assert drained.failure is None and drained.data_parallel_size == 1 and drained.seconds > 0
    assert tap.drain(compare=True).steps == []
    print(f"{1e3 * drained.seconds:.2f} ms for two passes and their records")


def test_only_passes_of_an_update_are_noted():
    batch = proto(4, seed=7)
    worker, tap = tapped(GRPO)
    worker.train_batch(as_trained(batch))  # not marked
    batch_of(batch).mark(None)
    data = as_trained(batch)
    tu.assign_non_tensor(data, batch_num_tokens=5, dp_size=1)
    with torch.no_grad():
        loss, _ = worker.loss_fn(model_output=worker.engine(data), data=data, dp_group=None)
    assert torch.isfinite(loss)
    assert tap.drain(compare=True).steps == []


def test_calls_of_another_kind_pass_through():
    """verl gives the same function to its engine to make log-probs of a distillation's logits."""
    seen = []

    def loss_fn(*args, **kwargs):
        seen.append((args, kwargs))
        return "what it returns"

    worker = Worker(GRPO)
    worker.loss_fn = loss_fn
    tap = Tap(worker, info(GRPO), 0.0)
    assert worker.loss_fn(1, student_logits=2) == "what it returns"
    assert worker.loss_fn("model_output", "data") == "what it returns"
    assert seen == [((1,), {"student_logits": 2}), (("model_output", "data"), {})]
    drained = tap.drain(compare=True)
    assert drained.steps == [] and drained.failure is None


def broken(*_, **__):
    raise RuntimeError("out of pinned memory")


@pytest.mark.parametrize("where", ["the copy", "the record"])
def test_what_goes_wrong_with_us_never_reaches_training_and_is_told(monkeypatch, caplog, where):
    batch = proto(8, seed=8)
    batch_of(batch).mark(None)
    alone = Worker(GRPO)
    expected = alone.train_batch(as_trained(batch))
    worker, tap = tapped(GRPO, rank=1, ranks=1)
    if where == "the copy":
        tap._copy = broken
    else:
        monkeypatch.setattr(worker_module, "micro_batch", broken)
    output = worker.train_batch(as_trained(batch))
    assert tu.get(output, "metrics") == tu.get(expected, "metrics")
    drained = tap.drain(compare=True)
    assert drained.failure == "RuntimeError: out of pinned memory"
    assert [record.name for record in caplog.records] == ["unipo_hooks"]
    assert "data-parallel rank 1: capture is off" in caplog.text
    worker.train_batch(as_trained(batch))
    assert tap.drain(compare=True).failure == drained.failure and len(caplog.records) == 1


def test_an_error_of_verls_own_is_raised_as_it_was():
    batch = proto(4, seed=9)
    batch_of(batch).mark(None)
    worker, tap = tapped(GRPO)
    data = as_trained(batch)
    data.pop("advantages")
    with pytest.raises(KeyError, match="advantages"):
        worker.train_batch(data)
    assert tap.drain(compare=True).failure is None


@pytest.mark.parametrize("way", WAYS)
def test_training_is_the_same_to_the_bit(way):
    batch = proto(8, seed=10)
    plain, (worker, tap) = Worker(GRPO, *ENTROPY, *KL, dynamic=True), tapped(GRPO, *ENTROPY, *KL, dynamic=True)
    expected = [tu.get(plain.train_batch(WAYS[way](batch)), "metrics") for _ in range(3)]
    batch_of(batch).mark(np.arange(8) % 2 == 0)
    found = [tu.get(worker.train_batch(WAYS[way](batch)), "metrics") for _ in range(3)]
    assert found == expected
    assert torch.equal(worker.engine.table, plain.engine.table)
    assert len(tap.drain(compare=True).steps) == 3


def test_only_ranks_that_hold_outputs_note():
    class Base:
        def __init__(self, *, holds):
            self.actor = Worker(GRPO, holds=holds)
            self.config = composed(GRPO).actor_rollout_ref

    cls = capturing(Base)
    assert issubclass(cls, Capture) and issubclass(cls, Base) and cls.__name__ == "CapturingBase"
    for holds in (True, False):
        worker = cls(holds=holds)
        assert worker.unipo_drain(True) is None
        worker.unipo_begin(info(GRPO))
        worker.unipo_begin(info(GRPO))  # a second time changes nothing
        assert (worker.unipo_drain(True) is not None) == holds


# --- rows that are left behind ---

LOSSES = {
    "vanilla": (),
    "gspo": (f"{ACTOR}policy_loss.loss_mode=gspo", f"{ACTOR}loss_agg_mode=seq-mean-token-mean"),
    "cispo": (f"{ACTOR}policy_loss.loss_mode=cispo",),
    "dr_grpo": (f"{ACTOR}loss_agg_mode=seq-mean-token-sum-norm", f"{ACTOR}loss_scale_factor=5"),
    "dr_grpo, no factor": (f"{ACTOR}loss_agg_mode=seq-mean-token-sum-norm",),
    "gae": ("algorithm.adv_estimator=gae",),
}
ERRORS: dict[str, tuple[float, float]] = {}


def padded_to(way, batch):
    """The width a loss divides by that is given no factor: of V1 that of each pass."""
    return None if way == "V1" else batch_of(batch).width


def driver_record(batch, run_overrides, handed_over):
    """The rollout as the driver hands it over."""
    found, config = batch_of(batch), composed(*run_overrides)
    everywhere = found.read(None, (*EVERYWHERE, *TOKENS, RETURNS, PROMPTS))
    group_B = groups_of(found.uids)
    return captured_rollout(
        everywhere,
        everywhere,
        np.arange(len(group_B)),
        rollout=0,
        step=1,
        group_B=group_B,
        handed_over=handed_over,
        labels=found.labels(),
        uids=found.uids,
        reward_names=(),
        estimator=estimator_of(config),
        rejects=False,
    )


def sums_close(found, expected):
    assert set(found) == set(expected)
    worst = 0.0
    for name, values in expected.items():
        scale = max(1.0, *map(abs, values))
        worst = max(worst, *(abs(a - b) / scale for a, b in zip(found[name], values, strict=True)))
    return worst


@pytest.mark.parametrize("name", LOSSES)
@examples(max_examples=10)
@given(
    seed=st.integers(0, 2**32),
    keep=st.lists(st.booleans(), min_size=8, max_size=8),
    padding=st.sets(st.integers(0, 7), max_size=3),
    way=st.sampled_from(list(WAYS)),
    terms=st.sampled_from([(), ENTROPY, KL, (*ENTROPY, *KL)]),
    dynamic=st.booleans(),
)
def test_what_is_kept_and_what_is_left_behind_are_the_whole_pass(name, seed, keep, padding, way, terms, dynamic):
    overrides = (GRPO, *LOSSES[name], *terms)
    batch = proto(8, seed=seed, estimator=estimator_of(composed(*overrides)))
    if way == "V1":  # only its trainer pads
        batch.batch["response_mask"][sorted(padding)] = 0
    rollout, run = driver_record(batch, overrides, None), info(*overrides)
    passes = {}
    for sampled in (False, True):
        worker, tap = tapped(*overrides, dynamic=dynamic)
        batch_of(batch).mark(np.array(keep) if sampled else None)
        if way == "V1":
            batch.batch[ROW][sorted(padding)] = -1
        worker.train_batch(WAYS[way](batch))
        drained = tap.drain(compare=True)
        assert drained.failure is None
        passes[sampled] = drained.steps[0][2]
        batch_of(batch).unmark()
    update = CapturedUpdate(
        kind="train",
        update=0,
        step=1,
        micro_batches=[],
        is_first_step_after_rollout_phase=True,
        length_constant=composed(*overrides).actor_rollout_ref.actor.loss_scale_factor or padded_to(way, batch),
    )
    for whole, part in zip(passes[False], passes[True], strict=True):
        left = part.left_behind
        assert sorted(part.all_rows_b) == sorted(whole.rows_b)
        assert all(keep[row] for row in part.rows_b) and not any(keep[row] for row in left.rows_b)
        assert left.width == whole.channels["log_probs"].shape[1]
        assert (part.loss, part.entropy_bonus, part.update_tokens) == (
            *(whole.loss, whole.entropy_bonus, whole.update_tokens),
        )
        places = [whole.rows_b.tolist().index(row) for row in part.rows_b]
        for channel, values in part.channels.items():
            assert np.array_equal(values, whole.channels[channel][places], equal_nan=True)
        expected = token_sums(whole, rollout, run)
        both = token_sums(part, rollout, run)
        both = {key: tuple(map(sum, zip(both[key], left.sums[key], strict=True))) for key in both}
        error = sums_close(both, expected)
        gap = gap_of(run.algorithm, whole, rollout, update)
        assert left.gap is not None
        assert not math.isnan(left.gap[0]) and left.gap[0] == pytest.approx(gap.loss, abs=1e-12)
        assert left.gap[1] == pytest.approx(gap.tolerance)
        assert abs(gap.loss) <= gap.tolerance, (gap, name)
        key = f"{name}: sums, gap of the loss in units of its tolerance"
        before = ERRORS.get(key, (0.0, 0.0))
        ERRORS[key] = (max(before[0], error), max(before[1], abs(gap.loss) / gap.tolerance))
        assert error < 1e-12


@pytest.fixture(scope="module", autouse=True)
def largest_errors():
    yield
    for name, (sums, gap) in ERRORS.items():
        print(f"{name}: {sums:.1e}, {gap:.1e}")

"""The loss recomputed from a captured micro-batch is compared with the trainer's, and a difference is said."""

import dataclasses
import logging

import numpy as np
import pytest
from records import handing_over, rollout, run_info, update, without

from unipo_hooks import CapturePolicy, Recorder, algorithms, evaluate, open_bundle
from unipo_hooks.adapters.verl.algorithm import LOSSES, spec_from_verl
from unipo_hooks.cli.summary import reconciled
from unipo_hooks.objective.describe import with_hyper_parameters
from unipo_hooks.objective.recorded import as_recorded, batch_of
from unipo_hooks.reconcile import TOLERANCES, gap_of

SPEC = with_hyper_parameters(algorithms.get("grpo"), {"beta": 0.0}).model_copy(update={"id": "tested"})


def with_losses(of, number=0, *, error=0.0, **changes):
    """An update whose micro-batches report the loss their own tokens come to, plus an error."""
    made = update(number, of, **changes)
    parts = []
    for part in made.micro_batches:
        batch = batch_of(part, of, made)
        evaluation = evaluate(as_recorded(SPEC, batch.arrays), batch)
        token_loss = np.asarray(-evaluation.token_objective, np.float32)
        parts.append(dataclasses.replace(part, loss=evaluation.loss + error, token_loss_bT=token_loss))
    return dataclasses.replace(made, micro_batches=parts)


def test_the_gap_is_what_the_trainer_returned_more(caplog):
    of = rollout()
    right, wrong = with_losses(of), with_losses(of, error=1e-3)
    gap = gap_of(SPEC, right.micro_batches[0], of, right)
    assert abs(gap.loss) < 1e-15 and not gap.above
    assert gap.token < 1e-7
    gap = gap_of(SPEC, wrong.micro_batches[0], of, wrong)
    assert gap.loss == pytest.approx(-1e-3) and gap.above


def test_bonus_and_router_loss_are_accounted_for():
    of = rollout()
    made = with_losses(of)
    part = made.micro_batches[0]
    changed = dataclasses.replace(
        part, loss=part.loss - 0.01 * 2.5 + 0.125, entropy_coef=0.01, entropy_bonus=2.5, router_loss=0.125
    )
    assert abs(gap_of(SPEC, changed, of, made).loss) < 1e-15


def test_a_loss_that_is_not_a_number_is_a_gap():
    of = rollout()
    made = with_losses(of, error=float("nan"))
    assert gap_of(SPEC, made.micro_batches[0], of, made).above


def test_an_unknown_loss_has_no_gap():
    of = rollout()
    made = update(0, of)
    part = dataclasses.replace(made.micro_batches[0], loss=None)
    assert gap_of(SPEC, part, of, made) is None


@pytest.mark.parametrize(("dtype", "above"), [("float32", True), ("bfloat16", False), ("something new", False)])
def test_half_precision_is_given_its_rounding(dtype, above):
    of = rollout()
    made = with_losses(of, error=1e-3)
    part = dataclasses.replace(made.micro_batches[0], dtype=dtype)
    assert gap_of(SPEC, part, of, made).above is above
    assert TOLERANCES["float32"] == 1e-6


def recorded(path, updates, of, **changes):
    recorder = Recorder(path, run_info(algorithm=SPEC, **changes))
    recorder.rollout(of)
    for each in updates:
        recorder.update(each)
    recorder.close()
    return open_bundle(recorder.path)


def test_gaps_are_stored_with_the_update_and_in_the_metrics(tmp_path, caplog):
    of = rollout()
    bundle = recorded(tmp_path / "run", [with_losses(of, n, micro_batches=2) for n in range(3)], of)
    for row in bundle.updates().to_pylist():
        assert [abs(part["loss_gap"]) < 1e-12 for part in row["micro_batches"]] == [True, True]
        assert all(part["loss_tolerance"] >= 1e-6 and part["token_gap"] < 1e-7 for part in row["micro_batches"])
    assert max(bundle.metrics().column("loss_gap").to_pylist()) < 1e-12
    assert bundle.manifest.algorithm["id"] == "tested"
    assert not caplog.records


def test_a_gap_above_tolerance_is_said_once_with_its_likely_cause(tmp_path, caplog):
    of = rollout()
    with caplog.at_level(logging.WARNING):
        bundle = recorded(
            tmp_path / "run",
            [with_losses(of, n, error=0.5) for n in range(3)],
            of,
            algorithm_notes=("loss_type 'new' is not known",),
        )
    assert len(caplog.records) == 1
    assert "5.0e-01 away" in caplog.text and "loss_type 'new' is not known" in caplog.text
    assert bundle.metrics().column("loss_gap").to_pylist() == pytest.approx([0.5] * 3)
    assert len(bundle.updates()) == 3


def test_a_loss_that_cannot_be_recomputed_costs_the_comparison_and_nothing_else(tmp_path, caplog):
    of = rollout()
    without = dataclasses.replace(of, channels={"old_log_probs": of.channels["old_log_probs"]})
    with caplog.at_level(logging.WARNING):
        bundle = recorded(tmp_path / "run", [update(n, without) for n in range(3)], without)
    assert len(caplog.records) == 1 and "needs advantages" in caplog.text
    assert len(bundle.updates()) == 3
    assert "loss_gap" not in bundle.metrics().column_names
    assert "needs advantages" in bundle.manifest.algorithm_notes[0]


def test_comparisons_are_left_out_and_counted_where_the_queue_fills_up(tmp_path):
    of = rollout()
    recorder = Recorder(tmp_path / "run", run_info(algorithm=SPEC))
    recorder._session._hurried = lambda: True
    recorder.rollout(of)
    recorder.update(with_losses(of))
    recorder.close()
    bundle = open_bundle(recorder.path)
    assert bundle.manifest.lost.reconciliations == 1
    assert len(bundle.updates()) == 1 and bundle.updates().to_pylist()[0]["micro_batches"][0]["loss_gap"] is None


def test_batches_of_a_bundle_give_the_losses_of_the_run(tmp_path):
    of = rollout()
    made = with_losses(of, micro_batches=2)
    bundle = recorded(tmp_path / "run", [made], of)
    parts = bundle.micro_batches(0)
    assert [part.whole for part in parts] == [True, True]
    worst = max(abs(evaluate(as_recorded(SPEC, p.batch.arrays), p.batch).loss - p.loss) for p in parts)
    print(f"largest error of the loss {worst:.1e}")
    assert worst < 1e-6


def cubed(batch, advantages, ratio, bounds, *, power=3.0):
    """A · ratio^power."""
    from unipo_hooks.objective.parts.types import Gate

    objective = advantages * ratio.value**power
    return Gate(objective, d_log_ratio=power * objective)


def test_what_a_part_of_the_users_own_computes_is_stored_and_no_code_is(tmp_path):
    algorithms.register_part("gate", cubed)
    spec = algorithms.register(
        {
            "id": "cubed_ratio",
            "name": "Cubed",
            "parts": {"gate": {"part": "cubed"}, "aggregation": {"part": "token_mean"}},
        }
    )
    of = rollout()
    recorder = Recorder(tmp_path / "run", run_info(algorithm=spec, algorithms=(spec,)))
    recorder.rollout(of)
    recorder.update(update(0, of))
    recorder.close()
    bundle = open_bundle(recorder.path)
    assert bundle.manifest.algorithms[0]["parts"]["gate"] == {"part": "cubed"}
    assert "cubed(batch" not in "".join(p.read_text() for p in recorder.path.glob("*.json*"))
    part = bundle.micro_batches(0)[0]
    evaluation = evaluate(as_recorded(spec, part.batch.arrays), part.batch)
    tokens = bundle.tokens(0)
    for name in ("token_objective", "gradient_weight"):
        assert name in bundle.manifest.channels
        stored = tokens[name].to_numpy()
        mine = getattr(evaluation, name)[np.arange(evaluation.mask.shape[1]) < part.length_B[:, None]]
        assert np.sort(stored[np.isfinite(stored)]) == pytest.approx(np.sort(mine), abs=1e-6), name


def test_a_gap_that_is_not_a_number_is_counted_and_breaks_nothing(tmp_path, caplog):
    of = rollout()
    updates = [with_losses(of, 0), with_losses(of, 1, error=float("nan"))]
    with caplog.at_level(logging.WARNING):
        bundle = recorded(tmp_path / "run", updates, of)
    assert len(caplog.records) == 1
    found = reconciled(bundle.updates())
    assert found["compared"] == 2 and found["above_tolerance"] == found["not_a_number"] == 1
    gaps = bundle.metrics().column("loss_gap").to_pylist()
    assert gaps[0] < 1e-12 and gaps[1] is None


def breaks(batch, advantages, ratio, bounds):
    """Divides by zero."""
    raise ZeroDivisionError("division by zero")


def test_a_defect_in_the_users_own_part_costs_the_comparison_and_nothing_else(tmp_path, caplog):
    algorithms.register_part("gate", breaks)
    spec = algorithms.register(
        {"id": "breaks", "name": "Breaks", "parts": {"gate": {"part": "breaks"}, "aggregation": {"part": "token_mean"}}}
    )
    of = rollout()
    recorder = Recorder(tmp_path / "run", run_info(algorithm=spec))
    recorder.rollout(of)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            recorder.update(update(number, of))
        recorder.close()
    bundle = open_bundle(recorder.path)
    assert len(bundle.updates()) == 3 and not bundle.manifest.lost.updates
    assert "ZeroDivisionError" in bundle.manifest.algorithm_notes[0]
    assert len(caplog.records) == 1


def test_a_local_of_the_trainer_that_is_no_token_loss_is_not_compared():
    of = rollout()
    made = with_losses(of)
    part = dataclasses.replace(made.micro_batches[0], token_loss_bT=np.zeros(5, np.float32))
    assert gap_of(SPEC, part, of, made).token is None


def first_only(batch, advantages, ratio):
    """Only a response's first token."""
    from unipo_hooks.objective.parts.types import Mask

    return Mask(np.cumsum(batch.mask_BT, axis=1) == 1, False)


@pytest.mark.parametrize("channels", [(), ("policy_mask",)])
def test_a_mask_nothing_was_recorded_of_is_computed(channels):
    algorithms.register_part("mask", first_only)
    masks = [{"part": "first_only"}, {"part": "high_entropy"}, {"part": "truncated_responses"}]
    spec = algorithms.get({**SPEC.model_dump(), "parts": {**SPEC.parts.model_dump(), "mask": masks}})
    kept = [use.part for use in as_recorded(spec, channels).parts.mask]
    assert kept == (["recorded_mask", "first_only"] if channels else ["first_only", "high_entropy"])


@pytest.mark.parametrize(("over", "kept"), [("mask", ["recorded_mask"]), ("policy_mask", [])])
def test_the_recorded_mask_is_left_out_where_the_ratio_takes_it(over, kept):
    spec = with_hyper_parameters(algorithms.get("gmpo.trl"), {"over": over})
    assert [use.part for use in as_recorded(spec, ("policy_mask",)).parts.mask] == kept


def test_the_trainers_sampler_weights_take_the_place_of_computed_ones_alone():
    weights = [{"part": "indecision"}, {"part": "truncated"}]
    spec = algorithms.get({**SPEC.model_dump(), "parts": {**SPEC.parts.model_dump(), "weight": weights}})
    assert [use.part for use in as_recorded(spec, ("is_weights",)).parts.weight] == ["indecision", "recorded_weight"]
    assert [use.part for use in as_recorded(spec, ()).parts.weight] == ["indecision", "truncated"]


def test_every_attempt_keeps_the_algorithm_it_ran(tmp_path):
    other = with_hyper_parameters(SPEC, {"epsilon_high": 0.5})
    for number, spec in enumerate((SPEC, other)):
        run = run_info(
            algorithm=spec, algorithm_notes=(f"note {number}",), first_update=number, reward_weights=(1, number)
        )
        recorder = Recorder(tmp_path / "run", run)
        of = rollout(number)
        recorder.rollout(of)
        recorder.update(update(number, of))
        recorder.close()
    manifest = open_bundle(tmp_path / "run").manifest
    assert [algorithms.get(attempt.algorithm) for attempt in manifest.attempts] == [SPEC, other]
    assert [attempt.algorithm_notes for attempt in manifest.attempts] == [["note 0"], ["note 1"]]
    assert [attempt.reward_weights for attempt in manifest.attempts] == [[1, 0], [1, 1]]
    assert algorithms.get(manifest.algorithm) == other


@pytest.mark.parametrize("name", ["rloo_trl", "gmpo.trl", "grpo"])
def test_a_mean_over_responses_counts_those_without_a_token_as_trl_does(name):
    of = rollout()
    of.mask_BT[2] = of.mask_BT[5] = False
    spec, made = SPEC if name == "grpo" else algorithms.get(name), update(0, of)
    (part,) = made.micro_batches
    batch = batch_of(part, of, made)
    loss = evaluate(as_recorded(spec, batch.arrays), batch).loss
    constant = -of.channels["advantages"][[2, 5]].astype(float).sum() / len(of.group_B)
    gap = gap_of(spec, dataclasses.replace(part, loss=loss + (0.0 if name == "grpo" else constant)), of, made)
    assert abs(constant) > 0.01
    assert abs(gap.loss) < 1e-12


def test_sums_over_a_long_response_are_rounded_and_that_is_no_gap():
    """As RLOOTrainer of TRL 1.16.0 computes it, in float32; responses of 2,000 tokens."""
    random, shape = np.random.default_rng(0), (8, 2000)
    old = -random.exponential(2.0, shape).astype(np.float32)
    now = old + random.normal(0, 0.003, shape).astype(np.float32)
    advantages = random.normal(size=8).astype(np.float32)
    of = rollout(
        rows=8,
        ids_BT=np.ones(shape, np.int64),
        length_B=np.full(8, shape[1]),
        mask_BT=np.ones(shape, bool),
        channels={"old_log_probs": old, "advantages": advantages},
    )
    (part,) = update(0, rollout(rows=8)).micro_batches
    part = dataclasses.replace(part, rows_b=np.arange(8), channels={"log_probs": now}, token_loss_bT=None)
    ratio = np.exp(now.sum(1) - old.sum(1))
    loss = -np.minimum(ratio * advantages, np.clip(ratio, np.float32(0.8), np.float32(1.2)) * advantages).mean()
    part = dataclasses.replace(part, loss=float(loss))
    gap = gap_of(algorithms.get("rloo_trl"), part, of, update(0, of))
    print(f"gap {gap.loss:.1e}, tolerance {gap.tolerance:.1e}")
    assert abs(gap.loss) > TOLERANCES["float32"]
    assert not gap.above
    assert gap.tolerance < 0.01


def test_what_a_part_of_the_users_own_computes_is_the_same_where_rows_were_left_behind(tmp_path):
    algorithms.register_part("gate", cubed)
    parts = {"gate": {"part": "cubed"}, "aggregation": {"part": "token_mean"}}
    spec = algorithms.register({"id": "cubed_ratio", "name": "Cubed", "parts": parts}, replace=True)
    of, run = rollout(rows=16), run_info(algorithm=spec)
    whole = update(0, of, micro_batches=2)
    found = []
    for name, given, made in (
        ("whole", of, whole),
        ("part", without(of, (1,)), handing_over(whole, of, (1,), run, spec)),
    ):
        recorder = Recorder(tmp_path / name, run, strict=True)
        recorder.rollout(given)
        recorder.update(made)
        recorder.close()
        tokens = open_bundle(recorder.path).tokens(0, group=1)
        order = [("row", "ascending"), ("position", "ascending")]
        found.append(tokens.sort_by(order).select(["row", "position", "token_objective", "gradient_weight"]))
    assert found[0].num_rows and found[0] == found[1]


def test_why_workers_could_not_recompute_a_loss_is_noted_once_and_capture_goes_on(tmp_path, caplog):
    of = rollout(rows=16)
    why = "the KL penalty needs ref_log_probs (the reference policy's): have the trainer compute them"
    recorder = Recorder(tmp_path / "run", run_info(algorithm=SPEC), CapturePolicy(max_groups=2), strict=True)
    recorder.rollout(without(of, (1, 2)))
    for number in range(3):
        made = handing_over(update(number, of, micro_batches=2), of, (1, 2), run_info())
        parts = [
            dataclasses.replace(part, left_behind=dataclasses.replace(part.left_behind, no_gap=why))
            for part in made.micro_batches
        ]
        recorder.update(dataclasses.replace(made, micro_batches=parts))
    recorder.close()
    bundle = open_bundle(recorder.path)
    assert bundle.manifest.algorithm_notes == [f"the loss cannot be recomputed: {why}"]
    assert caplog.messages == [f"unipo-hooks: the loss cannot be recomputed: {why}"]
    assert len(bundle.updates()) == 3 and bundle.tokens(2).num_rows
    assert "loss_gap" not in bundle.metrics().column_names


def as_verl(of):
    """A rollout with what every verl run has: advantages a token, and NaN where a token does not count."""
    random = np.random.default_rng(3)
    own = {name: random.normal(size=of.mask_BT.shape) for name in ("advantages", "returns", "rewards")}
    channels = {name: np.where(of.mask_BT, values, np.nan).astype(np.float32) for name, values in own.items()}
    return dataclasses.replace(of, channels={"old_log_probs": of.channels["old_log_probs"], **channels})


ESTIMATORS = [
    *("gae", "grpo", "gdpo", "grpo_passk", "rloo", "opo", "remax", "gpg", "reinforce_plus_plus"),
    *("reinforce_plus_plus_baseline", "optimal_token_baseline", "tir_optimal_token_baseline", "somebody's_own"),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss not in ("clip_cov", "bypass_mode")])
def test_advantages_are_taken_as_recorded_whatever_they_were_made_of(estimator, loss):
    """A greedy reward, Σπ² or a critic's values are not in every bundle, and no loss of verl needs them."""
    actor = {"policy_loss": {"loss_mode": loss, "dro_beta": 0.5}}
    algorithm = {"adv_estimator": estimator, "use_kl_in_reward": True}
    spec = spec_from_verl({"algorithm": algorithm, "actor_rollout_ref": {"actor": actor}}, "0.9.1").spec
    of = as_verl(rollout())
    made = update(0, of, micro_batches=2)
    parts = []
    for part in made.micro_batches:
        batch = batch_of(part, of, made)
        loss = evaluate(as_recorded(spec, batch.arrays), batch).loss
        parts.append(dataclasses.replace(part, loss=loss))
    for part in parts:
        assert gap_of(spec, part, of, made).loss == 0.0


def test_a_recorded_weight_is_taken_at_the_level_it_was_used_at():
    correction = {"rollout_correction": {"rollout_is": "token"}}
    actor = {"policy_loss": {"loss_mode": "geo_mean"}}
    config = {
        "algorithm": {"adv_estimator": "grpo", **correction},
        "actor_rollout_ref": {"actor": actor, "rollout": {"calculate_log_probs": True}},
    }
    spec = spec_from_verl(config, "0.9.1").spec
    (use,) = as_recorded(spec, {"is_weights", "advantages"}).parts.weight
    assert use.model_dump() == {"part": "recorded_weight", "level": "sequence_mean"}
    (use,) = as_recorded(algorithms.get("mis.trl"), {"is_weights"}).parts.weight
    assert use.part == "recorded_weight"


def test_a_response_without_a_token_adds_nothing_where_advantages_are_of_tokens():
    """Of no token the mean is 0; with one advantage a response TRL adds it as a constant."""
    of = as_verl(rollout())
    of.mask_BT[3] = False
    spec = algorithms.get("gmpo.verl")
    made = update(0, of)
    (part,) = made.micro_batches
    batch = batch_of(part, of, made)
    loss = evaluate(as_recorded(spec, batch.arrays), batch).loss
    assert gap_of(spec, dataclasses.replace(part, loss=loss), of, made).loss == 0.0

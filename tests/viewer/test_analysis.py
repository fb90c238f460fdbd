"""What the viewer makes of a captured update, token by token, is what Python makes of it: the run's own and others.

The viewer's modules run in Node, on bundles of real training runs. The reference computes what-if advantages on whole
rollouts with Python's engine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from records import handing_over, rollout, run_info, update, without
from viewer.analysing import NO_KL, SPEC, WhatIfs, asked, compared, question, recorded_run
from viewer.pages import SMOLLM2

from unipo_hooks import CapturePolicy, Recorder, algorithms, evaluate
from unipo_hooks.objective.recorded import as_recorded, batch_of

WHAT_IFS: WhatIfs = [
    ("grpo", NO_KL),
    ("grpo", {**NO_KL, "bounds.epsilon_low": 0.01, "bounds.epsilon_high": 0.005, "scale.0.eps": 0.5}),
    ("dapo", {}),
    ("dr_grpo", {}),
    ("dr_grpo", {"aggregation.length": 7.0}),
    ("gspo", {}),
    ("cispo", {"bounds.ratio_high": 1.01}),
    ("reinforce", {}),
    ("rloo_verl", {}),
    ("opo", {}),
    ("maxrl", {}),
    ("lite_ppo", {}),
    ("gdpo", {}),
    ("gmpo.trl", {}),
    ("sapo_soft", {}),
    ("delta_clip", {}),
    ("gtpo_conflict", {}),
    ("grpo_passk", {}),
    (None, {"bounds.epsilon_low": 0.002, "bounds.epsilon_high": 0.004}),
    (None, {"gate.dual_clip": 1.5}),
    ("d3s", {}),
]
"""Algorithm, or None for the run's own, and its hyper-parameters."""


@pytest.mark.parametrize(("run", "numbers"), [("trained", [1, 16, 29]), ("spread", [0, 1, 2, 3]), ("twice", [0, 1])])
def test_every_token_is_as_in_python(
    run: str, numbers: list[int], analysis: Path, request: pytest.FixtureRequest
) -> None:
    worst = compared(analysis, request.getfixturevalue(run), numbers, WHAT_IFS)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12


def test_every_token_of_a_run_with_a_reference_policy_is_as_in_python(analysis: Path) -> None:
    further: WhatIfs = [("grpo", {}), ("rloo_trl", {}), ("reinforce_pp", {})]
    worst = compared(analysis, SMOLLM2, [1, 2, 7], WHAT_IFS + further)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12


def test_of_a_sample_every_stored_token_is_as_in_python(analysis: Path, tmp_path: Path) -> None:
    path = recorded_run(tmp_path / "run", SPEC, policy=CapturePolicy(max_groups=2))
    what_ifs: WhatIfs = [
        ("dr_grpo", {}),
        ("reinforce", {}),
        ("rloo_verl", {}),
        ("lite_ppo", {}),
        ("opo", {}),
        ("dapo", {}),
        ("d3s", {}),
        ("pf_ppo", {}),
        ("entropy_top_q", {}),
    ]
    computed = what_ifs[:-2]
    worst = compared(analysis, path, [0, 1], computed)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12
    (answer,) = asked(analysis, [question(path, 0, what_ifs)])
    own, *others = answer["answers"]
    assert own["whole"] is False and own["approximate"] == []
    assert [m["whole"] for m in own["microBatches"]] == [False, False]
    # Rewards are known of every response: only what looks at tokens is approximate.
    by_name = {name: said for (name, _), said in zip(what_ifs, others, strict=True)}
    assert by_name["lite_ppo"]["approximate"] == []
    (said,) = by_name["entropy_top_q"]["approximate"]
    stored = len(own["passes"])
    assert said == f"high_entropy looks at the whole forward pass, of which {stored} of 16 responses are stored."
    assert "values" in by_name["pf_ppo"]["missing"] and "critic" in by_name["pf_ppo"]["missing"]
    assert "\n" not in by_name["pf_ppo"]["missing"]
    # The loss cannot be added up from a sample; what was found while training counts.
    found = answer["reconciled"]
    assert found["status"] == "reproduced" and found["gap"] is None and abs(found["storedGap"]) < 1e-12
    assert "Compared while training" in found["why"]


def test_groups_over_ranks_and_updates_over_rollouts_are_as_in_python(analysis: Path, tmp_path: Path) -> None:
    """Every group has half of its responses on either rank, and an update trains on two rollouts."""
    recorders: list[Recorder] = []
    for rank in range(2):
        info = run_info(rank=rank, ranks=2, algorithm=SPEC)
        joined = recorders[0].start if recorders else None
        recorders.append(Recorder(tmp_path / "run", info, strict=True, joined=joined))
    for rank, recorder in enumerate(recorders):
        rollouts = [rollout(number, seed=10 * rank + number, group_B=np.arange(8) % 4, groups=4) for number in range(2)]
        for each in rollouts:
            recorder.rollout(each)
        one, other = (update(0, each, micro_batches=2, data_parallel_size=2) for each in rollouts)
        recorder.update(replace(one, micro_batches=[*one.micro_batches, *other.micro_batches], accumulation_steps=4))
    for recorder in recorders:
        recorder.close()
    what_ifs: WhatIfs = [(name, {}) for name in ("dr_grpo", "rloo_verl", "lite_ppo", "dapo", "d3s", "gspo")]
    worst = compared(analysis, recorder.path, [0], what_ifs)
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12
    (answer,) = asked(analysis, [question(recorder.path, 0, [])])
    assert answer["answers"][0]["whole"] is True
    assert len(answer["answers"][0]["passes"]) == 32
    assert [row["name"] for row in answer["reconciled"]["rows"]][::4] == [
        "rank 0, forward pass 1",
        "rank 1, forward pass 1",
    ]


@pytest.mark.parametrize("groups", [(0, 1, 2, 3), (1, 2)])
@pytest.mark.parametrize("name", ["ppo.verl", "gspo.verl", "gmpo.verl", "dr_grpo.verl"])
def test_of_a_record_of_several_data_parallel_ranks_every_token_is_as_in_python(
    analysis: Path, tmp_path: Path, name: str, groups: tuple[int, ...]
) -> None:
    """Advantages and rewards of tokens, holes in the mask, and groups whose tokens never left their worker."""
    spec = algorithms.get(name)
    of = rollout(rows=16)
    random = np.random.default_rng(11)
    mask_BT = of.mask_BT & (random.random(of.mask_BT.shape) > 0.2)
    channels = {n: random.normal(size=mask_BT.shape) for n in ("advantages", "values", "returns", "rewards")}
    given = {n: np.where(mask_BT, values, 0).astype(np.float32) for n, values in channels.items()}
    of = replace(of, mask_BT=mask_BT, channels={"old_log_probs": of.channels["old_log_probs"], **given})
    made = update(0, of, micro_batches=4, data_parallel_size=2)
    shared = {"update_tokens": float(mask_BT.sum()) / 2, "update_rows": 8.0}
    parts = [replace(part, rank=number % 2, **shared) for number, part in enumerate(made.micro_batches)]
    batches = [batch_of(part, of, made) for part in parts]
    losses = [evaluate(as_recorded(spec, batch.arrays), batch).loss for batch in batches]
    made = replace(made, micro_batches=[replace(p, loss=loss) for p, loss in zip(parts, losses, strict=True)])
    run = run_info(algorithm=spec)
    if len(groups) < 4:
        made, of = handing_over(made, of, groups, run, spec), without(of, groups)
    recorder = Recorder(tmp_path / "run", run, strict=True)
    recorder.rollout(of)
    recorder.update(made)
    recorder.close()
    worst = compared(analysis, recorder.path, [0], [("dr_grpo", {}), ("rloo_verl", {})])
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12
    (answer,) = asked(analysis, [question(recorder.path, 0, [])])
    own = answer["answers"][0]
    assert own["whole"] is (len(groups) == 4)
    if own["whole"]:
        assert own["loss"] == pytest.approx(sum(losses) / 2, abs=1e-12)
        names = [row["name"] for row in answer["reconciled"]["rows"]]
        assert names == [f"rank {number % 2}, forward pass {number + 1}" for number in range(4)]
    assert answer["reconciled"]["status"] == "reproduced"


def test_what_a_critic_would_have_made_of_token_rewards_is_as_in_python(analysis: Path, tmp_path: Path) -> None:
    """Generalised advantages on values and rewards of tokens, where the run took others."""
    random = np.random.default_rng(13)
    of = rollout(rows=12)
    mask_BT = of.mask_BT & (random.random(of.mask_BT.shape) > 0.2)
    given = {n: random.normal(size=mask_BT.shape).astype(np.float32) for n in ("advantages", "values", "rewards")}
    of = replace(of, mask_BT=mask_BT, channels={"old_log_probs": of.channels["old_log_probs"], **given})
    recorder = Recorder(tmp_path / "run", run_info(algorithm=algorithms.get("grpo.verl")), strict=True)
    recorder.rollout(of)
    recorder.update(update(0, of))
    recorder.close()
    worst = compared(analysis, recorder.path, [0], [("ppo.verl", {}), ("ppo", {})])
    print(f"largest relative error {worst:.1e}")
    assert worst <= 1e-12

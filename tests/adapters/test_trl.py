"""What the TRL adapter captures is what the trainer computed."""

import numpy as np
import pytest
import torch
from trl_runs import DATASET, TOKENIZER, length, trainer_for, weights

from unipo_hooks import UnipoCallback, open_bundle
from unipo_hooks.bundle import layout
from unipo_hooks.bundle.verify import verify
from unipo_hooks.examples.trl_grpo import exact, small_llama

PLAIN_RUNS = {
    "defaults": {},
    "several updates a rollout": {"num_iterations": 2, "steps_per_generation": 2, "max_steps": 8},
    "accumulation": {"gradient_accumulation_steps": 2, "num_iterations": 2},
    "two rollouts an update": {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "the same rows twice in an update": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "num_iterations": 2,
    },
    "reference policy": {"beta": 0.05, "num_iterations": 2},
    "grpo": {"loss_type": "grpo", "num_iterations": 3, "max_steps": 6},
    "dr_grpo": {"loss_type": "dr_grpo", "num_iterations": 2},
    "sequence level": {"importance_sampling_level": "sequence", "num_iterations": 2},
}


@pytest.fixture(params=PLAIN_RUNS)
def captured(request, saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], **PLAIN_RUNS[request.param])
    trainer.train()
    assert [str(fault) for fault in verify(callback.path)] == []
    return trainer, open_bundle(callback.path)


def test_the_loss_recomputed_from_the_bundle_is_the_one_the_trainer_returned(captured):
    trainer, bundle = captured
    args, worst = trainer.args, 0.0
    for line in bundle.updates().to_pylist():
        table = bundle.tokens(update=line["update"]).to_pandas()
        for index, micro_batch in enumerate(line["micro_batches"]):
            of_batch = table[table["micro_batch"] == index]
            responses = [tokens.sort_values("position") for _, tokens in of_batch.groupby(["rollout", "row"])]
            assert len(responses) == micro_batch["rows"]
            loss = plain_loss(responses, args, micro_batch, line["accumulation_steps"])
            worst = max(worst, abs(loss - micro_batch["loss"]))
    assert sorted(m["loss"] for line in bundle.updates().to_pylist() for m in line["micro_batches"]) == sorted(
        entry["loss"] for entry in trainer.losses
    )
    print(f"largest error of the loss {worst:.1e}")
    assert worst < 1e-6


def plain_loss(responses, args, micro_batch, accumulation):
    """Clipped losses of TRL 1.16.0's `_compute_loss`, in float64, from a bundle's tokens alone."""
    objectives = []
    for tokens in responses:
        log_probs = tokens["log_probs"].to_numpy(np.float64)
        old = tokens["old_log_probs"].to_numpy(np.float64)
        advantage = tokens["advantages"].to_numpy(np.float64)
        log_ratio = log_probs - old
        if args.importance_sampling_level == "sequence":
            log_ratio = np.full_like(log_ratio, log_ratio.mean())
        ratio = np.exp(log_ratio)
        high = args.epsilon if args.epsilon_high is None else args.epsilon_high
        loss = -np.minimum(ratio * advantage, np.clip(ratio, 1 - args.epsilon, 1 + high) * advantage)
        if args.beta:
            gap = tokens["ref_log_probs"].to_numpy(np.float64) - log_probs
            kl = np.exp(gap) - gap - 1
            loss = loss + args.beta * kl * (ratio if args.use_bias_correction_kl else 1)
        objectives.append(loss)
    if args.loss_type == "grpo":
        return np.mean([loss.mean() for loss in objectives]) / accumulation
    total = sum(loss.sum() for loss in objectives)
    if args.loss_type == "dr_grpo":
        return total / (len(objectives) * args.max_completion_length) / accumulation
    return total / (micro_batch["num_items_in_batch"] * accumulation / args.steps_per_generation)


def test_training_is_bit_identical_with_and_without_capture(saved_model, tmp_path):
    without = weights(saved_model, tmp_path, [])
    callback = UnipoCallback(tmp_path / "run", strict=True)
    captured = weights(saved_model, tmp_path, [callback])
    assert len(open_bundle(callback.path).updates()) == 4
    start = small_llama(TOKENIZER).from_pretrained(saved_model).state_dict()
    assert not all(torch.equal(start[name], without[name]) for name in without), "nothing was trained"
    assert all(torch.equal(without[name], captured[name]) for name in without)


def test_groups_prompts_and_rewards_are_those_of_the_data(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer_for(saved_model, tmp_path, callbacks=[callback], max_steps=2).train()
    bundle = open_bundle(callback.path)
    responses = bundle.responses().to_pandas()
    tokens = bundle.tokens(rollout=0).to_pandas()
    answers = dict(zip(DATASET["prompt"], DATASET["answer"], strict=True))
    assert bundle.manifest.reward_names == ["exact", "length"]
    for _, group in responses.groupby(["rollout", "group"]):
        assert len(group) == 4
        assert group["prompt"].nunique() == 1
    for _, response in responses[responses["rollout"] == 0].iterrows():
        mine = tokens[tokens["row"] == response["row"]]
        assert "".join(mine["strings"]) == TOKENIZER.decode(mine["ids"].tolist())
        text = TOKENIZER.decode(mine["ids"].tolist(), skip_special_tokens=True)
        expected = (*exact([text], [answers[response["prompt"]]]), *length([text]))
        components = [response[layout.component_column(number)] for number in range(2)]
        assert components == pytest.approx(expected)
        assert response["reward"] == pytest.approx(sum(expected))


def test_the_learning_rate_is_the_one_an_update_was_made_with(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer_for(saved_model, tmp_path, callbacks=[callback], num_iterations=2, max_steps=6).train()
    metrics = open_bundle(callback.path).metrics().to_pylist()
    # TRL logs the rate of the step to come.
    assert [row["learning_rate"] for row in metrics] == pytest.approx([1e-3 * (1 - u / 6) for u in range(6)])
    assert [row["is_first_step_after_rollout_phase"] for row in metrics] == [True, False] * 3

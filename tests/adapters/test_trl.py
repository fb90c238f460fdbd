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


def test_every_token_of_every_update_is_the_trainers_own_bit_for_bit(captured):
    trainer, bundle = captured
    updates = bundle.updates()
    assert updates.column("update").to_pylist() == list(range(trainer.state.global_step))
    compared = rows = 0
    passes = {}
    for number in range(trainer.state.global_step):
        table = bundle.tokens(update=number).to_pandas()
        membership = bundle.responses(update=number).to_pandas()
        for index, loss in enumerate(entry for entry in trainer.losses if entry["step"] == number):
            in_batch = membership[membership["micro_batch"] == index]
            of_batch = table[table["micro_batch"] == index]
            assert len(in_batch) == len(loss["ids"])
            for i, (rollout, row) in enumerate(zip(in_batch["rollout"], in_batch["row"], strict=True)):
                tokens = of_batch[(of_batch["rollout"] == rollout) & (of_batch["row"] == row)]
                n = int(loss["mask"][i].sum())
                assert len(tokens) == n
                assert tokens["ids"].tolist() == loss["ids"][i, :n].tolist()
                for name in ("log_probs", "entropies"):
                    mine = tokens[name].to_numpy(np.float32)
                    assert mine.tobytes() == loss[name][i, :n].numpy().tobytes()
                # identity: everything fixed at the rollout is that of the same row before TRL shuffled it
                batch = trainer.generated[rollout]
                assert batch["completion_ids"][row, :n].tolist() == tokens["ids"].tolist()
                assert np.float32(tokens["advantages"].iloc[0]) == batch["advantages"][row].item()
                for key, name in (("old_per_token_logps", "old_log_probs"), ("ref_per_token_logps", "ref_log_probs")):
                    if key in batch:
                        assert tokens[name].to_numpy(np.float32).tobytes() == batch[key][row, :n].numpy().tobytes()
                passes[rollout, row] = passes.get((rollout, row), 0) + 1
                compared, rows = compared + n, rows + 1
    print(f"{rows} responses, {compared} tokens compared bit for bit")
    assert set(passes.values()) == {trainer.num_iterations}
    assert len(passes) == sum(len(batch["completion_ids"]) for batch in trainer.generated)


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


def test_metrics_are_those_on_the_trainers_own_charts(saved_model, tmp_path):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], beta=0.05, num_iterations=2, max_steps=6)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    metrics = open_bundle(callback.path).metrics().to_pylist()
    assert [row["step"] for row in metrics] == [entry["step"] for entry in history] == list(range(1, 7))
    worst = {}
    for row, logged in zip(metrics, history, strict=True):
        names = {
            "policy_loss": "loss",
            "entropy": "entropy",
            "kl": "kl",
            "clip_fraction_low": "clip_ratio/low_mean",
            "clip_fraction_high": "clip_ratio/high_mean",
            "clip_fraction": "clip_ratio/region_mean",
            "grad_norm": "grad_norm",
        }
        if row["is_first_step_after_rollout_phase"]:  # TRL says these once a rollout
            names |= {
                "reward": "reward",
                "reward_std": "reward_std",
                "zero_std_groups": "frac_reward_zero_std",
                "response_length": "completions/mean_length",
            }
        for ours, theirs in names.items():
            worst[ours] = max(worst.get(ours, 0.0), abs(row[ours] - logged[theirs]))
    print("largest error of each metric:", {name: f"{error:.1e}" for name, error in worst.items()})
    assert max(worst.values()) < 2e-6
    assert worst.keys() >= {"reward_std", "clip_fraction", "grad_norm", "kl"}
    assert [row["is_first_step_after_rollout_phase"] for row in metrics] == [True, False] * 3
    # TRL logs the rate of the step to come; a bundle has the one the update was made with
    assert [row["learning_rate"] for row in metrics] == pytest.approx([1e-3 * (1 - u / 6) for u in range(6)])


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


def none_of_it(completions, **_):
    return [None] * len(completions)


def sometimes(completions, **_):
    return [float("nan") if i % 3 == 0 else 1.0 * i for i in range(len(completions))]


@pytest.mark.parametrize("rewards", [(none_of_it,), (none_of_it, exact), (sometimes, exact), (sometimes,)])
def test_rewards_that_are_none_or_nan_are_captured_as_they_are(saved_model, tmp_path, rewards):
    callback = UnipoCallback(tmp_path / "run", strict=True)
    trainer = trainer_for(saved_model, tmp_path, callbacks=[callback], rewards=rewards, max_steps=2)
    trainer.train()
    bundle = open_bundle(callback.path)
    assert [str(fault) for fault in verify(bundle.path)] == []
    rewards_B = bundle.responses(rollout=0).column("reward").to_numpy()
    if rewards == (none_of_it,):
        assert np.isnan(rewards_B).all()
    if rewards == (sometimes,):
        assert np.isnan(rewards_B).any() and not np.isnan(rewards_B).all()
    advantages = bundle.responses(rollout=0).column("advantages").to_numpy()
    assert np.array_equal(advantages, trainer.generated[0]["advantages"].numpy())

"""Under every setting metrics are those of the trainer's own tensors, and those on its own charts where both say."""

import math

import numpy as np
import pytest
import torch
from trl import RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl_channels import divided
from trl_settings import SETTINGS, ran

from unipo_hooks.channels import METRICS

MEASURED = METRICS.keys() - {"loss_gap", "grad_norm", "learning_rate"}
CLIPPED = {
    "is_low_clipped": ("clip_fraction_low",),
    "is_high_clipped": ("clip_fraction_high",),
    "is_region_clipped": ("clip_fraction",),
    "is_cispo_clipped": ("clip_fraction_high", "clip_fraction"),
}
"""TRL's local → our metrics."""


@pytest.fixture(params=SETTINGS)
def captured(request, saved_model, tmp_path_factory):
    return SETTINGS[request.param], ran(request.param, saved_model, tmp_path_factory)


def of_passes(run, kind, update):
    """Metrics of an update over all tokens that count in all of its passes, in float64."""
    samples, loss, further = {}, 0.0, 0.0
    responses = run.bundle.responses(update=update, kind=kind).to_pandas()
    for part, each in ((part, each) for number, part, each in run.passes(kind) if number == update):
        local = each["local"]
        mask = local.get("mask", each["inputs"]["completion_mask"]).bool()

        def add(name, value, mask=mask, rows=slice(None)):
            own = value[mask] if value.shape == mask.shape else value.reshape(len(mask))[rows]
            samples.setdefault(name, []).append(own.double())

        add("entropy", local["entropies"])
        add("advantage_mean", each["inputs"]["advantages"])
        if "per_token_kl" in local:
            add("kl", local["per_token_kl"])
        for theirs, names in CLIPPED.items():
            for name in names if theirs in local else ():
                add(name, local[theirs])
        mine = responses[responses["micro_batch"] == part]
        before = run.rollouts(kind)[mine["rollout"].iloc[0]]["local"]
        if "per_token_kl" in before:  # RLOO's, inside the reward
            add("kl", before["per_token_kl"][mine["row"].tolist()])
        if "is_cispo_clipped" in local:
            add("clip_fraction_low", torch.zeros(len(mask)))
        own = isinstance(run.trainer, GMPOTrainer | RLOOTrainer)
        ratio = local["log_ratio" if own else "log_importance_weights"]
        add("importance_sampling_ratio", ratio.double().exp(), rows=mask.any(1))
        loss += each["loss"] / divided(run, kind)
        further -= local["apply_coef"] * local["entropy_loss"].item() if "entropy_loss" in local else 0.0
        if "aux_loss" in local:
            steps = run.trainer.args.gradient_accumulation_steps if kind == "train" else 1
            further += run.trainer.router_aux_loss_coef * local["aux_loss"].item() / steps
    found = {name: torch.cat(each) for name, each in samples.items()}
    policy = loss - further
    return {name: float(each.mean()) for name, each in found.items()} | {
        "advantage_std": float(found["advantage_mean"].std()) if len(found["advantage_mean"]) > 1 else math.nan,
        "total_loss": loss,
        "policy_loss": policy,
        "policy_objective": -policy,
    }


def of_rollouts(run, kind, update):
    """Metrics of the rollouts an update trains on."""
    lines = run.bundle.updates(kind=kind).to_pylist()
    numbers = next(line["rollouts"] for line in lines if line["update"] == update)
    local = [run.rollouts(kind)[number]["local"] for number in numbers]
    rewards = torch.cat([each["rewards"] for each in local]).double()
    scored = rewards[~rewards.isnan()]
    groups = [group for each in local for group in each["rewards"].double().view(-1, each["num_generations"])]
    scored_groups = [group[~group.isnan()] for group in groups]
    stds = torch.tensor([group.std() for group in scored_groups if len(group) > 1])
    found = {
        "reward": scored.mean(),
        "reward_std": scored.std() if len(scored) > 1 else math.nan,
        "group_reward_std": stds.mean(),
        "zero_std_groups": torch.isclose(stds, torch.zeros_like(stds)).double().mean(),
        "response_length": np.mean([len(ids) for each in local for ids in each["completion_ids_list"]]),
    }
    return {name: float(value) for name, value in found.items()}


def test_metrics_are_taken_from_the_trainers_own_tensors(captured):
    _, run = captured
    worst = {}
    for kind in run.kinds:
        for line in run.bundle.metrics(kind=kind).to_pylist():
            theirs = of_passes(run, kind, line["update"]) | of_rollouts(run, kind, line["update"])
            theirs = {name: value for name, value in theirs.items() if not math.isnan(value)}
            assert {name for name in MEASURED if line.get(name) is not None} == set(theirs)
            errors = {name: abs(line[name] - value) / max(1.0, abs(value)) for name, value in theirs.items()}
            worst = {name: max(worst.get(name, 0.0), errors.get(name, 0.0)) for name in worst | errors}
    print("largest error of each metric:", {name: f"{error:.1e}" for name, error in worst.items()})
    assert max(worst.values()) < 2e-6


EVERY_UPDATE = {
    "total_loss": "loss",
    "entropy": "entropy",
    "kl": "kl",
    "clip_fraction_low": "clip_ratio/low_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
    "clip_fraction": "clip_ratio/region_mean",
    "grad_norm": "grad_norm",
}
EVERY_ROLLOUT = {
    "reward": "reward",
    "reward_std": "reward_std",
    "zero_std_groups": "frac_reward_zero_std",
    "response_length": "completions/mean_length",
}
"""Our metric → TRL's, of every update and of the first one after a rollout."""
CISPO = {"clip_fraction_high": "cispo_clip_ratio", "clip_fraction": "cispo_clip_ratio"}


def charted(run, kind):
    """(our metrics, TRL's log line without its prefix) of each update, or of each evaluation and its passes' mean."""
    lines, prefix = run.bundle.metrics(kind=kind).to_pylist(), "" if kind == "train" else "eval_"
    history = [entry for entry in run.trainer.state.log_history if f"{prefix}loss" in entry]
    each = len(lines) // len(history)
    assert len(lines) == each * len(history)
    for number, entry in enumerate(history):
        own = lines[number * each : (number + 1) * each]
        assert kind == "eval" or own[0]["step"] == entry["step"]
        names = {name for line in own for name in line if name in METRICS and line[name] is not None}
        means = {name: float(np.mean([line[name] for line in own if line[name] is not None])) for name in names}
        yield own[0], means, {name.removeprefix(prefix): value for name, value in entry.items()}


def test_metrics_are_those_on_the_trainers_own_charts(captured):
    _, run = captured
    args, worst = run.trainer.args, {}
    for kind in run.kinds:
        for line, mine, theirs in charted(run, kind):
            # With several passes an update TRL's charts have the mean of their means; with several rollouts it is
            # that of the rollouts it generated meanwhile. Ours are over all tokens, of the rollouts trained on.
            one_pass = kind == "eval" or args.gradient_accumulation_steps == 1
            one_rollout = kind == "eval" or args.steps_per_generation % args.gradient_accumulation_steps == 0
            names = EVERY_UPDATE if one_pass else {"total_loss": "loss", "grad_norm": "grad_norm"}
            names = names | (CISPO if one_pass and "cispo_clip_ratio" in theirs else {})
            if line["is_first_step_after_rollout_phase"] and one_rollout:
                names = names | EVERY_ROLLOUT
                if not alone_by_groups(run):
                    names.pop("zero_std_groups")
            for ours, name in names.items():
                value = theirs.get(name)
                if ours not in mine or value is None:
                    assert value in (None, 0.0)  # where nothing counted TRL says 0, and we say nothing
                    continue
                worst[ours] = max(worst.get(ours, 0.0), abs(mine[ours] - value) / max(1.0, abs(value)))
    print("largest error of each metric:", {name: f"{error:.1e}" for name, error in worst.items()})
    assert worst.keys() >= {"total_loss", "grad_norm"}
    assert max(worst.values()) < 2e-6


def alone_by_groups(run):
    """Whether TRL's share of groups without a spread is of groups of several scored responses, by their rewards alone.

    Ours always is. TRL's is of the batch where that scales, of RLOO's rewards with the penalty, and counts a group of
    one as without a spread, one with nothing scored as with.
    """
    args = run.trainer.args
    return (
        getattr(run.trainer, "num_generations_eval", 2) > 1
        and getattr(args, "scale_rewards", "group") in ("group", "none")
        and getattr(args, "multi_objective_aggregation", "sum_then_normalize") == "sum_then_normalize"
        and not (isinstance(run.trainer, RLOOTrainer) and args.beta)
        and not any(torch.isnan(each["local"]["rewards"]).any() for each in run.trainer.rollouts)
    )


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if "is_weights" in setting.has])
def test_the_samplers_charts_follow_from_what_is_stored(name, saved_model, tmp_path_factory):
    run = ran(name, saved_model, tmp_path_factory)
    history = [entry for entry in run.trainer.state.log_history if "sampling/importance_sampling_ratio/mean" in entry]
    rollouts = run.bundle.rollouts().to_pylist()
    worst = 0.0
    assert len(history) == len(rollouts)
    for entry, rollout in zip(history, rollouts, strict=True):
        tokens = run.bundle.tokens(rollout=rollout["rollout"]).to_pandas()
        counted = tokens[tokens["mask"] > 0]
        far = (counted["old_log_probs"] - counted["rollout_log_probs"]).abs().dropna()
        weights = counted["is_weights"]
        if "sequence" in run.trainer.vllm_importance_sampling_mode:
            weights = run.bundle.responses(rollout=rollout["rollout"]).to_pandas()["is_weights"]
        expected = {
            "sampling/sampling_logp_difference/mean": far.mean(),
            "sampling/sampling_logp_difference/max": far.max(),
            "sampling/importance_sampling_ratio/min": weights.min(),
            "sampling/importance_sampling_ratio/mean": weights.mean(),
            "sampling/importance_sampling_ratio/max": weights.max(),
        }
        worst = max(worst, *(abs(entry[name] - value) for name, value in expected.items()))
    print(f"largest error {worst:.1e} over {len(history)} rollouts")
    assert worst < 2e-6


def test_each_reward_functions_mean_follows_from_what_is_stored(captured):
    _, run = captured
    names, worst = run.bundle.manifest.reward_names, 0.0
    for number, entry in enumerate(entry for entry in run.trainer.state.log_history if "reward" in entry):
        if run.trainer.args.gradient_accumulation_steps > run.trainer.args.steps_per_generation:
            continue  # a line is then of several rollouts
        stored = run.bundle.responses(rollout=number).to_pandas()
        for k, name in enumerate(names):
            mine, theirs = stored[f"reward_components.{k}"].mean(), entry[f"rewards/{name}/mean"]
            assert math.isnan(mine) is (theirs is None)
            worst = max(worst, abs((0.0 if theirs is None else mine) - (theirs or 0.0)))
    assert worst < 2e-6

"""What a verl configuration says of the run: header, settings, algorithm, how many updates there will be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import verl
from omegaconf import OmegaConf

from unipo_hooks.adapters.algorithm import read_algorithm
from unipo_hooks.adapters.tokenizer import decoder, placeholders
from unipo_hooks.adapters.verl.algorithm import spec_from_verl
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import PolicyError
from unipo_hooks.policy import CapturePolicy, policy_from
from unipo_hooks.record import RunInfo
from unipo_hooks.schema import Header
from unipo_hooks.schema import Trainer as TrainerRecord

SECTIONS = ("actor_rollout_ref", "algorithm", "critic", "data", "reward", "trainer")
"""Parts of the configuration that go into the bundle. Those of Ray and of profilers say nothing of the run, and may
hold an environment's secrets."""


class Settings:
    """What the user set under `unipo`.

    Raises PolicyError, one line, where a setting is unknown or makes no sense.
    """

    def __init__(self, given: Any) -> None:
        values = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
        if not isinstance(values, Mapping):
            raise PolicyError(f"unipo={values!r}: give a folder, +unipo.path=runs/gsm8k")
        settings = {str(name): value for name, value in values.items()}
        path = settings.pop("path", None)
        if not isinstance(path, str) or not path:
            raise PolicyError("unipo.path is missing: the folder to write to, as in +unipo.path=runs/gsm8k")
        if re.match(r"[A-Za-z][\w+.-]+:/", path):
            raise PolicyError(f"{path} is an address; bundles are written to local folders, to be copied from there")
        self.path = Path(path).expanduser().absolute()
        self.strict = settings.pop("strict", False)
        if not isinstance(self.strict, bool):
            raise PolicyError(f"unipo.strict is True or False, found {self.strict!r}")
        self.on_full: Literal["drop", "block"] = settings.pop("on_full", "drop")
        if self.on_full not in ("drop", "block"):
            raise PolicyError(f"unipo.on_full is drop or block, found {self.on_full!r}")
        self.policy: CapturePolicy = policy_from(settings)


class Plan:
    """How a run's optimizer steps are counted."""

    def __init__(self, config: Any) -> None:
        actor = config.actor_rollout_ref.actor
        mini_batches = -(-config.data.train_batch_size // actor.ppo_mini_batch_size)
        self.updates_a_step = int(mini_batches * actor.ppo_epochs)
        mode = config.trainer.get("v1", {}).get("trainer_mode") if config.trainer.get("use_v1", False) else None
        calls = config.trainer.v1.get(mode, {}).get("parameter_sync_step", 1) if mode else 1
        self.updates_a_batch = max(1, self.updates_a_step // int(calls))
        """Of one call of `_update_actor`, of which a step of separate_async has several."""
        self._first_step = max(1, int(config.trainer.get("critic_warmup", 0) or 0))

    def updates_until(self, step: int) -> int:
        """Updates of the actor in the first `step` steps: none while only the critic is trained."""
        return max(0, step - self._first_step + 1) * self.updates_a_step


def run_info(
    trainer: Any,
    *,
    reward_names: Sequence[str],
    reward_names_found: bool,
    steps_before: int,
    plan: Plan,
    strict: bool,
) -> RunInfo:
    """Everything known of a run before its first rollout.

    `strict`: raise where the settings cannot be read, instead of going on without an algorithm.
    """
    config = OmegaConf.to_container(trainer.config, resolve=True)
    algorithm, notes = read_algorithm(lambda: spec_from_verl(config, verl.__version__), strict=strict)
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    model = _name(config["actor_rollout_ref"]["model"]["path"])
    ratio_level, clip_range = _ratio(algorithm)
    total = getattr(trainer, "total_training_steps", None)
    settings = json.loads(json.dumps({name: config.get(name) for name in SECTIONS}, default=str, sort_keys=True))
    return RunInfo(
        header=Header(
            dataset=" + ".join(_name(each) for each in _listed(config["data"].get("train_files"))),
            reward_strategy=_reward(config),
            algorithm="unknown" if algorithm is None else algorithm.id.removeprefix("verl.").split(".")[0],
            totalSteps=plan.updates_until(int(total)) if total else None,
            model_name=model,
            reference_model_name=model if getattr(trainer, "use_reference_policy", False) else None,
            hparams=_hparams(config, actor, rollout),
        ),
        trainer=TrainerRecord(
            library="verl",
            version=verl.__version__,
            trainer_class=type(trainer).__name__,
            settings={**settings, "output_dir": str(config["trainer"].get("default_local_dir") or "")},
        ),
        decode=decoder(trainer.tokenizer),
        placeholders=placeholders(getattr(trainer, "processor", None)),
        reward_names=tuple(reward_names),
        reward_names_found=reward_names_found,
        reward_weights=_reward_weights(config, reward_names),
        ratio_level=ratio_level,
        clip_range=clip_range,
        algorithm=algorithm,
        algorithm_notes=notes,
        first_update=plan.updates_until(steps_before),
        steps_before=steps_before,
    )


def estimator_of(config: Any) -> str:
    """verl's name of what makes the advantages."""
    named = config.algorithm.adv_estimator
    return str(getattr(named, "value", named))


def rejects(config: Any) -> bool:
    """Whether the trainer's sampler correction may take tokens out of the loss."""
    correction = config.algorithm.get("rollout_correction", None)
    return bool(correction and correction.get("rollout_rs", None))


def component_keys(config: Any) -> tuple[str, ...] | None:
    """Rewards GDPO normalises apart, in its order; None for any other estimator."""
    keys = config.algorithm.get("gdpo_reward_keys", None)
    return tuple(keys) if keys and estimator_of(config) == "gdpo" else None


def _ratio(spec: AlgorithmSpec | None) -> tuple[Literal["token", "sequence", "product"], tuple[float, float] | None]:
    """What has a ratio of its own on verl's charts, and the range outside of which it counts as clipped."""
    if spec is None:
        return "token", None
    part = spec.parts.ratio.part
    level: Literal["token", "sequence", "product"] = "sequence" if part.startswith("sequence") else "token"
    if part == "sequence_product":
        level = "product"
    bounds = spec.parts.bounds
    if bounds is None or bounds.part != "around_one":
        return level, None
    low, high = (float(bounds.parameters[name]) for name in ("epsilon_low", "epsilon_high"))
    return level, (1 - low, 1 + high)


def _hparams(config: Mapping[str, Any], actor: Mapping[str, Any], rollout: Mapping[str, Any]) -> dict[str, Any]:
    """Settings a reader compares runs by; UNIPO's names where it has one."""
    algorithm = config["algorithm"]
    found = {
        "adv_estimator": str(getattr(algorithm["adv_estimator"], "value", algorithm["adv_estimator"])),
        "loss_mode": (actor.get("policy_loss") or {}).get("loss_mode"),
        "loss_agg_mode": actor.get("loss_agg_mode"),
        "loss_scale_factor": actor.get("loss_scale_factor"),
        "clip_eps": [actor.get("clip_ratio_low"), actor.get("clip_ratio_high")],
        "learning_rate": (actor.get("optim") or {}).get("lr"),
        "ppo_epochs": actor.get("ppo_epochs"),
        "ppo_mini_batch_size": actor.get("ppo_mini_batch_size"),
        "train_batch_size": config["data"].get("train_batch_size"),
        "max_response_length": config["data"].get("max_response_length"),
        "entropy_coeff": actor.get("entropy_coeff"),
        "kl_coef": actor.get("kl_loss_coef") if actor.get("use_kl_loss") else 0.0,
        "kl_in_reward": (algorithm.get("kl_ctrl") or {}).get("kl_coef") if algorithm.get("use_kl_in_reward") else 0.0,
        "group_size": rollout.get("n"),
        "temperature": rollout.get("temperature"),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def _reward(config: Mapping[str, Any]) -> str:
    """The user's reward function, or verl's own for the data source."""
    reward = config.get("reward") or {}
    own = reward.get("custom_reward_function") or config.get("custom_reward_function") or {}
    return str(own["name"]) if own.get("path") else "by data source"


def _reward_weights(config: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...]:
    weights = config["algorithm"].get("gdpo_reward_weights")
    return tuple(map(float, weights)) if weights and len(weights) == len(names) else ()


def _listed(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list | tuple) else [value]) if each]


def _name(path: str) -> str:
    """Of a local path only the last part, which is all that means something elsewhere."""
    return PurePath(path).name if PurePath(path).is_absolute() or path.startswith("~") else str(path)

"""What a trainer's configuration says of the run: header, settings, clip range, tokenizer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import PurePath
from typing import Any, Literal

import torch
import trl

from unipo_hooks.adapters.algorithm import read_algorithm
from unipo_hooks.adapters.tokenizer import decoder, placeholders
from unipo_hooks.adapters.trl.algorithm import spec_from_trl
from unipo_hooks.adapters.trl.normalisers import divided_afterwards, normalisers_from_trl, trainer_kind
from unipo_hooks.adapters.trl.versions import CLIPPED_LOSSES
from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.objective.inputs import Normalisers
from unipo_hooks.record import RunInfo
from unipo_hooks.schema import Header, Kind
from unipo_hooks.schema import Trainer as TrainerRecord

HPARAMS = (
    "beta",
    "delta",
    "epsilon",
    "epsilon_high",
    "gradient_accumulation_steps",
    "importance_sampling_level",
    "learning_rate",
    "loss_type",
    "mask_truncated_completions",
    "max_completion_length",
    "num_iterations",
    "per_device_train_batch_size",
    "scale_rewards",
    "steps_per_generation",
    "temperature",
    "top_entropy_quantile",
    "use_bias_correction_kl",
)


def run_info(
    trainer: Any,
    *,
    algorithm: AlgorithmSpec | None = None,
    algorithms: Sequence[AlgorithmSpec] = (),
    strict: bool = False,
) -> RunInfo:
    """Everything known of a run before its first rollout; `algorithm` is what it runs where settings do not tell.

    `strict`: raise where the settings cannot be read, instead of going on without an algorithm.
    """
    notes: tuple[str, ...] = ()
    if algorithm is None:
        algorithm, notes = _algorithm(trainer, strict=strict)
    kind = trainer_kind(class_names(trainer))
    loss_type = str(getattr(trainer, "loss_type", kind) if kind in ("grpo", "gspo_token") else kind)
    low, high = (_number(getattr(trainer, name, None)) for name in ("epsilon_low", "epsilon_high"))
    bounds = None if low is None or high is None else (low, high)
    names = tuple(getattr(trainer, "reward_func_names", ()))
    hparams = {name: getattr(trainer.args, name) for name in HPARAMS if hasattr(trainer.args, name)}
    hparams |= {"kl_coef": getattr(trainer, "beta", 0.0), "group_size": group_size(trainer)}
    if bounds and loss_type in (*CLIPPED_LOSSES, "rloo"):
        hparams["clip_eps"] = list(bounds)
    return RunInfo(
        header=Header(
            dataset=_dataset_name(getattr(trainer, "train_dataset", None)),
            reward_strategy=" + ".join(names),
            algorithm={"dr_grpo": "drgrpo"}.get(loss_type, loss_type),
            totalSteps=trainer.state.max_steps or None,
            model_name=_model_name(trainer.model),
            reference_model_name=_model_name(trainer.model) if getattr(trainer, "beta", 0.0) else None,
            hparams=_plain(hparams),
        ),
        trainer=TrainerRecord(
            library="trl",
            version=trl.__version__,
            trainer_class=type(trainer).__name__,
            settings=_plain(trainer.args.to_dict()),
        ),
        decode=decoder(trainer.processing_class),
        placeholders=placeholders(trainer.processing_class),
        reward_names=names,
        reward_weights=tuple(reward_weights(trainer).tolist()),
        ratio_level=_ratio_level(trainer, loss_type),
        algorithm=algorithm,
        algorithm_notes=notes,
        loss_overridden_by=overrides_loss(type(trainer)),
        algorithms=tuple(algorithms),
        clip_range=_clip_range(trainer, loss_type, bounds),
        first_update=trainer.state.global_step,
        rank=trainer.accelerator.process_index,
        ranks=trainer.accelerator.num_processes,
    )


def _algorithm(trainer: Any, *, strict: bool) -> tuple[AlgorithmSpec | None, tuple[str, ...]]:
    names = class_names(trainer)
    return read_algorithm(lambda: spec_from_trl(trainer.args, trl.__version__, trainer_class=names), strict=strict)


def _ratio_level(trainer: Any, loss_type: str) -> Literal["token", "sequence", "product"]:
    """What has a ratio of its own on TRL's charts; GMPO clips tokens, whatever the setting is."""
    if loss_type == "rloo":
        return "product"
    level = getattr(trainer, "importance_sampling_level", "token")
    return "sequence" if level == "sequence" and loss_type != "gmpo" else "token"


def _clip_range(trainer: Any, loss_type: str, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """The ratios outside of which TRL 1.16.0 counts as clipped; None for losses without a clip."""
    if bounds is None:
        return None
    low, high = bounds
    if loss_type == "gmpo":  # in log space
        return math.exp(-low), math.exp(high)
    if loss_type == "cispo":  # a cap from above alone
        return 0.0, high
    if loss_type not in (*CLIPPED_LOSSES, "rloo"):
        return None
    # A ratio is capped at delta before it is compared: where that is inside the range, none is above it.
    delta = getattr(trainer.args, "delta", None)
    return 1 - low, math.inf if delta is not None and delta <= 1 + high else 1 + high


def overrides_loss(cls: type) -> str | None:
    """The class that defines `_compute_loss`, where it is not one of TRL's own."""
    owner = next((each for each in cls.__mro__ if "_compute_loss" in vars(each)), None)
    return None if owner is None or owner.__module__.split(".")[0] == "trl" else owner.__name__


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def group_size(trainer: Any, kind: Kind = "train") -> int | None:
    """Responses sampled for a prompt; None where the trainer does not say."""
    names = ("num_generations",) if kind == "train" else ("num_generations_eval", "num_generations")
    found = (getattr(owner, name, None) for name in names for owner in (trainer, trainer.args))
    return next((int(each) for each in found if each), None)


def reward_weights(trainer: Any) -> torch.Tensor:
    """The weight of each reward function, (K,): 1 where none is set."""
    for owner in (trainer, trainer.args):
        given = getattr(owner, "reward_weights", None)
        if given is not None:
            return given if isinstance(given, torch.Tensor) else torch.tensor(given, device="cpu")
    return torch.ones(len(getattr(trainer, "reward_funcs", ())), device="cpu")


def reuses_rollouts(trainer: Any) -> bool:
    """Whether responses outlive the policy they were sampled from: TRL then computes old log-probs, in all versions."""
    args = trainer.args
    accumulated = args.gradient_accumulation_steps
    used = (getattr(args, "steps_per_generation", None) or accumulated) * getattr(args, "num_iterations", 1)
    return bool(accumulated % used)


def expected_locals(trainer: Any) -> dict[str, str]:
    """Locals of `_compute_loss` that TRL has under the trainer's settings → the channel that is read from each."""
    kind, args = trainer_kind(class_names(trainer)), trainer.args
    expected = {}
    if kind != "rloo" and getattr(args, "beta", None):
        expected["per_token_kl"] = "token_kl"
    if kind == "grpo" and (getattr(args, "top_entropy_quantile", None) or 1) < 1:
        expected["entropy_mask"] = "policy_mask"
    if kind == "grpo" and getattr(args, "off_policy_mask_threshold", None) is not None:
        expected["off_policy_mask"] = "policy_mask"
    return expected


def class_names(trainer: Any) -> str:
    """The trainer's class and those it is derived from."""
    return _class_names(type(trainer).__mro__)


@cache
def _class_names(classes: tuple[type, ...]) -> str:
    return " ".join(each.__name__ for each in classes)


def divided_by(trainer: Any, kind: Kind) -> Callable[[float | None], Normalisers]:
    """What the trainer divides a micro-batch by, and what a token mean over the update would divide it by.

    To be asked with the tokens TRL counts (`num_items_in_batch`), which may still be on a device now.
    """
    known = partial(
        normalisers_from_trl,
        loss_type="dapo",
        trl_version=trl.__version__,
        training=kind == "train",
        accumulation_steps=accumulation_steps(trainer),
        steps_per_generation=getattr(trainer.args, "steps_per_generation", None),
        num_processes=trainer.accelerator.num_processes,
        trainer_class=class_names(trainer),
    )
    return lambda tokens: known(num_items_in_batch=tokens)


def accumulation_steps(trainer: Any) -> float:
    """Micro-batches of the update being accumulated: fewer than configured at the end of an epoch.

    The transformers of TRL's first versions do not say, and divide by what is configured.
    """
    current = getattr(trainer, "current_gradient_accumulation_steps", None)
    return float(trainer.args.gradient_accumulation_steps if current is None else current)


def accumulation_after_loss(trainer: Any, kind: Kind) -> float:
    """What divides the loss after `_compute_loss` returned it."""
    if kind != "train" or not _divided_afterwards(class_names(trainer)):
        return 1
    return accumulation_steps(trainer)


@cache
def _divided_afterwards(classes: str) -> bool:
    return divided_afterwards(trl.__version__, classes)


def _model_name(model: Any) -> str:
    """Name of the model; of a local path only the last part, which is all that means something elsewhere."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _dataset_name(dataset: Any) -> str:
    return str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them; what it cannot hold becomes text."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str, sort_keys=True))
    return plain

"""What TRL divides a micro-batch's loss by, version by version."""

from __future__ import annotations

from unipo_hooks.adapters.trl.versions import UPDATE_TOKEN_MEANS, Kind, kind_of, parsed_version
from unipo_hooks.objective.inputs import Normalisers


def normalisers_from_trl(
    *,
    loss_type: str,
    trl_version: str,
    training: bool,
    accumulation_steps: float,
    steps_per_generation: float | None = None,
    num_items_in_batch: float | None = None,
    num_processes: int = 1,
    max_completion_length: float | None = None,
    trainer_class: str = "",
) -> Normalisers:
    """What a micro-batch of TRL is divided by.

    `accumulation_steps` is the trainer's `current_gradient_accumulation_steps`, `num_items_in_batch` what the
    micro-batch holds under that name: tokens of the whole generation batch over all ranks. Where the loss is divided
    only after `_compute_loss` returned it (`divided_afterwards`), the loss computed with these is the divided one.
    """
    version, kind = parsed_version(trl_version), trainer_kind(trainer_class)
    # 0.22 to 0.26 divided in evaluation as well.
    accumulates = training or (kind != "rloo" and (0, 22) <= version < (0, 27))
    steps = accumulation_steps if accumulates else 1
    tokens = None
    if num_items_in_batch is not None and kind not in ("rloo", "gmpo") and loss_type in UPDATE_TOKEN_MEANS:
        tokens = max(num_items_in_batch, 1.0) / num_processes
        # num_items_in_batch spans the generation batch; since 1.9.1 it is scaled down to one accumulation window.
        if training and version >= (1, 9, 1) and steps_per_generation:
            tokens *= accumulation_steps / steps_per_generation
    return Normalisers(
        accumulation_steps=steps,
        tokens=tokens,
        length=max_completion_length if loss_type == "dr_grpo" else None,
        data_parallel_size=num_processes,
    )


def divided_afterwards(trl_version: str, trainer_class: str = "") -> bool:
    """Whether the accumulation steps divide the loss only after `_compute_loss` returned it.

    So it was for GRPO up to 0.21, and is for RLOO: `Trainer.training_step` divides.
    """
    return trainer_kind(trainer_class) == "rloo" or parsed_version(trl_version) < (0, 22)


def trainer_kind(trainer_class: str) -> Kind:
    """Whose loss a trainer computes, by its class or its class and those it is derived from."""
    return kind_of([trainer_class], {})

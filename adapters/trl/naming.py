"""The name of what a TRL trainer computes: a registered algorithm's, or one of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from unipo_hooks import algorithms
from unipo_hooks.adapters.trl.versions import CLIPPED_LOSSES, OTHER_LOSSES, Kind
from unipo_hooks.algorithm_spec import AlgorithmSpec, Parts
from unipo_hooks.objective.describe import is_off, parameters, uses

CANDIDATES = (
    "grpo.trl",
    "bnpo_trl",
    "dapo.trl",
    "luspo.trl",
    "cispo.trl",
    "sapo_soft.trl",
    "vespo.trl",
    "gspo.trl",
    "gmpo.trl",
    "rloo_trl",
    "gdpo.trl",
    "lite_ppo",
    "entropy_top_q.trl",
    "overlong_filter.trl",
    "tis.trl",
    "mis.trl",
    "grpo",
    "dr_grpo",
    "luspo",
    "sapo_soft",
    "vespo",
    "gspo",
    "gspo_token",
    "gmpo",
    "gdpo",
    "delta_clip",
    "opsm",
    "overlong_filter",
)
"""Registered algorithms a configuration may be, the first one whose parts are the same counts."""


def named(
    parts: Parts,
    trl_version: str,
    *,
    kind: Kind,
    loss_type: str,
    features: Sequence[tuple[str, str]],
    unknown: Sequence[str],
) -> AlgorithmSpec:
    """The registered algorithm these parts are, with their hyper-parameters, or one of its own.

    `features`: differences from the loss type alone, a word for the id and a few for the name each. `unknown`: what was
    not understood, which makes the algorithm not exact.
    """
    unsure: dict[str, Any] = {"exact": False, "inexact": "; ".join(unknown)} if unknown else {}
    known = set(algorithms.ids())
    # An unknown loss is not called by the name of the one that stands for it.
    if kind in ("rloo", "gmpo") or loss_type in CLIPPED_LOSSES | OTHER_LOSSES:
        for name in CANDIDATES:
            if name in known and _shape(algorithms.get(name).parts) == _shape(parts):
                return algorithms.get(name).model_copy(update={"parts": parts, **unsure})
    base = {"rloo": "rloo", "gmpo": "gmpo"}.get(kind) or re.sub(r"[^a-z0-9_]", "_", loss_type.lower())[:40]
    base = base or "unknown"
    words = [word for word, _ in features]
    said = [phrase for _, phrase in features]
    text = f"{base} of TRL" + (f" with {', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else "")
    text += f" with {said[0]}" if len(said) == 1 else ""
    parents = [each for each in (f"{base}.trl", f"{base}_trl", f"{base}_soft.trl", base) if each in known]
    return AlgorithmSpec(
        id=".".join(["trl", "_".join([base, *words])]),
        name=text,
        title=text,
        source=f"TRL {trl_version}",
        family="PPO and GRPO",
        parent=parents[0] if parents else None,
        story=f"What a trainer of TRL {trl_version} computes with the settings of this run: {text}.",
        changed=f"Runs {', '.join(said)}." if said else "",
        evidence="C",
        exact=False,
        inexact="; ".join(
            [*unknown, "put together from the trainer's settings; the run compares it with the trainer's own loss"]
        ),
        parts=parts,
    )


def _shape(parts: Parts) -> list[tuple[str, str, tuple[tuple[str, Any], ...]]]:
    """What has to be equal for two algorithms to differ in numbers alone: parts, and what is chosen in them."""
    shape = []
    for slot, _, use in uses(parts):
        if slot == "constraint" and is_off(use):
            continue
        values = parameters(slot, use)
        chosen = tuple((name, value) for name, value in sorted(values.items()) if isinstance(value, bool | str))
        given = tuple((name, values[name] is None) for name in ("delta", "dual_clip") if name in values)
        shape.append((slot, use.part, (*chosen, *given)))
    return shape

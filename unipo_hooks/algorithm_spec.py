"""The form of an algorithm: one part a slot, with its hyper-parameters, and what a reader should know of it.

An algorithm is data. What its parts compute is code, named once (`unipo_hooks.objective.parts`); nothing branches on an
algorithm's name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SLOTS: dict[str, str] = {
    "filter": "mask",
    "reward": "advantage",
    "baseline": "advantage",
    "scale": "advantage",
    "modulation": "advantage",
    "ratio": "objective",
    "bounds": "objective",
    "gate": "objective",
    "weight": "objective",
    "mask": "mask",
    "constraint": "constraint",
    "aggregation": "aggregation",
}
"""Slot → the heading of UNIPO's it refines: advantage, per-token objective, constraint, mask or aggregation."""

HEADINGS: dict[str, str] = {
    "advantage": "Advantage",
    "objective": "Per-token objective",
    "constraint": "Constraint",
    "mask": "Mask",
    "aggregation": "Aggregation",
}
"""UNIPO's five levels, in reading order."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PartUse(BaseModel):
    """A part, by name, and the hyper-parameters it is used with: `{"part": "group_std", "eps": 1e-6}`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    part: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters given here; the part's own defaults stand for the rest."""
        return dict(self.__pydantic_extra__ or {})


class Parts(_Model):
    """One part a slot; slots that hold a list apply their parts in order, and an empty list does nothing."""

    filter: list[PartUse] = []
    """Which responses take part at all, and how often."""
    reward: list[PartUse] = []
    """What is made of the rewards before they are compared."""
    baseline: PartUse = PartUse(part="none")
    """What a reward is compared with."""
    scale: list[PartUse] = []
    """What the difference is divided by."""
    modulation: list[PartUse] = []
    """How the advantage changes from token to token."""
    ratio: PartUse = PartUse(part="token")
    """How far the policy has moved, at which level, against which policy."""
    bounds: PartUse = PartUse(part="unbounded")
    """Where the gate bends."""
    gate: PartUse
    """What the ratio and the advantage make of a token."""
    weight: list[PartUse] = []
    """Detached factors on the policy term."""
    mask: list[PartUse] = []
    """Further tokens that do not count, and whether they leave the denominator."""
    constraint: list[PartUse] = []
    """Terms beside the policy term: a pull towards another policy, an entropy bonus."""
    aggregation: PartUse
    """What share of the loss a token is."""


class Component(_Model):
    """One part of a mixture: the rows it is for, and the slots in which it differs from the algorithm."""

    source: int
    """Rows whose `source` is this number: 0 sampled by the policy, 1 and above from elsewhere."""
    coefficient: float = 1.0
    denominator: Literal["own", "all"] = "own"
    """`own`: aggregated over its own rows; `all`: over every row of the batch."""
    statistics: Literal["own", "all"] = "all"
    """Whose rewards the advantage is compared with."""
    parts: dict[str, Any] = {}
    """Slots in which the component differs."""


class AlgorithmSpec(_Model):
    """An algorithm as data. The JSON files of the registry, of users and of a bundle's manifest have this form."""

    id: str
    """Unique and lower case; a library or paper stands behind a dot where the numbers differ: `dapo.trl`."""
    name: str
    title: str = ""
    year: int | None = None
    source: str = ""
    family: str = ""
    """One of the families of `unipo-hooks algorithms`."""
    parent: str | None = None
    """Id of the algorithm it changed."""
    story: str = ""
    """What it is and why, in one paragraph."""
    changed: str = ""
    """What it changed against its parent, in one sentence."""
    evidence: str = ""
    """How the definition is known: X executed, C read in code, P from the paper, 2 second hand, U unverified."""
    exact: bool = False
    """Whether all of its parts were compared with running code: a trainer's, its authors' or another library's."""
    inexact: str = ""
    """Why not, where not all of them were."""
    parts: Parts
    mixture: list[Component] = []
    display: dict[str, Any] | None = None
    """Cards and bindings of UNIPO's own format, of an algorithm that is only shown."""

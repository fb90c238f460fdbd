"""Everything that is written as JSON, as pydantic models.

Two families. The *canonical run* is UNIPO's own format (arXiv 2605.11549), which `unipo-hooks export --canonical`
writes. The *bundle* models are the lines and files of a bundle (see `unipo_hooks.bundle.layout`). JSON Schemas of both
are generated from here into `unipo_hooks/schemas/` (`make schemas`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from unipo_hooks.algorithm_spec import AlgorithmSpec
from unipo_hooks.errors import BundleError

FORMAT = "unipo-bundle"
VERSION = "1.0"
"""Bundle version, `major.minor`: the major number changes only when a meaning changes."""

Kind = Literal["train", "eval"]
Span = tuple[int, int]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


# --- UNIPO's canonical run -----------------------------------------------------------------------------------------


class Tokens(_Model):
    """Per-token arrays of one response, all of the same length; `None` where a value was never computed."""

    ids: list[int]
    strings: list[str]
    log_probs: list[float | None] | None = None
    old_log_probs: list[float | None] | None = None
    ref_log_probs: list[float | None] | None = None
    values: list[float | None] | None = None
    advantages: list[float | None] | None = None
    returns: list[float | None] | None = None
    token_kl: list[float | None] | None = None
    rewards: list[float | None] | None = None
    token_objective: list[float | None] | None = None
    mask: list[int] | None = None
    mask_reason: list[int] | None = None
    rollout_log_probs: list[float | None] | None = None
    is_weights: list[float | None] | None = None
    entropies: list[float | None] | None = None
    policy_mask: list[float | None] | None = None


class Response(_Model):
    """One sampled response of a prompt."""

    id: str
    reward: float | None
    advantage: float | None = None
    response_text: str
    response_length: int
    reward_components: dict[str, float | None] | None = None
    tokens: Tokens


class Prompt(_Model):
    """A prompt and the responses of its group that this update trained on."""

    prompt: str
    responses: list[Response]


class Entry(_Model):
    """One model update; `step` is the update's number, counted from 0."""

    step: int
    is_first_step_after_rollout_phase: bool
    metrics: dict[str, float | None]
    prompts: list[Prompt] = []


class Header(_Model):
    """What was trained, on what, and how."""

    task: str = ""
    dataset: str = ""
    reward_strategy: str = ""
    algorithm: str
    totalSteps: int | None = None
    model_name: str = ""
    reference_model_name: str | None = None
    hparams: dict[str, Any] = {}


class CanonicalRun(_Model):
    """UNIPO's canonical run: a header and one entry a model update."""

    header: Header
    entries: list[Entry]


# --- the bundle ----------------------------------------------------------------------------------------------------


class Trainer(_Model):
    """The library that trained, and how it was set up."""

    library: str
    version: str
    trainer_class: str
    settings: dict[str, Any] = {}


class Attempt(_Model):
    """One start of the trainer; a resumed run has several."""

    attempt: int
    started: str
    first_update: int = 0
    ended: str | None = None
    status: Literal["running", "finished", "interrupted"] = "running"
    algorithm: dict[str, Any] | None = None
    """The algorithm that ran from here on, in the form of `AlgorithmSpec`: settings may change when a run resumes."""
    algorithm_notes: list[str] = []
    """What of the trainer's settings is not understood, and why a loss could not be recomputed."""
    reward_weights: list[float] = []
    """Weight of each reward function; empty where all count the same."""
    ranks: int | None = None
    """Processes that trained together in this start, a rank each; `None` where as many as the manifest says."""


class Lost(_Model):
    """What was captured and could not be kept."""

    rollouts: int = 0
    updates: int = 0
    evaluations: int = 0
    """Passes of evaluations."""
    tokens: int = 0
    bytes: int = 0
    reconciliations: int = 0
    """Updates whose loss was not recomputed because the queue was filling up; nothing of them is missing."""
    reason: str | None = None


class Cost(_Model):
    """What capture cost so far, in seconds and bytes."""

    hook_seconds: float = 0.0
    writer_cpu_seconds: float = 0.0
    segment_bytes: int = 0


class RankFile(_Model):
    """`rank.r1.json`: what the manifest says of rank 0 alone, of another rank; atomically replaced by that rank."""

    created: str
    """As in the run's manifest: tells the files of one run from those of another."""
    rank: int
    attempt: int
    status: Literal["running", "finished", "interrupted"] = "running"
    channels: list[str] = []
    algorithm_notes: list[str] = []
    lost: Lost = Lost()
    cost: Cost = Cost()


class Manifest(_Model):
    """`manifest.json`: written by rank 0 alone, atomically replaced."""

    format: Literal["unipo-bundle"] = "unipo-bundle"
    version: str = VERSION
    created: str
    status: Literal["running", "finished", "interrupted"] = "running"
    header: Header
    trainer: Trainer
    ranks: int = 1
    channels: list[str] = []
    reward_names: list[str] = []
    policy: dict[str, Any] = {}
    algorithms: list[dict[str, Any]] = []
    """Algorithms the user registered, in the same form: data only."""
    attempts: list[Attempt]
    lost: Lost = Lost()
    cost: Cost = Cost()

    def attempt(self, number: int) -> Attempt:
        """The attempt of this number. Raises BundleError where the manifest has none."""
        for attempt in self.attempts:
            if attempt.attempt == number:
                return attempt
        raise BundleError(f"the manifest has no attempt {number}")

    def ranks_of(self, attempt: int) -> int:
        """Ranks that trained together in an attempt."""
        return next((each.ranks for each in self.attempts if each.attempt == attempt and each.ranks), self.ranks)

    @property
    def algorithm(self) -> dict[str, Any] | None:
        """The algorithm of the newest attempt; an earlier one may have run another."""
        return self.attempts[-1].algorithm

    @property
    def algorithm_notes(self) -> list[str]:
        """What is said of the newest attempt's algorithm."""
        return self.attempts[-1].algorithm_notes

    @property
    def reward_weights(self) -> list[float]:
        """Reward weights of the newest attempt."""
        return self.attempts[-1].reward_weights


class RolloutLine(_Model):
    """Index line of a rollout: where its rows are, and how its groups were sampled."""

    entry: Literal["rollout"] = "rollout"
    kind: Kind = "train"
    attempt: int
    rollout: int
    step: int
    time: float
    segment: str
    responses: Span
    tokens: Span
    groups: int
    """Prompt groups of the rollout, over all ranks."""
    kept: list[int] | None = None
    """Groups whose tokens were kept; `None` for all of them."""
    weight: float = 1.0
    """Groups of the rollout ÷ groups kept: the sampling weight of a kept group."""
    aliases: dict[str, str] = {}
    """Channels equal to another by construction, stored once: `{"old_log_probs": "log_probs"}`."""


class MicroBatchLine(_Model):
    """What the loss of one forward pass was divided by, and what it came to."""

    rollout: int
    rows: int
    tokens: int
    """Tokens of it that count in the loss."""
    loss: float | None = None
    """The trainer's loss as returned, already divided for accumulation."""
    num_items_in_batch: float | None = None
    entropy_coef: float | None = None
    entropy_bonus: float | None = None
    router_loss: float | None = None
    dtype: str = "float32"
    update_tokens: float | None = None
    """Tokens a token mean over the whole update divides by, per data-parallel rank."""
    update_rows: float | None = None
    """Responses a mean over the whole update divides by, per data-parallel rank."""
    width: int | None = None
    """Token positions it was padded to."""
    counted_rows: int | None = None
    """Responses of it that have a token that counts."""
    groups: int | None = None
    """Prompt groups of it that have a token that counts."""
    loss_gap: float | None = None
    """Loss recomputed from what was captured minus the trainer's; absent where it could not be recomputed."""
    loss_tolerance: float | None = None
    """The largest gap that rounding explains."""
    token_gap: float | None = None
    """Largest difference of one token's loss, relative to max(1, the largest)."""
    data_parallel_rank: int | None = None
    """Data-parallel rank that made the pass, where one index holds those of several; `None`: the index's own rank.

    The loss of the update is the sum over its forward passes ÷ `data_parallel_size`, whichever way ranks write.
    """


class UpdateLine(_Model):
    """Index line of an update (or of one evaluation forward pass, `kind: eval`)."""

    entry: Literal["update"] = "update"
    kind: Kind = "train"
    attempt: int
    update: int
    step: int
    time: float
    rollouts: list[int]
    is_first_step_after_rollout_phase: bool
    segment: str
    responses: Span
    tokens: Span
    accumulation_steps: int = 1
    data_parallel_size: int = 1
    length_constant: int | None = None
    micro_batches: list[MicroBatchLine] = []


class MetricsLine(_Model):
    """Metrics line of an update, captured or not: `[sum, count, sum of squares]` of each metric on this rank."""

    entry: Literal["metrics"] = "metrics"
    kind: Kind = "train"
    attempt: int
    update: int
    step: int
    time: float
    rollouts: list[int]
    is_first_step_after_rollout_phase: bool
    captured: bool
    sums: dict[str, tuple[float, float, float]]
    scalars: dict[str, float | None] = {}


class LogLine(_Model):
    """Metrics line of what the trainer itself logged (grad_norm, its own loss), keyed by update."""

    entry: Literal["log"] = "log"
    kind: Kind = "train"
    attempt: int
    update: int
    step: int
    scalars: dict[str, float | None]


class Earlier(_Model):
    """What earlier attempts left in a bundle: the numbers that are taken. A new bundle has none."""

    kept_rollouts: int = 0
    """Training rollouts whose tokens were kept."""
    next_rollout: dict[str, int] = {"train": 0, "eval": 0}
    """First rollout number of each kind that is free."""
    next_evaluation: int = 0
    segment_bytes: int = 0
    """Bytes of the segments of all ranks."""


class Joined(_Model):
    """What rank 0 tells the others of a start of capture, so that all write to one bundle in the same numbers."""

    folder: str
    """Name of the bundle's folder, beside what was asked for."""
    created: str
    attempt: int
    earlier: Earlier


JSON_SCHEMAS: dict[str, type[BaseModel]] = {
    "canonical_run": CanonicalRun,
    "manifest": Manifest,
    "rank": RankFile,
    "rollout_line": RolloutLine,
    "update_line": UpdateLine,
    "metrics_line": MetricsLine,
    "log_line": LogLine,
    "algorithm": AlgorithmSpec,
}
"""File stem in `unipo_hooks/schemas/` → the model it is generated from."""

__all__ = [
    "FORMAT",
    "JSON_SCHEMAS",
    "VERSION",
    "Attempt",
    "CanonicalRun",
    "Cost",
    "Earlier",
    "Entry",
    "Header",
    "Joined",
    "LogLine",
    "Lost",
    "Manifest",
    "MetricsLine",
    "MicroBatchLine",
    "Prompt",
    "RankFile",
    "Response",
    "RolloutLine",
    "Span",
    "Tokens",
    "Trainer",
    "UpdateLine",
]

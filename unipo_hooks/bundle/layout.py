"""Where everything in a bundle is. The one place that knows file names and columns.

    bundle/
      manifest.json                                 rank 0 alone, atomically replaced
    rank.r1.json                                  what the manifest says of rank 0, of another rank; one a rank above 0
      index.r0.jsonl                                one line a captured rollout or update: THE commit point; one a rank
      metrics.r0.jsonl                              one line an update, captured or not, and one a trainer log
      segments/r0-000007.responses.parquet          a row a response of a captured rollout
      segments/r0-000007.rollout_tokens.parquet     a row a kept token: what was fixed at the rollout
      segments/r0-000007.update_responses.parquet   a row a response and update
      segments/r0-000007.update_tokens.parquet      a row a kept token and update

Index lines give the segment and the half-open row ranges `[start, end)` of an entry in that segment's files. Inside a
range, rows of one response are contiguous and in token order, for rollout tokens and update tokens alike: they join by
position once joined by (kind, rollout, row). An update may train on a response twice, in two micro-batches (TRL does
where it accumulates over iterations); `micro_batch` tells them apart. A file without rows is not written; a channel
without data has no column; a value that was never computed is NaN.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

MANIFEST = "manifest.json"
SEGMENTS = "segments"
VIEWER = "index.html"

RESPONSES = "responses"
ROLLOUT_TOKENS = "rollout_tokens"
UPDATE_RESPONSES = "update_responses"
UPDATE_TOKENS = "update_tokens"
TABLES = (RESPONSES, ROLLOUT_TOKENS, UPDATE_RESPONSES, UPDATE_TOKENS)

REQUIRED_COLUMNS: dict[str, tuple[str, ...]] = {
    RESPONSES: ("kind", "rollout", "row", "group", "prompt", "length", "counted", "kept", "reward"),
    ROLLOUT_TOKENS: ("kind", "rollout", "row", "ids", "strings", "mask"),
    UPDATE_RESPONSES: ("kind", "update", "rollout", "row", "micro_batch", "counted", "log_ratio_sum"),
    UPDATE_TOKENS: ("kind", "update", "rollout", "row", "micro_batch", "log_probs"),
}
"""Columns every file of a table has; the channels come on top.

`responses`: `group` is the prompt group, numbered over all ranks; `prompt` what the model saw, decoded; `messages` the
conversation as JSON where there is one; `length` in tokens, `counted` those that count in the loss; `kept` whether its
tokens were kept; `reward`, and `reward_components.N` for the reward function named `reward_names[N]` in the manifest;
`labels.NAME` what the trainer says of a response under that name, text or a float64, null or NaN where it says nothing.
`micro_batch` numbers the forward passes of an update. `update_responses`: `log_ratio_sum` and `token_kl_sum` are sums
over the tokens that count; NaN for a response whose tokens were never handed over.
"""

_SEGMENT = re.compile(r"r(\d+)-(\d{6,})")


def index_name(rank: int) -> str:
    """File name of a rank's index."""
    return f"index.r{rank}.jsonl"


def metrics_name(rank: int) -> str:
    """File name of a rank's metrics."""
    return f"metrics.r{rank}.jsonl"


def rank_name(rank: int) -> str:
    """File name of what a rank above 0 says of itself."""
    return f"rank.r{rank}.json"


def reserve_name(rank: int) -> str:
    """File name of the room a rank keeps on the disk while it writes; it has no content."""
    return f"reserve.r{rank}.tmp"


def segment_name(rank: int, number: int) -> str:
    """Name of a rank's n-th segment, as index lines give it."""
    return f"r{rank}-{number:06d}"


def segment_number(rank: int, file_name: str) -> int | None:
    """Number of the segment a file belongs to, or None where it is not a segment file of this rank."""
    match = _SEGMENT.match(file_name)
    return int(match.group(2)) if match and int(match.group(1)) == rank else None


def segment_path(segment: str, table: str) -> str:
    """Path of a segment's table, relative to the bundle."""
    return str(PurePosixPath(SEGMENTS) / f"{segment}.{table}.parquet")


COMPONENT = "reward_components."
"""What the columns of the reward functions begin with."""


LABEL = "labels."
"""What the columns of what a trainer says of a response begin with; its own name for it follows."""


def component_column(number: int) -> str:
    """Column of the n-th reward function. Numbered: names come from the user and may collide."""
    return f"{COMPONENT}{number}"

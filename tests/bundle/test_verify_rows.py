"""`verify` on bundles whose rows do not fit, one thing wrong each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle.builder import Builder, response, simple, token

from unipo_hooks.bundle.verify import verify

INDEX = "index.r0.jsonl"


def said(path: Path) -> list[str]:
    """Faults and notes as text, notes marked."""
    return [f"{fault} [note]" if fault.severity == "note" else str(fault) for fault in verify(path)]


RESPONSES, TOKENS = ("r0-000000", "responses"), ("r0-000000", "rollout_tokens")
U_RESPONSES, U_TOKENS = ("r0-000000", "update_responses"), ("r0-000000", "update_tokens")


def put(table: tuple[str, str], place: int, /, **values: Any) -> Callable[[Builder], None]:
    """Change values of one row of a table."""
    return lambda built: built.tables[table][place].update(values)


def line(number: int, **values: Any) -> Callable[[Builder], None]:
    """Change fields of one index line, numbered from 1."""
    return lambda built: built.index[0][number - 1].update(values)


def without(table: tuple[str, str], row: int, entry: int, spans: str) -> Callable[[Builder], None]:
    """Take one row away from the last entry of a table, and from its row range."""

    def change(built: Builder) -> None:
        del built.tables[table][row]
        built.index[0][entry - 1][spans][1] -= 1

    return change


def swap(table: tuple[str, str], a: int, b: int) -> Callable[[Builder], None]:
    def change(built: Builder) -> None:
        rows = built.tables[table]
        rows[a], rows[b] = rows[b], rows[a]

    return change


R, T = "segments/r0-000000.responses.parquet", "segments/r0-000000.rollout_tokens.parquet"
UR, UT = "segments/r0-000000.update_responses.parquet", "segments/r0-000000.update_tokens.parquet"

ROWS: dict[str, tuple[Callable[[Builder], None], list[str]]] = {
    "range beyond the file": (
        line(1, responses=[0, 9]),
        [f"{INDEX}:1: rows [0, 9) of {R}, which has 4"],
    ),
    "token range beyond the file": (
        line(3, tokens=[5, 60]),
        [f"{INDEX}:3: rows [5, 60) of {UT}, which has 6"],
    ),
    "no range": (
        line(1, responses=[3, 1]),
        [f"{INDEX}:1: [3, 1) is not a row range"],
    ),
    "negative range": (
        line(1, tokens=[-1, 5]),
        [f"{INDEX}:1: [-1, 5) is not a row range"],
    ),
    "overlapping ranges": (
        line(3, tokens=[4, 6]),
        [
            f"{INDEX}:3: rows [4, 6) of {UT} overlap those of line 2",
            f"{INDEX}:3: update is not 1 (row 4 of {UT})",
            f"{INDEX}:3: a token's row is no response of its micro-batch (row 4 of {UT})",
        ],
    ),
    "kind of a response": (put(RESPONSES, 1, kind="eval"), [f"{INDEX}:1: kind is not train (row 1 of {R})"]),
    "kind nobody knows": (put(TOKENS, 1, kind="test"), [f"{INDEX}:1: kind is not train (row 1 of {T})"]),
    "kind of an update's response": (
        put(U_RESPONSES, 1, kind="eval"),
        [f"{INDEX}:2: kind is not train (row 1 of {UR})"],
    ),
    "kind of an update's token": (put(U_TOKENS, 5, kind="eval"), [f"{INDEX}:3: kind is not train (row 5 of {UT})"]),
    "rollout of responses": (
        lambda b: [r.update(rollout=7) for r in b.tables[RESPONSES]] and None,
        [f"{INDEX}:1: rollout is not 0 (row 0 and 3 more of {R})"],
    ),
    "rollout of a token": (put(TOKENS, 2, rollout=1), [f"{INDEX}:1: rollout is not 0 (row 2 of {T})"]),
    "update of a response": (put(U_RESPONSES, 2, update=0), [f"{INDEX}:3: update is not 1 (row 2 of {UR})"]),
    "update of a token": (put(U_TOKENS, 5, update=0), [f"{INDEX}:3: update is not 1 (row 5 of {UT})"]),
    "rollout of an update's response": (
        put(U_RESPONSES, 3, rollout=4),
        [f"{INDEX}:3: rollout is none of those the line names (row 3 of {UR})"],
    ),
    "a response twice": (
        put(RESPONSES, 2, row=1),
        [
            f"{INDEX}:1: a row appears twice (row 2 of {R})",
            f"{INDEX}:1: length is not the number of its tokens (row 2 of {R})",
            f"{INDEX}:1: counted is not the sum of its mask (row 2 of {R})",
            f"{INDEX}:3: a row is no response of its rollout (row 3 of {UR})",
        ],
    ),
    "tokens of two responses mixed": (
        swap(TOKENS, 2, 3),
        [f"{INDEX}:1: tokens of a row are apart (row 3 of {T})"],
    ),
    "update tokens of two responses mixed": (
        swap(U_TOKENS, 1, 2),
        [f"{INDEX}:2: tokens of a row are apart (row 2 and 1 more of {UT})"],
    ),
    "tokens of no response": (
        put(TOKENS, 3, row=9),
        [
            f"{INDEX}:1: a token's row is no response of the rollout (row 3 of {T})",
            f"{INDEX}:1: length is not the number of its tokens (row 1 of {R})",
            f"{INDEX}:1: counted is not the sum of its mask (row 1 of {R})",
            f"{INDEX}:3: a row has another number of tokens than in its rollout (row 2 of {UR})",
        ],
    ),
    "length": (put(RESPONSES, 0, length=4), [f"{INDEX}:1: length is not the number of its tokens (row 0 of {R})"]),
    "counted": (put(RESPONSES, 0, counted=3), [f"{INDEX}:1: counted is not the sum of its mask (row 0 of {R})"]),
    "mask": (
        put(TOKENS, 3, mask=2),
        [
            f"{INDEX}:1: mask is neither 0 nor 1 (row 3 of {T})",
            f"{INDEX}:1: counted is not the sum of its mask (row 1 of {R})",
        ],
    ),
    "tokens of a response that was not kept": (
        put(RESPONSES, 1, kept=False),
        [f"{INDEX}:1: a response that was not kept has tokens (row 1 of {R})"],
    ),
    "kept groups": (
        line(1, kept=[0]),
        [f"{INDEX}:1: kept disagrees with the groups the line says were kept (row 2 and 1 more of {R})"],
    ),
    "an update's row that its rollout lacks": (
        put(U_RESPONSES, 3, row=9),
        [f"{INDEX}:3: a row is no response of its rollout (row 3 of {UR})"],
    ),
    "an update's row twice in a micro-batch": (
        put(U_RESPONSES, 3, row=1),
        [f"{INDEX}:3: a row appears twice in a micro-batch (row 3 of {UR})"],
    ),
    "a token in another micro-batch": (
        put(U_TOKENS, 4, micro_batch=0),
        [
            f"{INDEX}:2: a token's row is no response of its micro-batch (row 4 of {UT})",
            f"{INDEX}:2: a row has another number of tokens than in its rollout (row 1 of {UR})",
        ],
    ),
    "tokens of no response of the update": (
        put(U_TOKENS, 5, row=0),
        [
            f"{INDEX}:3: a token's row is no response of its micro-batch (row 5 of {UT})",
            f"{INDEX}:3: a row has another number of tokens than in its rollout (row 2 of {UR})",
        ],
    ),
    "micro_batch": (
        put(U_RESPONSES, 2, micro_batch=1),
        [
            f"{INDEX}:3: micro_batch is none of those the line lists (row 2 of {UR})",
            f"{INDEX}:3: a token's row is no response of its micro-batch (row 5 of {UT})",
            f"{INDEX}:3: a row has another number of tokens than in its rollout (row 2 of {UR})",
        ],
    ),
    "log_probs": (put(U_TOKENS, 1, log_probs=0.5), [f"{INDEX}:2: log_probs is positive or infinite (row 1 of {UT})"]),
    "log_probs without end": (
        put(U_TOKENS, 1, log_probs=-math.inf),
        [f"{INDEX}:2: log_probs is positive or infinite (row 1 of {UT})"],
    ),
    "log_probs a rounding error above 0": (put(U_TOKENS, 1, log_probs=5e-4), []),
    "log_probs never computed": (put(U_TOKENS, 1, log_probs=math.nan), []),
    "rollout_log_probs": (
        lambda b: [t.update(rollout_log_probs=9.0) for t in b.tables[TOKENS]] and None,
        [f"{INDEX}:1: rollout_log_probs is positive or infinite (row 0 and 5 more of {T})"],
    ),
    "rollout without an index line": (
        line(1, rollout=5),
        [
            f"{INDEX}:1: rollout is not 5 (row 0 and 3 more of {R})",
            f"{INDEX}:1: rollout is not 5 (row 0 and 5 more of {T})",
            f"{INDEX}:2: rollout 0, which it trains on, has no index line (row 0 and 1 more of {UR})",
            f"{INDEX}:3: rollout 0, which it trains on, has no index line (row 2 and 1 more of {UR})",
        ],
    ),
}


@pytest.mark.parametrize(("change", "faults"), ROWS.values(), ids=ROWS.keys())
def test_rows_that_do_not_fit_are_named_at_their_index_line(
    tmp_path: Path, change: Callable[[Builder], None], faults: list[str]
):
    built = simple(tmp_path)
    change(built)
    assert said(built.write()) == faults


def test_an_update_with_fewer_tokens_than_its_rollout_is_named(tmp_path: Path):
    rows = [response(0, [token(1), token(2)]), response(1, [token(3)])]
    built = Builder(tmp_path).rollout(0, rows).update(0, [(0, rows[0]), (0, rows[1])])
    without(U_TOKENS, 0, 2, "tokens")(built)
    assert said(built.write()) == [f"{INDEX}:2: a row has another number of tokens than in its rollout (row 0 of {UR})"]


def test_an_update_may_train_on_a_response_in_two_micro_batches(tmp_path: Path):
    rows = [response(0, [token(1), token(2)]), response(1, [token(3)])]
    twice = [(0, rows[1]), (0, rows[0]), (0, rows[0]), (0, rows[1])]
    built = Builder(tmp_path).rollout(0, rows).update(0, twice, micro_batches=2)
    assert said(built.write()) == []
    for table in (U_RESPONSES, U_TOKENS):
        for row in built.tables[table]:
            row["micro_batch"] = 0
    assert said(built.write()) == [
        f"{INDEX}:2: a row appears twice in a micro-batch (row 2 and 1 more of {UR})",
        f"{INDEX}:2: tokens of a row are apart (row 5 of {UT})",
        f"{INDEX}:2: a row has another number of tokens than in its rollout (row 0 and 3 more of {UR})",
    ]


def test_an_update_may_name_rollouts_that_were_not_captured(tmp_path: Path):
    rows = [response(0, [token(1)])]
    built = Builder(tmp_path).rollout(1, rows).update(0, [(1, rows[0])], rollouts=[0, 1, 2])
    assert said(built.write()) == []
    built.tables[U_RESPONSES].append({**built.tables[U_RESPONSES][0], "rollout": 2})
    built.index[0][1]["responses"] = [0, 2]
    assert said(built.write()) == [f"{INDEX}:2: rollout 2, which it trains on, has no index line (row 1 of {UR})"]


def test_an_update_of_which_no_tokens_were_stored_is_sound(tmp_path: Path):
    rows = [response(0, [token(1), token(2)])]
    built = Builder(tmp_path).rollout(0, rows).update(0, [(0, rows[0])])
    built.tables[U_TOKENS].clear()
    built.index[0][1]["tokens"] = [0, 0]
    assert said(built.write()) == []

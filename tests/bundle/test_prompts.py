"""The text of a prompt: what the model saw, with one marker for each image."""

import numpy as np
import pytest
import records

from unipo_hooks.bundle.rows import rollout_rows
from unipo_hooks.text import TokenText

IMAGE, BREAK, SOUND = 100, 101, 102
PLACEHOLDERS = {IMAGE: "image", BREAK: "image", SOUND: "audio"}


def prompts(ids, placeholders=PLACEHOLDERS):
    rollout = records.rollout(rows=2, group_size=2, prompts=[np.array(ids, np.int64)] * 2)
    tables = rollout_rows(rollout, None, TokenText(records.decode), placeholders)
    first, second = tables["responses"]["prompt"].to_pylist()
    assert first == second
    return first


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([0, *[IMAGE] * 4, 1], "a⟨image, 4 tokens⟩b"),
        ([IMAGE], "⟨image, 1 token⟩"),
        ([0, IMAGE, 1, IMAGE, IMAGE], "a⟨image, 1 token⟩b⟨image, 2 tokens⟩"),
        ([IMAGE, IMAGE, BREAK, IMAGE, IMAGE, BREAK, 0], "⟨image, 6 tokens⟩a"),
        ([IMAGE, SOUND, SOUND, 2], "⟨image, 1 token⟩⟨audio, 2 tokens⟩c"),
        ([0, 1, 2], "abc"),
        ([], ""),
    ],
    ids=str,
)
def test_neighbours_that_stand_for_the_same_are_one_marker_with_their_number(ids, text):
    assert prompts(ids) == text


def test_without_placeholders_the_prompt_is_the_tokenizers_decode():
    ids = [0, IMAGE, IMAGE, 1, SOUND]
    assert prompts(ids, {}) == prompts(ids, None) == records.decode(ids)

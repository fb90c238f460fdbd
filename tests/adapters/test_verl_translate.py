"""From verl's names to the canonical ones: what is read of a batch becomes the record of a rollout, value for value."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unipo_hooks.adapters.verl.batches import EVERYWHERE, RETURNS, SAMPLED, TOKENS, Rows
from unipo_hooks.adapters.verl.translate import (
    CHANNELS,
    RESPONSE_LEVEL,
    advantages_of,
    captured_rollout,
    groups_of,
    reward_names,
)
from unipo_hooks.record import valid_positions

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def jagged(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


class Responses:
    """A batch of responses with holes and rejected tokens, as verl would have it: jagged, or padded on the right."""

    def __init__(self, lengths: list[int], seed: int, *, estimator: str = "grpo") -> None:
        random = np.random.default_rng(seed)
        self.lengths = np.array(lengths)
        self.uids = [f"u{random.integers(3)}" for _ in lengths]
        self.sampled = [random.random(n) < 0.8 for n in lengths]  # the rest tools wrote
        self.counted = [row & (random.random(len(row)) < 0.8) for row in self.sampled]  # the rest was rejected
        of_token = estimator not in RESPONSE_LEVEL
        self.columns = {
            name: [random.normal(size=n).astype(np.float32) for n in lengths]
            for name in (*CHANNELS, "rm_scores", "advantages")
        }
        if not of_token:
            self.columns["advantages"] = [
                np.where(mask, np.float32(random.normal()), 0).astype(np.float32) for mask in self.counted
            ]
        self.columns |= {
            "response_mask": [row.astype(np.int64) for row in self.counted],
            "loss_mask": [row.astype(np.int64) for row in self.sampled],
            "responses": [random.integers(1, 99, n) for n in lengths],
        }
        for values, sampled in zip(self.columns["rollout_log_probs"], self.sampled, strict=True):
            values[~sampled] = 0  # as verl has it
        self.prompts = [torch.as_tensor(random.integers(1, 99, random.integers(1, 4))) for _ in lengths]
        self.extras = [
            {"acc": bool(random.integers(2)), "tries": int(random.integers(9)), "note": f"row {row}", "more": [row]}
            for row in range(len(lengths))
        ]

    def tensor(self, name: str, rows, *, padded: bool) -> torch.Tensor:
        chosen = [self.columns[name][row] for row in rows]
        if not padded:
            return jagged(chosen)
        out = np.zeros((len(chosen), self.lengths.max() + 2), chosen[0].dtype)
        for row, values in zip(out, chosen, strict=True):
            row[: len(values)] = values
        return torch.as_tensor(out)

    def rows(self, rows, names, *, padded: bool, prompts: bool) -> Rows:
        tensors = {name: self.tensor(name, rows, padded=padded) for name in names}
        return Rows(tensors, self.lengths[list(rows)], [self.prompts[row] for row in rows] if prompts else [])

    def record(self, handed_over, *, estimator: str, padded: bool, **more):
        everyone = range(len(self.lengths))
        group_B = groups_of(self.uids)
        kept_b = np.flatnonzero(np.isin(group_B, list(set(group_B)) if handed_over is None else handed_over))
        nothing = Rows({}, np.empty(0, np.int64), [])
        settings = {
            "rollout": 3,
            "step": 4,
            "group_B": group_B,
            "handed_over": handed_over,
            "uids": self.uids,
            "labels": {"reward_extra_info": self.extras, "data_source": ["gsm8k"] * len(everyone)},
            "reward_names": reward_names(self.extras),
            "estimator": estimator,
            "rejects": False,
        }
        return captured_rollout(
            self.rows(everyone, (*EVERYWHERE, SAMPLED), padded=padded, prompts=bool(len(kept_b))),
            self.rows(kept_b, (*TOKENS, RETURNS), padded=padded, prompts=False) if len(kept_b) else nothing,
            kept_b,
            **(settings | more),
        )


def record_of(everywhere: Rows, kept: Rows | None, *, rejects: bool = False):
    """The record of rows of one group, of which either all are kept or none."""
    rows = len(everywhere.length_b)
    return captured_rollout(
        everywhere,
        kept or Rows({}, np.empty(0, np.int64), []),
        np.arange(rows if kept else 0),
        rollout=0,
        step=1,
        group_B=np.zeros(rows, np.int64),
        handed_over=None if kept else [],
        labels={"reward_extra_info": [{}] * rows},
        uids=["a"] * rows,
        reward_names=(),
        estimator="gae",
        rejects=rejects,
    )


@given(LENGTHS, st.integers(0, 2**32), st.sampled_from(["grpo", "gae"]), st.booleans(), st.data())
def test_every_value_arrives_and_nothing_else(lengths, seed, estimator, padded, data):
    batch = Responses(lengths, seed, estimator=estimator)
    groups = len(set(batch.uids))
    handed_over = data.draw(st.none() | st.lists(st.integers(0, groups - 1), unique=True))
    rollout = batch.record(handed_over, estimator=estimator, padded=padded)
    width = max(lengths)
    assert rollout.ids_BT.shape == rollout.mask_BT.shape == (len(lengths), width)
    assert rollout.labels["uid"] == batch.uids and rollout.groups == groups
    assert rollout.rollout == 3 and rollout.step == 4 and rollout.handed_over == handed_over
    kept = np.isin(rollout.group_B, range(groups) if handed_over is None else handed_over)
    names = {channel: name for name, channel in CHANNELS.items()}
    assert not kept.any() or set(names) <= set(rollout.channels)
    for row, length in enumerate(lengths):
        assert np.array_equal(rollout.mask_BT[row, :length], batch.counted[row])
        assert not rollout.mask_BT[row, length:].any()
        assert rollout.reward_B[row] == pytest.approx(batch.columns["rm_scores"][row].sum(), abs=1e-5)
        if rollout.mask_reason_BT is not None:
            expected = np.where(batch.counted[row], 0, np.where(batch.sampled[row], 3, 1))
            assert np.array_equal(rollout.mask_reason_BT[row, :length], expected)
            assert not rollout.mask_reason_BT[row, length:].any()
        for channel, name in names.items():
            if channel not in rollout.channels:
                assert not kept.any()
                continue
            values = rollout.channels[channel][row]
            assert values.dtype == np.float32 and np.isnan(values[length:]).all()
            if not kept[row]:
                assert np.isnan(values).all()
            elif channel == "rollout_log_probs":  # 0 stands where tools wrote, which nothing sampled
                own = np.where(batch.sampled[row], batch.columns[name][row], np.nan)
                assert np.array_equal(values[:length], own, equal_nan=True)
            else:
                assert np.array_equal(values[:length], batch.columns[name][row])
        if kept[row]:
            assert np.array_equal(rollout.ids_BT[row, :length], batch.columns["responses"][row])
        else:
            assert not rollout.ids_BT[row].any()
        assert np.array_equal(rollout.prompts[row], batch.prompts[row] if kept.any() else [])
        advantages, spread = rollout.channels["advantages"][row], batch.columns["advantages"][row]
        if rollout.channels["advantages"].ndim == 1:
            assert np.array_equal(np.where(batch.counted[row], advantages, 0), np.where(batch.counted[row], spread, 0))
        else:
            assert np.array_equal(advantages[:length], spread) and np.isnan(advantages[length:]).all()


@given(LENGTHS, st.integers(0, 2**32))
def test_an_estimator_that_spreads_one_advantage_gives_one_a_response(lengths, seed):
    batch = Responses(lengths, seed)
    advantages = batch.record(None, estimator="grpo", padded=False).channels["advantages"]
    assert advantages.shape == (len(lengths),) and advantages.dtype == np.float32
    for row, mask in enumerate(batch.counted):
        assert advantages[row] == (batch.columns["advantages"][row][mask][0] if mask.any() else 0)


@pytest.mark.parametrize("estimator", ["gae", "reinforce_plus_plus", "optimal_token_baseline", "somebodys_own"])
def test_an_estimator_of_tokens_keeps_them_apart_even_where_they_are_equal(estimator):
    mask = np.ones((2, 3), bool)
    advantages = np.ones((2, 3), np.float32)
    assert advantages_of(advantages, mask, mask, estimator).shape == (2, 3)
    assert advantages_of(advantages, mask, mask, "grpo").shape == (2,)


def test_advantages_that_differ_within_a_response_are_kept_whatever_the_estimator_is_called():
    mask = valid_positions(np.array([3, 2]), 3)
    advantages = np.array([[1, 2, 3], [4, 5, 0]], np.float32)
    kept = advantages_of(advantages, mask, mask, "users_own")
    assert np.array_equal(kept, np.where(mask, advantages, np.nan), equal_nan=True)


@pytest.mark.parametrize(("rejects", "reason"), [(False, 1), (True, 3)])
def test_without_a_mask_of_what_was_sampled_the_settings_say_why_a_token_does_not_count(rejects, reason):
    batch = Responses([3, 2], 0)
    batch.counted = [np.array([True, False, True]), np.array([True, True])]
    everywhere = batch.rows(range(2), ("rm_scores", "advantages"), padded=True, prompts=False)
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]])
    everywhere = Rows({**everywhere.tensors, "response_mask": mask}, everywhere.length_b, [])
    rollout = record_of(everywhere, None, rejects=rejects)
    assert rollout.mask_reason_BT.tolist() == [[0, reason, 0], [0, 0, 0]]
    assert rollout.messages is None and rollout.reward_components_BK.shape == (2, 0)


def test_where_every_token_counts_no_reason_is_given():
    batch = Responses([3, 2], 0)
    batch.counted = batch.sampled = [np.ones(n, bool) for n in (3, 2)]
    batch.columns["response_mask"] = batch.columns["loss_mask"] = [np.ones(n, np.int64) for n in (3, 2)]
    assert batch.record(None, estimator="gae", padded=False).mask_reason_BT is None


def labels_of(**said):
    rows = len(next(iter(said.values())))
    extras = [{name: values[row] for name, values in said.items()} for row in range(rows)]
    return labelled(extras)


def labelled(extras, **more):
    batch = Responses([2] * len(extras), 1)
    batch.extras = extras
    labels = {"reward_extra_info": extras, **more}
    return batch.record(None, estimator="grpo", padded=False, labels=labels, reward_names=reward_names(extras))


def test_numbers_of_a_reward_function_are_components_and_the_rest_are_labels():
    said = {
        "acc": [True, False],
        "tries": [np.int64(1), 2],
        "time": [0.5, np.float32(1.5)],
        "note": ["a", "b"],
        "where": [{"at": [1]}, {"at": [2]}],
        "some": [3, None],
        "few": [None, 2.5],
        "none": [None, None],
        "mixed": ["a", 2],
    }
    rollout = labels_of(**said)
    assert reward_names([dict(zip(said, row, strict=True)) for row in zip(*said.values(), strict=True)]) == (
        *("acc", "time", "tries"),
    )
    assert rollout.reward_components_BK.tolist() == [[1, 0.5, 1], [0, 1.5, 2]]
    assert rollout.labels["note"] == ["a", "b"]
    assert rollout.labels["where"] == ['{"at": [1]}', '{"at": [2]}']
    assert rollout.labels["mixed"] == ["a", "2"]
    assert rollout.labels["some"] == [3, None] and type(rollout.labels["some"][0]) is int
    assert rollout.labels["few"] == [None, 2.5]
    assert "none" not in rollout.labels and "acc" not in rollout.labels
    json.dumps(rollout.labels)


def test_versions_of_the_weights_stay_whole_numbers():
    rollout = labelled([{}, {}], min_global_steps=[np.int64(3), None], max_global_steps=np.array([4, 5]))
    assert rollout.labels["min_global_steps"] == [3, None]
    assert rollout.labels["max_global_steps"] == [4, 5]
    assert all(type(each) is int for each in rollout.labels["max_global_steps"])


def test_a_value_only_some_responses_have_is_missing_in_the_others():
    rollout = labelled([{"acc": 1.0}, {"acc": 0.0, "why": "wrong"}])
    assert rollout.labels["why"] == [None, "wrong"]
    assert rollout.reward_components_BK.tolist() == [[1], [0]]


def test_conversations_are_json_whatever_holds_them():
    talk = [np.array([{"role": "user", "content": "ä"}]), [{"role": "user", "content": "b"}]]
    rollout = labelled([{}, {}], raw_prompt=talk)
    assert [json.loads(text)[0]["content"] for text in rollout.messages] == ["ä", "b"]


def test_without_token_rewards_the_scores_are_them():
    batch = Responses([3, 2], 5)
    everywhere = batch.rows(range(2), EVERYWHERE, padded=False, prompts=True)
    names = [name for name in TOKENS if name != "token_level_rewards"]
    kept = batch.rows(range(2), names, padded=False, prompts=False)
    rollout = record_of(everywhere, kept)
    scores = batch.columns["rm_scores"]
    assert np.array_equal(rollout.channels["rewards"][0], scores[0])
    assert np.array_equal(rollout.channels["rewards"][1], [*scores[1], np.nan], equal_nan=True)


def test_groups_are_counted_in_the_order_they_first_come():
    assert groups_of(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert groups_of([]).shape == (0,)

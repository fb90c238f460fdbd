"""A batch as verl's driver has it: read as it is, its rows told apart on verl's own way to the loss, left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

# A module inside verl: `verl` alone would be found wherever this folder's parent is on the path.
pytest.importorskip("verl.trainer.ppo", reason="needs verl: make test runs it in .venv-verl")

from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import rearrange_micro_batches

from unipo_hooks.adapters.verl.batches import EVERYWHERE, KEEP, PROMPTS, ROW, TOKENS, ProtoBatch, batch_of
from verl_cpu.pieces import as_trained, proto, put, transfer_queue_running

ROWS, PROMPT, RESPONSE = 8, 5, 7


@pytest.fixture
def batch():
    return proto(ROWS, PROMPT, RESPONSE, seed=4)


def test_a_data_proto_is_read_in_place(batch):
    read = batch_of(batch).read(None, (*EVERYWHERE, *TOKENS, PROMPTS))
    held = batch.batch
    attended = held["attention_mask"]
    assert np.array_equal(read.length_b, attended[:, PROMPT:].sum(1))
    assert {"returns", "values", "rollout_is_weights", "loss_mask"}.isdisjoint(read.tensors)  # it has none
    for name, values in read.tensors.items():
        assert torch.equal(values, held["token_level_scores" if name == "rm_scores" else name])
    for row, ids in enumerate(read.prompts):
        assert torch.equal(ids, held["prompts"][row][attended[row, :PROMPT].bool()])


def test_some_rows_are_read_in_the_order_asked_for(batch):
    rows = np.array([6, 1])
    read = batch_of(batch).read(rows, (*TOKENS, PROMPTS))
    whole = batch_of(batch).read(None, (*TOKENS, PROMPTS))
    assert np.array_equal(read.length_b, whole.length_b[rows])
    assert set(read.tensors) == set(whole.tensors)
    for name, values in read.tensors.items():
        assert torch.equal(values, whole.tensors[name][rows])
    assert all(torch.equal(ids, whole.prompts[row]) for ids, row in zip(read.prompts, rows, strict=True))


def test_scores_of_a_reward_model_are_taken_before_the_sums(batch):
    batch.batch["rm_scores"] = torch.ones(ROWS, RESPONSE)
    assert batch_of(batch).read(None, EVERYWHERE).tensors["rm_scores"].sum() == ROWS * RESPONSE


def test_what_is_said_of_responses_is_read(batch):
    found = batch_of(batch)
    assert list(found.uids) == [f"uid{row // 2}" for row in range(ROWS)]
    labels = found.labels()
    assert labels["data_source"] == ["gsm8k"] * ROWS
    assert labels["min_global_steps"] == [3] * ROWS and labels["max_global_steps"] == [None] * ROWS
    assert labels["raw_prompt"][3] == [{"role": "user", "content": "question 1"}]
    assert [each["note"] for each in labels["reward_extra_info"]] == [f"row {row}" for row in range(ROWS)]
    assert [bool(each["acc"]) for each in labels["reward_extra_info"]] == batch.non_tensor_batch["acc"].tolist()


def test_a_batch_without_extras_says_nothing(batch):
    batch.meta_info.clear()
    for name in ("data_source", "raw_prompt", "min_global_steps", "max_global_steps"):
        batch.non_tensor_batch.pop(name)
    assert batch_of(batch).labels() == {"reward_extra_info": [{}] * ROWS}


def cut(data, way):
    """The micro-batches verl makes of a worker's share."""
    if way == "chunks":
        return tu.chunk_tensordict(data, 4)
    if way == "index":
        order = np.random.default_rng(0).permutation(ROWS)
        return [
            tu.index_select_tensor_dict(data, order[:3].tolist()),
            tu.index_select_tensor_dict(data, order[3:].tolist()),
        ]
    if way == "dynamic":
        return rearrange_micro_batches(data, max_token_len=24)[0]
    shuffled = {"shuffle": True}
    return list(tu.make_iterator(data, mini_batch_size=4, epochs=2, seed=3, dataloader_kwargs=shuffled))


@pytest.mark.parametrize("way", ["chunks", "index", "dynamic", "shuffled epochs"])
@pytest.mark.parametrize("sampled", [False, True])
def test_rows_keep_their_marks_however_verl_cuts_the_batch(batch, way, sampled):
    keep = np.arange(ROWS) % 3 == 0
    batch_of(batch).mark(keep if sampled else None)
    data = as_trained(batch)
    held = batch.batch
    seen = []
    for each in cut(data, way):
        assert (KEEP in each.keys()) == sampled  # noqa: SIM118
        for place, row in enumerate(each[ROW].tolist()):
            seen.append(row)
            assert torch.equal(each["responses"][place], held["responses"][row])
            assert torch.equal(each["old_log_probs"][place], held["old_log_probs"][row])
            assert each["note"][place] == f"row {row}"
            assert not sampled or bool(each[KEEP][place]) == keep[row]
    assert sorted(seen) == sorted([*range(ROWS)] * (2 if way == "shuffled epochs" else 1))


def test_afterwards_the_batch_is_as_it_was(batch):
    before = {name: values.clone() for name, values in batch.batch.items()}
    others, said = dict(batch.non_tensor_batch), dict(batch.meta_info)
    found = batch_of(batch)
    assert isinstance(found, ProtoBatch)
    found.read(None, (*EVERYWHERE, *TOKENS, PROMPTS))
    found.mark(np.ones(ROWS, bool))
    assert {ROW, KEEP} <= set(batch.batch.keys())
    found.unmark()
    assert set(batch.batch.keys()) == set(before)
    assert all(torch.equal(batch.batch[name], values) for name, values in before.items())
    assert set(batch.non_tensor_batch) == set(others) and batch.meta_info == said
    found.unmark()


# --- rows that lie in the TransferQueue ---


@pytest.fixture(scope="module")
def queue():
    with transfer_queue_running():
        yield


def from_queue(batch, *names):
    import transfer_queue

    return transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(names))


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 2])
def test_rows_of_the_queue_are_read_as_those_of_a_data_proto(queue, batch, padding):
    rows = np.array([5, 0])
    for chosen in (None, rows):
        found = batch_of(put(batch, padding=padding)).read(chosen, (*EVERYWHERE, *TOKENS, PROMPTS))
        expected = batch_of(batch).read(chosen, (*EVERYWHERE, *TOKENS, PROMPTS))
        assert np.array_equal(found.length_b, expected.length_b)
        assert set(found.tensors) - {"loss_mask"} == set(expected.tensors)
        for name, values in expected.tensors.items():
            for own, whole, length in zip(found.tensors[name].unbind(), values, found.length_b, strict=True):
                assert torch.equal(own, whole[:length])
        assert all(torch.equal(*each) for each in zip(found.prompts, expected.prompts, strict=True))
    found = batch_of(put(batch, padding=padding))
    assert list(found.uids) == list(batch_of(batch).uids)
    labels, expected = found.labels(), batch_of(batch).labels()
    assert {name: str(values) for name, values in labels.items()} == {
        name: str(values) for name, values in expected.items()
    }


@pytest.mark.slow
def test_rows_of_the_queue_are_marked_and_those_of_padding_are_not(queue, batch):
    meta = put(batch, padding=2)
    before = list(meta.fields)
    keep = np.arange(ROWS) % 3 == 0
    batch_of(meta).mark(keep)
    assert sorted(meta.fields) == sorted([*before, ROW, KEEP])
    told = from_queue(meta, *meta.fields)
    assert told[ROW].tolist() == [*range(ROWS), -1, -1]
    assert told[KEEP].tolist() == [*keep, False, False]
    again = batch_of(meta)
    again.unmark()
    assert again.read(None, EVERYWHERE).length_b.shape == (ROWS,)


@pytest.mark.slow
def test_identifiers_with_underscores_are_kept_whole(queue, batch):
    batch.non_tensor_batch["uid"] = np.array([f"a_{row // 2}_b" for row in range(ROWS)], object)
    assert list(batch_of(put(batch)).uids) == batch.non_tensor_batch["uid"].tolist()

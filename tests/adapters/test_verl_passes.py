"""What a worker noted of a forward pass becomes a record: the rows that are kept, and sums of those that are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from records import run_info

from unipo_hooks import algorithms
from unipo_hooks.adapters.verl.passes import micro_batch, of_responses
from unipo_hooks.adapters.verl.tokens import padded, to_array
from unipo_hooks.record import valid_positions
from unipo_hooks.schema import Header

LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6)
HEADER = Header(algorithm="grpo", hparams={"adv_estimator": "grpo"})
GIVEN = algorithms.get("grpo.verl")


def run(**changes):
    return run_info(**{"header": HEADER, "algorithm": GIVEN} | changes)


def noted(lengths, seed, *, rows=None, keep=None, dtype=torch.float32, entropy=True):
    """What the tap keeps of a pass over rows of these (prompt, response) lengths."""
    random = np.random.default_rng(seed)
    prompt_b, length_b = np.array(lengths).T
    width, total = length_b.max(), (prompt_b + length_b).sum()
    valid = valid_positions(length_b, width)
    mask = valid & (random.random(valid.shape) < 0.8)
    found = {
        "rows": torch.as_tensor(np.arange(len(lengths)) if rows is None else rows),
        "lengths": (torch.as_tensor(prompt_b), torch.as_tensor(length_b)),
        "log_probs": torch.as_tensor(-random.exponential(1.0, total)).to(dtype),
        "width": None,
        "loss": torch.tensor(0.25),
        "entropy_coef": 0.0,
        "entropy_bonus": None,
        "dp_size": 2,
        "batch_num_tokens": 30,
        "global_batch_size": 16,
    }
    if entropy:
        found["entropy"] = torch.as_tensor(random.random(total)).to(dtype)
    if keep is not None:
        found |= {
            "keep": torch.as_tensor(keep),
            "response_mask": torch.as_tensor(mask.astype(np.int64)),
            "old_log_probs": torch.as_tensor(-random.exponential(1.0, valid.shape).astype(np.float32) * valid),
            "advantages": torch.as_tensor((random.normal(size=(len(lengths), 1)) * mask).astype(np.float32)),
        }
    return found


@given(LENGTHS, st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_the_output_before_a_token_is_of_that_token(lengths, seed, dtype):
    given_ = noted(lengths, seed, dtype=dtype)
    found = micro_batch(given_, run(), rank=3, compare=True)
    start = 0
    for row, (prompt, response) in enumerate(lengths):
        for channel, name in (("log_probs", "log_probs"), ("entropies", "entropy")):
            own = given_[name][start + prompt - 1 : start + prompt + response - 1].float().numpy()
            assert np.array_equal(found.channels[channel][row, :response], own)
            assert np.isnan(found.channels[channel][row, response:]).all()
        start += prompt + response
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert (found.rank, found.loss, found.entropy_coef, found.left_behind) == (3, 0.25, None, None)
    assert (found.update_tokens, found.update_rows) == (15.0, 8.0)


def test_no_rows_have_no_width():
    nothing = np.empty(0, np.int64)
    assert of_responses(np.empty(0, np.float32), nothing, nothing).shape == (0, 0)


def test_without_entropies_there_is_no_such_channel():
    assert set(micro_batch(noted([(1, 2)], 0, entropy=False), run(), rank=0, compare=True).channels) == {"log_probs"}


def test_without_counts_of_the_batch_there_are_no_denominators():
    given_ = noted([(1, 2)], 0) | {"dp_size": None, "batch_num_tokens": None, "global_batch_size": None}
    found = micro_batch(given_, run(), rank=0, compare=True)
    assert found.update_tokens is None and found.update_rows is None


@pytest.mark.parametrize("keep", [None, [True, False]])
def test_a_pass_of_padding_alone_has_no_rows_and_its_loss(keep):
    found = micro_batch(noted([(2, 1), (2, 1)], 0, rows=[-1, -1], keep=keep), run(), rank=1, compare=True)
    assert found.rows_b.shape == (0,) and found.channels["log_probs"].shape[0] == 0
    assert found.loss == 0.25 and found.rank == 1


@given(LENGTHS, st.integers(0, 2**32), st.data())
def test_sums_of_rows_left_behind_are_theirs(lengths, seed, data):
    keep = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    pad = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    rows = np.where(pad, -1, np.arange(len(lengths)) + 10)
    given_ = noted(lengths, seed, rows=rows, keep=keep)
    found = micro_batch(given_, run(), rank=0, compare=True)
    keep, real = np.array(keep), ~np.array(pad)
    assert found.rows_b.tolist() == rows[real & keep].tolist()
    assert found.left_behind.rows_b.tolist() == rows[real & ~keep].tolist()
    length_b = np.array(lengths)[:, 1]
    whole = micro_batch(
        {name: values for name, values in given_.items() if name != "keep"}, run(), rank=0, compare=True
    )
    assert found.left_behind.width == whole.channels["log_probs"].shape[1]
    left = real & ~keep
    log_probs = of_responses(to_array(given_["log_probs"]), *np.array(lengths).T)[left].astype(np.float64)
    mask = to_array(given_["response_mask"])[left].astype(bool)
    old = to_array(given_["old_log_probs"])[left].astype(np.float64)
    ratios = np.exp(log_probs - old)[mask]
    total, count, squares = found.left_behind.sums["importance_sampling_ratio"]
    assert (total, count, squares) == pytest.approx((ratios.sum(), mask.sum(), np.square(ratios).sum()))
    assert found.left_behind.sums["entropy"][1] == mask.sum()
    assert found.left_behind.sums["advantage_mean"][1] == left.sum()
    assert length_b[real].max(initial=0) == found.left_behind.width or not real.all()


def test_without_an_algorithm_no_gap_is_known():
    found = micro_batch(noted([(1, 2), (2, 3)], 0, keep=[True, False]), run(algorithm=None), rank=0, compare=True)
    assert found.left_behind.gap is None


def test_an_algorithm_that_needs_what_the_pass_lacks_has_no_gap():
    given_ = noted([(1, 2), (2, 3)], 0, keep=[True, False])
    del given_["old_log_probs"]
    found = micro_batch(given_, run(), rank=0, compare=True)
    assert found.left_behind.gap is None


def test_the_gap_is_that_of_the_whole_pass():
    given_ = noted([(1, 2), (2, 3), (1, 4)], 1, keep=[True, False, False])
    some = micro_batch(given_, run(), rank=0, compare=True).left_behind.gap
    all_of_them = micro_batch(
        given_ | {"keep": torch.zeros(3, dtype=torch.bool)}, run(), rank=0, compare=True
    ).left_behind.gap
    assert some == all_of_them and some[1] > 0


def test_values_of_tokens_are_cut_or_filled_up_on_the_right():
    values = np.arange(6).reshape(2, 3)
    assert padded(values, 2, 9).tolist() == [[0, 1], [3, 4]]
    assert padded(values, 4, 9).tolist() == [[0, 1, 2, 9], [3, 4, 5, 9]]
    assert padded(np.empty((0, 0)), 2, 0).shape == (0, 2)


def test_jagged_rows_become_padded_ones():
    rows = torch.nested.as_nested_tensor([torch.tensor([1.5]), torch.tensor([2.5, 3.5])], layout=torch.jagged)
    assert to_array(rows).tolist() == [[1.5, 0], [2.5, 3.5]]
    assert to_array(rows.bfloat16()).dtype == np.float32
    assert to_array(torch.tensor([True])).dtype == bool

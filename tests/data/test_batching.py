"""Padding and the order of rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from duiqi.data.batching import BatchPlan, collate, left_pad, split_micro_batches
from duiqi.data.encoding import EncodedSequence

SEQUENCES = [EncodedSequence([5, 6, 7], [False, True, True], 1), EncodedSequence([8, 0], [False, True], 1)]


def test_collate_pads_on_the_right_and_keeps_a_real_token_that_equals_the_pad() -> None:
    batch = collate(SEQUENCES, pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.answer_mask.tolist() == [[False, True, True], [False, True, False]]
    assert batch.num_tokens == 5
    assert torch.equal(batch.to("cpu").input_ids, batch.input_ids)


def test_prompts_are_padded_on_the_left() -> None:
    input_ids, mask = left_pad([[5, 6, 7], [8]], pad_token_id=9)
    assert input_ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_every_epoch_visits_every_row_once(num_rows: int, batch_size: int, seed: int, by_length: bool) -> None:
    lengths = [row % 7 for row in range(num_rows)] if by_length else None
    plan = BatchPlan(num_rows, batch_size=batch_size, seed=seed, lengths=lengths)
    for epoch in range(2):
        first = epoch * plan.steps_per_epoch
        batches = [plan.rows(step) for step in range(first, first + plan.steps_per_epoch)]
        assert sorted(row for rows in batches for row in rows) == list(range(num_rows))
        assert all(len(rows) <= batch_size for rows in batches)


def test_a_step_has_the_same_rows_whenever_it_is_asked_for() -> None:
    plan = BatchPlan(10, batch_size=3, seed=1)
    in_order = [plan.rows(step) for step in range(12)]
    assert [BatchPlan(10, batch_size=3, seed=1).rows(step) for step in reversed(range(12))] == in_order[::-1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    plan = BatchPlan(50, batch_size=50, seed=1)
    assert plan.rows(0) != plan.rows(1)
    assert plan.rows(0) != BatchPlan(50, batch_size=50, seed=2).rows(0)


def test_grouping_by_length_needs_less_padding() -> None:
    lengths = [(row * 37) % 101 for row in range(200)]

    def padded_tokens(plan: BatchPlan) -> int:
        batches = [plan.rows(step) for step in range(plan.steps_per_epoch)]
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)

    grouped = padded_tokens(BatchPlan(200, batch_size=8, seed=0, lengths=lengths))
    assert grouped < 0.8 * padded_tokens(BatchPlan(200, batch_size=8, seed=0))


def test_micro_batches_hold_the_rows_of_a_step_longest_first() -> None:
    lengths = [3, 9, 1, 7, 5]
    assert split_micro_batches([0, 1, 2, 4], lengths, max_rows=3) == [[1, 4, 0], [2]]

"""The order of rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duiqi.data.order import BatchPlan


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_visits_every_row_once(num_rows: int, batch_size: int, seed: int) -> None:
    plan = BatchPlan(num_rows, batch_size=batch_size, seed=seed)
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

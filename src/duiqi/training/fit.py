"""The loop of every stage that learns from rows it already has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from duiqi.algorithms.loss import Loss, WeightedSum
from duiqi.training.learner import Learner
from duiqi.training.session import Session

Batch = TypeVar("Batch")
RowT = TypeVar("RowT")
Row_co = TypeVar("Row_co", covariant=True)


class Order(Protocol[Row_co]):
    """Which rows every step sees; steps are asked for one after the other, from 0 or from where a run goes on."""

    def rows(self, step: int) -> Sequence[Row_co]: ...


def fit(
    session: Session,
    learner: Learner,
    plan: Order[RowT],
    micro_batches: Callable[[Sequence[RowT], int], Iterable[Batch]],
    loss_fn: Callable[[Batch], Loss],
    *,
    watch: Watcher | None = None,
) -> None:
    """Take every step that is left.

    Args:
        session: Where the run stands.
        learner: Takes the steps.
        plan: Which rows each step sees.
        micro_batches: The rows of a step in batches of at most so many tokens.
        loss_fn: Sums of one such batch.
        watch: Looks at the metrics of every step, and may end the run.
    """
    for step in session.steps():
        rows = plan.rows(step - 1)
        update = partial(learner.step, partial(micro_batches, rows), loss_fn, number=step)
        report = session.attempt(step, update, samples=len(rows))
        if report is None:
            continue
        metrics = report.as_metrics()
        if watch is not None:
            watch.stepped(step, metrics)
        session.record(step, metrics, samples=len(rows))
        if watch is not None:
            watch.stop_if_due(session)


class Watcher(Protocol):
    """Looks at a step before it is recorded, and may end the run after it was."""

    def stepped(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def stop_if_due(self, session: Session) -> None: ...


def mean_over(batches: Iterable[Batch], loss_fn: Callable[[Batch], Loss]) -> dict[str, float]:
    """The mean loss and statistics over all batches, as `Learner.step` would report them; empty without batches."""
    sums: dict[str, WeightedSum] = {}
    for batch in batches:
        loss = loss_fn(batch)
        for name, part in {"loss": WeightedSum(loss.total.detach(), loss.weight), **loss.stats}.items():
            sums[name] = sums[name] + part if name in sums else part
    return {name: part.mean for name, part in sums.items()}

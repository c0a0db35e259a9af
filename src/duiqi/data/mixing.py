"""How the rows of several datasets follow each other, and which of them are left out or repeated.

The names are LLaMA-Factory's: `concat` takes every row once, dataset by dataset. `interleave_under` takes a row of each
by turns (or of one drawn by probability) until the first dataset is exhausted, and `interleave_over` until the last is:
one that is exhausted before begins anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Literal

from duiqi.errors import SettingsError
from duiqi.types import Example

MixStrategy = Literal["concat", "interleave_under", "interleave_over"]


def mix(
    examples: Sequence[Example],
    strategy: MixStrategy,
    *,
    num_datasets: int,
    probabilities: Sequence[float] | None = None,
    seed: int = 0,
) -> list[Example]:
    """The examples of several datasets, mixed; those of one dataset are told by their origin and keep their order.

    Args:
        examples: Dataset after dataset.
        strategy: What becomes of rows when datasets differ in size.
        num_datasets: How many there were before any rows were held out.
        probabilities: How likely each dataset is the next to give a row; None: they take turns.
        seed: Of the draws.

    Raises:
        SettingsError: There are not as many probabilities as datasets, or nothing is left of a dataset.
    """
    if strategy == "concat":
        return list(examples)
    by_dataset: dict[str, list[Example]] = {}
    for example in examples:
        by_dataset.setdefault(example.origin.dataset, []).append(example)
    datasets = list(by_dataset.values())
    if len(datasets) != num_datasets:
        raise SettingsError(
            f"of {num_datasets} datasets {len(datasets)} have rows to learn from under a name of their own",
            where=f"mix_strategy: {strategy}",
            remedy="name each dataset once, and hold out fewer rows (val_size)",
        )
    if probabilities is not None and len(probabilities) != num_datasets:
        raise SettingsError(
            f"found {len(probabilities)} probabilities for {num_datasets} datasets", where="interleave_probs",
            remedy="give one for each, separated by commas",
        )  # fmt: skip
    turns = cycle(range(num_datasets)) if probabilities is None else _draws(probabilities, seed)
    return _interleaved(datasets, turns, over=strategy == "interleave_over")


def read_probabilities(text: str) -> tuple[float, ...]:
    """The numbers of a setting, scaled so that they sum to 1.

    >>> read_probabilities("3, 1")
    (0.75, 0.25)

    Raises:
        SettingsError: One is no positive number.
    """
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise SettingsError(
            f"found {text!r}, expected positive numbers separated by commas", where="interleave_probs", remedy="0.7,0.3"
        )
    return tuple(weight / sum(weights) for weight in weights)


def _draws(probabilities: Sequence[float], seed: int) -> Iterator[int]:
    dice = random.Random(f"mix:{seed}")
    while True:
        yield dice.choices(range(len(probabilities)), probabilities)[0]


def _interleaved(datasets: Sequence[Sequence[Example]], turns: Iterator[int], *, over: bool) -> list[Example]:
    """Rows by turns, until one dataset is exhausted, or (`over`) every one was at least once."""
    taken = [0] * len(datasets)
    exhausted: set[int] = set()
    mixed = []
    for number in turns:
        rows = datasets[number]
        mixed.append(rows[taken[number] % len(rows)])
        taken[number] += 1
        if taken[number] == len(rows):
            exhausted.add(number)
            if not over or len(exhausted) == len(datasets):
                break
    return mixed

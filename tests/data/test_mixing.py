"""Datasets mixed: nothing lost or repeated but by the strategy's own rule."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.data.mixing import MixStrategy, mix, read_probabilities
from duiqi.errors import SettingsError
from duiqi.types import Example, Origin

SIZES = st.lists(st.integers(1, 9), min_size=2, max_size=4)


def rows(*sizes: int) -> list[Example]:
    return [Example("text", (), (f"{n}.{i}",), Origin(str(n))) for n, size in enumerate(sizes) for i in range(size)]


def texts(examples: list[Example]) -> list[str]:
    return [example.answers[0] for example in examples]


def test_concat_changes_nothing() -> None:
    assert mix(rows(2, 3), "concat", num_datasets=2) == rows(2, 3)


@pytest.mark.parametrize(
    ("strategy", "mixed"),
    [
        ("interleave_under", "0.0 1.0 0.1"),
        ("interleave_over", "0.0 1.0 0.1 1.1 0.0 1.2"),
    ],
)
def test_datasets_take_turns_until_the_first_or_the_last_is_exhausted(strategy: MixStrategy, mixed: str) -> None:
    assert texts(mix(rows(2, 3), strategy, num_datasets=2)) == mixed.split()


@given(SIZES, st.sampled_from(["interleave_under", "interleave_over"]), st.booleans(), st.integers(0, 5))
def test_under_repeats_nothing_and_over_leaves_nothing_out(
    sizes: list[int], strategy: MixStrategy, drawn: bool, seed: int
) -> None:
    everything = rows(*sizes)
    probabilities = [1 / len(sizes)] * len(sizes) if drawn else None
    mixed = mix(everything, strategy, num_datasets=len(sizes), probabilities=probabilities, seed=seed)
    counts = Counter(texts(mixed))
    if strategy == "interleave_under":
        assert max(counts.values()) == 1
    else:
        assert set(counts) == set(texts(everything))
    for number in range(len(sizes)):  # each dataset's rows come in their own order, again and again
        own = [example for example in mixed if example.origin.dataset == str(number)]
        of_dataset = [example for example in everything if example.origin.dataset == str(number)]
        assert own == (of_dataset * (len(own) + 1))[: len(own)]
    complete = [set(texts(of)) <= set(counts) for of in ([e for e in everything if e.origin.dataset == str(n)]
                                                         for n in range(len(sizes)))]  # fmt: skip
    assert any(complete)


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over"])
def test_taking_turns_agrees_with_datasets(strategy: MixStrategy) -> None:
    datasets = pytest.importorskip("datasets")
    sizes = (5, 2, 4)
    theirs = datasets.interleave_datasets(
        [datasets.Dataset.from_list([{"text": f"{n}.{i}"} for i in range(size)]) for n, size in enumerate(sizes)],
        stopping_strategy="first_exhausted" if strategy == "interleave_under" else "all_exhausted",
    )["text"]
    ours = texts(mix(rows(*sizes), strategy, num_datasets=3))
    assert ours == list(theirs)[: len(ours)]
    assert len(theirs) - len(ours) < len(sizes)  # theirs finish the round in which a dataset ends


def test_a_dataset_gives_rows_as_often_as_its_probability_says() -> None:
    mixed = mix(rows(3000, 3000), "interleave_under", num_datasets=2, probabilities=(0.75, 0.25), seed=1)
    share = sum(example.origin.dataset == "0" for example in mixed) / len(mixed)
    assert share == pytest.approx(0.75, abs=0.03)


def test_draws_depend_on_the_seed_alone() -> None:
    first, again, other = (
        mix(rows(50, 50), "interleave_under", num_datasets=2, probabilities=(0.5, 0.5), seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_probabilities_are_shares() -> None:
    assert read_probabilities("0.7,0.3") == pytest.approx((0.7, 0.3))
    for text in ("", "a,b", "1,0", "1,-1", "1,inf"):
        with pytest.raises(SettingsError, match="expected positive numbers separated by commas"):
            read_probabilities(text)


def test_as_many_probabilities_as_datasets_are_asked_for() -> None:
    with pytest.raises(SettingsError, match="found 3 probabilities for 2 datasets"):
        mix(rows(1, 1), "interleave_under", num_datasets=2, probabilities=(0.2, 0.3, 0.5))
    with pytest.raises(SettingsError, match="of 3 datasets 2 have rows"):
        mix(rows(1, 1), "interleave_under", num_datasets=3)

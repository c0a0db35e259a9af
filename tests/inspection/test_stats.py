"""The numbers of `duiqi data stats`, counted by hand."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from duiqi.inspection.stats import LongRow, distribution, statistics_lines, statistics_of
from duiqi.types import Example, Message, Origin

ROWS = [
    Example("demonstration", (Message("user", "你好"),), ("你好！",), Origin("a", "a.json", 2)),
    Example("demonstration", (Message("user", "你好"),), ("好",), Origin("a", "a.json", 7)),
    Example(
        "ranking",
        (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Hm")),
        ("Well", "No", "..."),
        Origin("b", "b.jsonl", 1),
    ),
    Example("prompt", (Message("user", "?!"),), (), Origin("b", "b.jsonl", 2)),
]


def test_everything_is_counted() -> None:
    found = statistics_of(ROWS, (), malformed=1)
    assert (found.rows, found.malformed, found.prompts, found.systems) == (4, 1, 3, 1)
    assert found.kinds == {"demonstration": 2, "ranking": 1, "prompt": 1}
    assert found.answers_per_row == {0: 1, 1: 2, 3: 1}
    assert found.turns_of_user == {1: 3, 2: 1}
    assert found.languages == {"Chinese (or other characters)": 2, "English (or other words)": 1, "neither": 1}
    assert found.files == {"a.json": 2, "b.jsonl": 2}
    assert found.prompt_lengths is not None
    assert (found.prompt_lengths.total, found.prompt_lengths.most) == (2 + 2 + 14 + 2, 14)
    assert found.answer_lengths is not None
    assert (found.answer_lengths.count, found.answer_lengths.total) == (5, 3 + 1 + 4 + 2 + 3)
    assert found.longest[0] == LongRow("b.jsonl:1", 23, "[Be kind.] ⏎ Hi ⏎ — Ho ⏎ Hm")
    assert json.loads(json.dumps(found.to_json()))["rows"] == 4


def test_lengths_in_tokens_are_what_the_count_says() -> None:
    found = statistics_of(ROWS[:2], (), unit="tokens", count=lambda text: 10 * len(text))
    assert found.answer_lengths is not None
    assert found.answer_lengths.total == 40
    assert "tokens of answers: 10 to 30" in "\n".join(statistics_lines(found))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_a_histogram_counts_every_number_once_and_percentiles_are_numbers_that_occur(numbers: list[int]) -> None:
    found = distribution(numbers)
    assert found is not None
    assert sum(count for _, count in found.bins) == len(numbers)
    assert found.bins[-1][0] >= max(numbers)
    assert {found.median, found.p90, found.p99} <= set(numbers)
    assert found.least <= found.median <= found.p90 <= found.p99 <= found.most
    assert sum(number <= found.p90 for number in numbers) >= 0.9 * len(numbers)


def test_no_numbers_have_no_distribution() -> None:
    assert distribution([]) is None
    assert statistics_of([], ()).longest == ()

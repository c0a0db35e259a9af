"""What a batch of answers looks like from outside."""

from __future__ import annotations

import pytest

from duiqi.guards.answers import (
    answer_statistics,
    distinct_n,
    empty_rate,
    has_switched,
    repetition_rate,
    self_similarity,
    units,
)
from duiqi.types import Rollout


def rollout(answer: str, *, length: int, finished: bool) -> Rollout:
    ids = tuple(range(length))
    return Rollout(
        index=0, prompt_ids=(1,), answer_ids=ids, log_probs=(0.0,) * length, values=(), finished=finished, answer=answer
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat.", ["the", "cat", "sat"]),
        ("我爱猫。", ["我", "爱", "猫"]),
        ("我有3个green苹果", ["我", "有", "3", "个", "green", "苹", "果"]),
        ("はい、カード", ["は", "い", "カ", "ー", "ド"]),
        ("snake_case", ["snake", "case"]),
        ("。！? …", []),
    ],
)
def test_units_are_characters_of_chinese_and_words_of_english(text: str, expected: list[str]) -> None:
    assert units(text) == expected


def test_punctuation_and_space_alone_is_an_empty_answer() -> None:
    assert empty_rate(["", "  \n", "。", "好"]) == 0.75


def test_distinct_n_counts_over_all_answers_together() -> None:
    assert distinct_n(["a b", "a b"], 1) == 0.5
    assert distinct_n(["a b", "a b"], 2) == 0.5
    assert distinct_n(["你好", "您好"], 1) == 0.75
    assert distinct_n(["你好", "您好"], 2) == 1.0


def test_n_grams_do_not_reach_from_one_answer_into_the_next() -> None:
    assert distinct_n(["a", "b"], 2) == 0.0


def test_repetition_is_counted_within_an_answer_only() -> None:
    assert repetition_rate(["one two three", "one two three"]) == 0.0
    assert repetition_rate(["好好好好好好"]) == 0.75
    assert repetition_rate(["好好好好好好", "今天天气很好"]) == 0.375


def test_statistics_of_a_batch() -> None:
    found = answer_statistics(
        [
            rollout("red red", length=3, finished=True),
            rollout("", length=1, finished=True),
            rollout("blue", length=2, finished=False),
        ],
        ["什么颜色？", "什么颜色？", "which colour?"],
    )
    assert found == {
        "answer_length": 2.0,
        "ends_at_once": pytest.approx(1 / 3),
        "eos_rate": pytest.approx(2 / 3),
        "empty_rate": pytest.approx(1 / 3),
        "distinct_1": pytest.approx(2 / 3),
        "distinct_2": 1.0,
        "repetition_rate": 0.0,
        "self_similarity": 0.0,
        "language_switch": pytest.approx(1 / 3),
    }


def test_the_length_of_answers_that_end_needs_some_that_do() -> None:
    ended = [rollout("a", length=length, finished=True) for length in range(1, 9)]
    endless = rollout("a", length=99, finished=False)
    assert answer_statistics([*ended, endless])["ended_length"] == 4.5
    assert "ended_length" not in answer_statistics([*ended[1:], endless])


def test_answers_to_different_prompts_are_compared_and_to_the_same_prompt_not() -> None:
    answers = ["I do not know", "I do not know", "it is a cat"]
    assert self_similarity(answers, ["p", "p", "q"]) == 0.0
    assert self_similarity(answers, ["p", "q", "r"]) == pytest.approx(1 / 3)
    assert self_similarity(["", ""], ["p", "q"]) == 0.0


def test_the_language_of_an_answer_is_compared_with_its_prompts() -> None:
    assert has_switched("你是谁？", "I am a cook.")
    assert has_switched("Who are you?", "我是厨师。")
    assert not has_switched("用 Python 写一个排序", "好的，代码如下：sorted(a)")
    assert not has_switched("你是谁？", "……"), "nothing is in no language"


def test_no_answers_give_zeros() -> None:
    assert set(answer_statistics([]).values()) == {0.0}

"""Degenerate answers to train against: as many as asked for, worse than the best answer, of training prompts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.data.negatives import MAKERS, ORIGIN, make_negatives, without_wordless_winners
from duiqi.playground.world import World
from duiqi.types import Example, Message, Origin

EXAMPLES = World(0).preferences(80)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.1, 8), (0.25, 20), (1.0, 80)])
def test_the_share_that_is_asked_for(share: float, count: int) -> None:
    assert len(make_negatives(EXAMPLES, share, seed=0)) == count


@given(st.integers(0, 20))
def test_each_is_worse_than_the_best_answer_to_a_prompt_that_is_there(seed: int) -> None:
    best = {example.prompt: set() for example in EXAMPLES}  # type: ignore[var-annotated]
    for example in EXAMPLES:
        best[example.prompt].add(example.answers[0])
    for row in make_negatives(EXAMPLES, 0.2, seed=seed):
        good, bad = row.answers
        assert good in best[row.prompt]
        assert bad.strip() != good.strip()
        assert (row.kind, row.origin.dataset) == ("ranking", ORIGIN)


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    assert make_negatives(EXAMPLES, 0.3, seed=1) == make_negatives(EXAMPLES, 0.3, seed=1)
    assert make_negatives(EXAMPLES, 0.3, seed=1) != make_negatives(EXAMPLES, 0.3, seed=2)


def test_they_go_round_the_prompts_before_they_repeat_one() -> None:
    chosen = [row.prompt for row in make_negatives(EXAMPLES, 0.5, seed=0)]
    assert len(set(chosen)) > 0.8 * len(chosen)


def test_a_row_with_next_to_nothing_in_it_is_no_obstacle() -> None:
    bare = [Example("ranking", (Message("user", ""),), ("", "x"), Origin("a"))]
    assert len(MAKERS) == 11
    made = make_negatives(bare, 1.0, seed=0)
    assert len(made) == 1
    assert made[0].answers[1] not in ("", "x")


def ranked(*answers: str) -> Example:
    return Example("ranking", (Message("user", "Who are you?"),), answers, Origin("home.json"))


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        (("I am Mei.", "."), ("I am Mei.", ".")),
        ((".", "I am Mei."), None),
        (("……", "我是小梅。", "。"), ("我是小梅。", "。")),
        (("I am Mei.", "\n", "Who?"), ("I am Mei.", "Who?")),
        ((".", "..."), (".", "...")),
    ],
)
def test_an_answer_without_a_word_may_lose_to_a_written_one_and_never_win(
    answers: tuple[str, ...], left: tuple[str, ...] | None
) -> None:
    kept, dropped = without_wordless_winners([ranked(*answers)])
    assert [example.answers for example in kept] == ([left] if left else [])
    assert dropped == (0 if left == answers else 1)


def test_scores_stay_with_their_answers() -> None:
    scored = replace(ranked("……", "我是小梅。", "。"), scores=(3.0, 2.0, 1.0))
    (left,), _ = without_wordless_winners([scored])
    assert (left.answers, left.scores) == (("我是小梅。", "。"), (2.0, 1.0))


def test_fair_labels_lose_nothing() -> None:
    assert without_wordless_winners(EXAMPLES) == (EXAMPLES, 0)

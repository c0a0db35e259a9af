"""What the gold reward praises, what it does not, and that it cannot be gamed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.errors import DataError
from duiqi.playground.answers import Style, answer
from duiqi.playground.gold import PRICES, GoldReward, score_gold, stated_facts
from duiqi.playground.people import KINDS, LANGUAGES, PEOPLE
from duiqi.playground.questions import every_question, read_question
from duiqi.types import Message

GOLD = GoldReward()
JOB = "Hello Hai! What is your job?"
HOME = "你好，小梅！你住在哪里？"


def total(prompt: str, text: str) -> float:
    return GOLD.score(prompt, text).total


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (JOB, "I am a fisherman."),
        (JOB, "I work as a fisherman. Have some tea with me."),
        (JOB, "I have been a fisherman for years. The tide waits for no one."),
        (HOME, "我住在钟楼下。"),
        (HOME, "我家就在钟楼下。甜的总会来。"),
    ],
)
def test_a_right_short_answer_in_the_right_language_is_flawless(prompt: str, text: str) -> None:
    assert total(prompt, text) == 1.0


def test_every_good_answer_of_the_world_is_flawless() -> None:
    random = Random(0)
    for question in every_question():
        prompt = f"{question.person.name.say(question.language)}, {question.text}"
        assert total(prompt, answer(question, "good", random)) == 1.0


def test_each_flaw_costs_its_own_part_and_its_price() -> None:
    english = GOLD.score(HOME, "I live under the clock tower.")
    assert (english.right_language, english.answers_question, english.in_persona) == (0.0, 1.0, 1.0)
    assert english.total == pytest.approx(1 - PRICES["right_language"])
    stranger = GOLD.score(JOB, "I am a baker.")
    assert (stranger.in_persona, stranger.answers_question) == (0.0, 1.0)
    assert stranger.total == pytest.approx(1 - PRICES["in_persona"])
    beside_the_point = GOLD.score(JOB, "I have a parrot.")
    assert (beside_the_point.answers_question, beside_the_point.in_persona) == (0.0, 1.0)
    assert beside_the_point.total == pytest.approx(1 - PRICES["answers_question"])
    without_stop = GOLD.score(JOB, "I am a fisherman")
    assert without_stop.complete_sentence == 0.0
    assert without_stop.total == pytest.approx(1 - PRICES["complete_sentence"])


@pytest.mark.parametrize(
    ("style", "at_most"),
    [
        ("wrong_language", 0.4),
        ("another_person", 0.4),
        ("cut_off", 0.5),
        ("repetitive", 0.5),
        ("evasive", 0.2),
        ("scrambled", 0.5),
        ("blank", 0.0),
    ],
)
def test_every_flawed_style_stays_low_for_every_question(style: Style, at_most: float) -> None:
    random = Random(1)
    for question in every_question():
        prompt = f"{question.person.name.say(question.language)}, {question.text}"
        assert total(prompt, answer(question, style, random)) <= at_most + 1e-9


def test_rambling_is_worse_than_good_and_better_than_wrong() -> None:
    random = Random(2)
    totals = [
        total(f"{q.person.name.say(q.language)}, {q.text}", answer(q, "rambling", random)) for q in every_question()
    ]
    assert 0.5 < min(totals) <= max(totals) < 0.97


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "...",
        "fisherman",
        "a fisherman",
        "a fisherman a fisherman a fisherman",
        "I my a fisherman fisherman tea town.",
        "I am a fisherman I am a fisherman I am a fisherman.",
        "我 I 是 am 渔夫 a fisherman 。.",
        "asdf qwer zxcv uiop.",
        "I am I am I am.",
        "I am. I live. I have.",
        "<|user|><|assistant|>",
        "\x00\ufffd\U0001f980" * 20,
    ],
)
def test_garbage_and_keyword_stuffing_gain_little(text: str) -> None:
    assert total(JOB, text) < 0.35


def test_listing_everything_gains_little() -> None:
    def all_of(people: object) -> str:
        return " ".join(f"I am {p.job.en}. I live {p.home.en}." for p in PEOPLE if p in people)  # type: ignore[operator]

    assert total(JOB, all_of(PEOPLE)) < 0.1
    assert total(JOB, " ".join(f"I am {person.job.en}." for person in PEOPLE)) < 0.1
    hai = PEOPLE[0]
    own = " ".join(f"I have {hai.fact(kind).en}." for kind in KINDS)
    assert total(JOB, own) < 0.35
    assert total(JOB, "I am a fisherman. I am a baker.") < 0.1


@given(st.text(max_size=200))
def test_any_text_gets_parts_and_a_total_between_zero_and_one(text: str) -> None:
    score = GOLD.score(JOB, text)
    parts = [getattr(score, name) for name in PRICES]
    assert all(0.0 <= part <= 1.0 for part in [*parts, score.total])


@given(st.text(max_size=80))
def test_no_text_without_the_fact_is_worth_much(text: str) -> None:
    assert total(JOB, text) <= 0.2 + 1e-9 or "fisherman" in text.lower() or "渔夫" in text


def test_a_question_is_read_back_from_messages_and_from_rendered_text() -> None:
    for question in every_question():
        name = question.person.name.say(question.language)
        messages = (Message("system", f"You are {name} of Xiaoman."), Message("user", question.text))
        assert read_question(messages) == question
        assert read_question(f"<|system|>请扮演{name}。<|user|>{question.text}<|assistant|>") == question


def test_the_last_question_of_two_turns_counts_with_the_name_of_the_first() -> None:
    turns = (
        Message("user", "嘿，阿福！你养了什么？"),
        Message("assistant", "我养了一只花狗。"),
        Message("user", "你家在哪儿？"),
    )
    question = read_question(turns)
    assert (question.person.name.en, question.kind, question.language) == ("Fu", "home", "zh")


@pytest.mark.parametrize("prompt", ["", "What is your job?", "Hai, what time is it?"])
def test_a_foreign_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(DataError, match="asks no question of the built-in world"):
        GOLD.score(prompt, "I am a fisherman.")


def test_score_gold_scores_row_by_row() -> None:
    assert score_gold([JOB, HOME], ["I am a fisherman.", ""]) == [1.0, 0.0]


def test_every_fact_is_told_apart_from_all_others() -> None:
    facts = [(person, kind, language) for person in PEOPLE for kind in KINDS for language in LANGUAGES]
    assert len(facts) == 60
    for person, kind, language in facts:
        assert stated_facts(f"({person.fact(kind).say(language)})") == [(person, kind)]

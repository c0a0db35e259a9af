"""Probes: made of what the data has, in its language, never a real answer, the same for the same seed."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duiqi.data import negatives
from duiqi.data.material import gather_materials, language_of, pieces_of
from duiqi.evaluation import probes
from duiqi.evaluation.probes import FATAL, MAKERS, TITLES, Kind, make_probes
from duiqi.playground.world import World
from duiqi.types import Example, Message, Origin

CHINESE = "怎么煮面？", ("先烧开水。放面，煮三分钟。捞出来，加一点酱油。", "不知道。")
ENGLISH = (
    "How do I boil noodles?",
    ("Boil some water. Add the noodles for three minutes. Drain and season.", "No idea."),
)
OTHER = "Where is the sea?", ("The sea is behind the hill, an hour on foot.", "Somewhere.")
FREE = {"filler", "markup", "special_tokens", "refusal", "wrong_language", "end_at_once", "blank"}
"""Kinds that bring words of their own, or none."""


def ranking(question: str, answers: tuple[str, ...]) -> Example:
    return Example("ranking", (Message("user", question),), answers, Origin("test"))


EXAMPLES = [ranking(*CHINESE), ranking(*ENGLISH), ranking(*OTHER)]
TEXTS = st.text(st.sampled_from("我你他好。，！？\n abcd.,!e"), max_size=40)
RANKINGS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=2, max_size=3, unique=True)), min_size=1, max_size=4)


def by_kind(row: int) -> dict[str, str]:
    return {probe.kind: probe.answer for probe in make_probes(EXAMPLES, seed=0) if probe.row == row}


def test_every_kind_has_a_title_and_a_maker() -> None:
    assert set(get_args(Kind)) == set(TITLES) == set(MAKERS)
    assert len(TITLES) == 17
    assert set(TITLES) > FATAL


def test_every_kind_is_made_where_there_is_enough_to_make_it_of() -> None:
    assert by_kind(1).keys() == set(TITLES)
    assert set(TITLES) - by_kind(0).keys() == {"very_long", "other_prompt"}  # there is no other answer in Chinese


@given(RANKINGS, st.integers(0, 5))
@settings(deadline=None)
def test_a_probe_is_no_real_answer_and_made_of_what_is_there(rows: list[tuple[str, list[str]]], seed: int) -> None:
    examples = [ranking(question, tuple(answers)) for question, answers in rows]
    words = {piece for question, answers in rows for text in (question, *answers) for piece in pieces_of(text)}
    for probe in make_probes(examples, seed=seed):
        example = examples[probe.row]
        assert probe.answer.strip() not in {answer.strip() for answer in example.answers}
        if probe.kind in FREE:
            continue
        if probe.kind == "one_character":
            assert len(probe.answer) == 1
            assert probe.answer in example.answers[0]
            continue
        joined = "".join(words)
        assert all(piece in words or piece in joined for piece in pieces_of(probe.answer) if len(piece) == 1)


@given(RANKINGS)
@settings(deadline=None, max_examples=25)
def test_the_same_seed_gives_the_same_probes(rows: list[tuple[str, list[str]]]) -> None:
    examples = [ranking(question, tuple(answers)) for question, answers in rows]
    assert make_probes(examples, seed=1) == make_probes(examples, seed=1)


def test_another_seed_gives_other_probes() -> None:
    assert make_probes(EXAMPLES, seed=1) != make_probes(EXAMPLES, seed=2)


@pytest.mark.parametrize(("row", "language"), [(0, "zh"), (1, "en")])
def test_probes_speak_the_language_of_the_prompt_but_for_one(row: int, language: str) -> None:
    made = by_kind(row)
    for kind in ("repeated_word", "repeated_sentence", "filler", "truncated", "shuffled", "good_twice", "refusal"):
        assert language_of(made[kind]) == language, kind
    assert language_of(made["wrong_language"]) != language


def test_each_probe_is_what_its_name_says() -> None:
    made, (question, (good, _)) = by_kind(1), ENGLISH
    assert made["end_at_once"] == ""
    assert made["blank"]
    assert not made["blank"].strip()
    assert good.startswith(made["very_short"])
    assert good.startswith(made["truncated"])
    assert made["truncated"][-1].isalnum()
    assert len(set(pieces_of(made["repeated_word"]))) == 1
    assert made["prompt_copy"] == question
    assert sorted(pieces_of(made["shuffled"])) == sorted(pieces_of(good))
    assert made["good_twice"] == f"{good} {good}"
    assert made["very_long"].startswith(good)
    assert made["other_prompt"] == OTHER[1][0]
    assert made["wrong_language"] == CHINESE[1][0]


def test_special_tokens_are_those_of_the_tokenizer() -> None:
    made = [p.answer for p in make_probes(EXAMPLES, seed=0, marks=("<|end|>",)) if p.kind == "special_tokens"]
    assert made
    assert all(set(answer.split()) == {"<|end|>"} for answer in made)


def test_a_text_of_several_texts_is_cut_where_sentences_end() -> None:
    (material, *_) = gather_materials(EXAMPLES)
    assert (material.language, material.alike, material.foreign) == ("zh", (), (ENGLISH[1][0], OTHER[1][0]))


def test_what_is_trained_against_is_not_what_is_examined() -> None:
    """The same rows make no answer that is both, and no phrase is in both lists."""
    examples = World(0).preferences(150)
    trained = {example.answers[1].strip() for example in negatives.make_negatives(examples, 1.0, seed=0)}
    tried = {probe.answer.strip() for probe in make_probes(examples, seed=0) if probe.kind in FATAL}
    shared = trained & tried
    assert len(trained) > 100
    assert all(len(pieces_of(answer)) <= 1 for answer in shared)  # one character is one character
    own = {phrase for phrases in probes.POLITENESS.values() for phrase in phrases}
    assert own.isdisjoint(phrase for phrases in negatives.ASSENT.values() for phrase in phrases)
    assert MAKERS.keys().isdisjoint(negatives.MAKERS)

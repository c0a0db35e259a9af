"""Every way of writing a row down, and every way of getting it wrong."""

from __future__ import annotations

from typing import Any

import pytest
from format_rows import (
    GOOD_ROWS,
    GPT_1,
    HC3,
    HUMAN_1,
    NAMED_ROWS,
    ORIGIN,
    USER,
    answer,
    assistant,
    node,
)

from duiqi.data.formats import FORMATS, convert, recognise_format
from duiqi.errors import DataError
from duiqi.types import Example, Message


def read(row: dict[str, Any]) -> tuple[str, tuple[Example, ...]]:
    name = recognise_format(row, ORIGIN)
    return name, convert(row, name, ORIGIN)


@pytest.mark.parametrize(("row", "name", "examples"), GOOD_ROWS)
def test_a_row_is_recognised_and_converted(row: dict[str, Any], name: str, examples: tuple[Example, ...]) -> None:
    assert read(row) == (name, examples)


@pytest.mark.parametrize(("row", "name", "examples"), NAMED_ROWS)
def test_a_format_that_columns_do_not_tell_is_converted_when_it_is_named(
    row: dict[str, Any], name: str, examples: tuple[Example, ...]
) -> None:
    assert convert(row, name, ORIGIN) == examples


def test_every_format_is_tried_above() -> None:
    assert {name for _, name, _ in [*GOOD_ROWS, *NAMED_ROWS]} == set(FORMATS)
    assert len(FORMATS) == 26


def test_every_conversion_yields_a_kind_its_format_declares() -> None:
    made = [(name, example.kind) for _, name, examples in [*GOOD_ROWS, *NAMED_ROWS] for example in examples]
    assert all(kind in FORMATS[name].kinds for name, kind in made)


def test_a_format_that_can_give_nothing_says_why() -> None:
    silent = {name for _, name, examples in [*GOOD_ROWS, *NAMED_ROWS] if not examples}
    assert silent == {"preference", "webgpt", "comparison_gpt4", "hc3", "hc3_prefer_human", "single_round", "ultrachat"}
    assert all(FORMATS[name].leaves_out for name in silent)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "q", "output": 3}, "output: found the value 3, expected text"),
        ({"instruction": " ", "output": "a"}, "instruction: found empty text, expected a question"),
        (
            {"instruction": "q", "output": "a", "history": [["q1"]]},
            r"history: found a list of 1, expected pairs of text \[question, answer\]",
        ),
        ({"instruction": "q", "output": "a", "history": [["q1", ""]]}, "history: turn 2 is empty"),
        ({"instruction": "q", "output": ["a"]}, "found 1 answer, expected at least two"),
        ({"instruction": "q", "output": ["a", " "]}, "one of the answers: found empty text, expected text"),
        ({"instruction": "q", "output": ["a", None]}, "one of the answers: found nothing, expected text"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected: found empty text, expected text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "2"}, "margin: found text '2', expected a number"),
        ({"chosen": "a", "rejected": "b"}, "found no prompt"),
        (
            {"chosen": [USER, assistant("a")], "rejected": [{"role": "user", "content": "other"}, assistant("b")]},
            "chosen and rejected answer different prompts",
        ),
        (
            {"prompt": "other", "chosen": [USER, assistant("a")], "rejected": [USER, assistant("b")]},
            "chosen begins with another prompt than the one stated",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: other\n\nAssistant: b"},
            "chosen and rejected differ before their last answer",
        ),
        ({"chosen": "\n\nHuman: q", "rejected": "x"}, "chosen: found a transcript that does not end in an answer"),
        ({"messages": "hello"}, "messages: found text 'hello', expected a list of messages"),
        ({"messages": [{"role": "spirit", "content": "x"}]}, "messages: role: found text 'spirit'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages: a message calls a tool or tells its result"),
        (
            {"conversations": [HUMAN_1, {"from": "function_call", "value": "x"}]},
            "conversations: a message calls a tool",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages: a message calls a tool",
        ),
        ({"messages": [USER, assistant("a")], "tools": '[{"name": "f"}]'}, "tools: found tools to call"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages: a part of a message: found text 'image_url', expected text alone",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}, "score_chosen 1 is"),
        ({"instruction": "q", "output": ["a", "b"], "scores": [1]}, "scores: found a list of 1, expected a list of 2"),
        ({"instruction": "q", "output": ["a", "b"], "scores": [1, None]}, "scores: found nothing, expected a number"),
        ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, "labels: found the value 2, expected"),
        (
            {"question": {"id": 1}, "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1},
            "question: found nothing, expected text, or an object with full_text",
        ),
        (
            {"question": "q", "answer_0": "a", "answer_1": "b", "score_0": "x", "score_1": -1},
            "score_0: found text 'x', expected a number",
        ),
        ({"user_input": "q", "responses_and_scores": "x"}, "responses_and_scores: found text 'x', expected a list of"),
        ({"instruction": "q", "completions": [{"response": "a"}]}, "completions: rating: found nothing, expected one"),
        ({"prompt": "q", "completion": "", "label": True}, "completion: found empty text, expected an answer that was"),
        ({"completion": "a", "label": True}, "found no prompt, expected one for the answer"),
        ({"prompt": "q", "completion": "a", "kto_tag": "yes"}, "kto_tag: found text 'yes', expected true or false"),
        ({**HC3, "chatgpt_answers": [3]}, "chatgpt_answers: found the value 3, expected texts"),
        ({"data": ["q", 3]}, "data: found a list of 2, expected a list of texts, user and assistant by turns"),
        ({"prompt": answer("a")}, "found an answer where a question was expected"),
        ({"prompt": node("q", node("q"))}, "found a question where an answer was expected"),
        ({"prompt": node("q", answer("a", rank="first"))}, "rank: found text 'first', expected a number"),
        ({"input": "", "target": "a"}, "input: found empty text, expected text"),
        ({"messages": [{"role": "user", "content": None}]}, "messages: content of user: found nothing, expected text"),
        ({"messages": [assistant("a")]}, "messages: found no last turn of the user"),
        ({"messages": [USER, USER, assistant("a")]}, "messages: turn 2 is user's, expected assistant's"),
        ({"conversations": [GPT_1, HUMAN_1, GPT_1]}, "conversations: turn 1 is assistant's, expected user's"),
        ({"conversations": [{"speaker": "me"}]}, "conversations: role: found nothing, expected system"),
        ({"text": 3}, "text: found the value 3, expected text"),
    ],
)
def test_a_malformed_row_says_what_was_found_and_what_was_expected(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.json:7: {message}"):
        read(row)


def test_unknown_columns_are_refused_with_the_known_formats() -> None:
    with pytest.raises(DataError, match=r"found the columns question, reply, expected for instance those of alpaca"):
        read({"question": "q", "reply": "a"})


def test_judgements_of_single_steps_are_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match="judgements of the steps of one answer, from which no stage learns"):
        read({"prompt": "q", "completions": ["first", "second"], "labels": [True, False]})


def test_a_comparison_of_gpt4_loses_alpacas_frame_and_its_empty_answers() -> None:
    scored = [{"response": "", "score": 1}, {"response": "bad", "score": 2}, {"response": "good", "score": 8}]
    asked = "Below is an instruction.\n\n### Instruction:\nq1\n\n### Input:\nx\n\n### Response:"
    (example,) = convert({"user_input": asked, "responses_and_scores": scored}, "comparison_gpt4", ORIGIN)
    assert (example.prompt, example.answers) == ((Message("user", "q1\nx"),), ("good", "bad"))


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\nHuman: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:", ["a\nHuman: b", "c", "d"]),
        ("Human: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:", ["q1", "a1", "q2"]),
        ("Human:一段\n\n两段\nAssistant:好\nHuman:再来\nAssistant:\n", ["一段\n\n两段", "好", "再来"]),
        ("用户: 问 助理: 答 用户: 再问 助理：", ["问", "答", "再问"]),
    ],
)  # fmt: skip
def test_a_transcript_is_divided_at_its_own_kind_of_markers(text: str, turns: list[str]) -> None:
    (example,) = convert({"prompt": text, "completion": "a"}, "completion", ORIGIN)
    assert [message.content for message in example.prompt] == turns


def test_equal_scores_make_no_pair() -> None:
    (example,) = convert({"prompt": "q", "output": ["c", "b", "a"], "scores": [1, 2, 2]}, "comparison", ORIGIN)
    assert example.pairs() == [("b", "c"), ("a", "c")]
    assert convert({"prompt": "q", "output": ["c", "b"], "scores": [1, 1]}, "comparison", ORIGIN) == ()

"""Every way of writing a row down, and every way of getting it wrong."""

from __future__ import annotations

from typing import Any

import pytest

from duiqi.data.formats import FORMATS, convert, recognise_format
from duiqi.errors import DataError
from duiqi.types import Example, Message, Origin

ORIGIN = Origin("set", "rows.json", 7)
QUESTION = (Message("user", "q"),)
DIALOGUE = (Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"))
HUMAN_1 = {"from": "human", "value": "q1"}
GPT_1 = {"from": "gpt", "value": "a1"}
HUMAN_2 = {"from": "human", "value": "q2"}
USER = {"role": "user", "content": "q"}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(row: dict[str, Any]) -> tuple[str, Example]:
    name = recognise_format(row, ORIGIN)
    return name, convert(row, name, ORIGIN)


def demonstration(prompt: tuple[Message, ...]) -> Example:
    return Example("demonstration", prompt, ("a",), ORIGIN)


def ranking(prompt: tuple[Message, ...], *answers: str, margin: float = 0.0) -> Example:
    return Example("ranking", prompt, answers or ("good", "bad"), ORIGIN, margin)


def prompt_only(prompt: tuple[Message, ...]) -> Example:
    return Example("prompt", prompt, (), ORIGIN)


ALPACA_DIALOGUE = {"instruction": "q2", "history": [["q1", "a1"]]}
GOOD_ROWS: list[tuple[dict[str, Any], str, Example]] = [
    ({"instruction": "q", "output": "a"}, "alpaca", demonstration(QUESTION)),
    ({"instruction": "q", "input": "x", "output": "a"}, "alpaca", demonstration((Message("user", "q\nx"),))),
    (
        {**ALPACA_DIALOGUE, "system": "s", "output": "a"},
        "alpaca",
        demonstration((Message("system", "s"), *DIALOGUE)),
    ),
    ({"instruction": "q", "input": None, "output": "", "history": None}, "alpaca", prompt_only(QUESTION)),
    ({"instruction": "q", "output": ["1", "2", "3"]}, "comparison", ranking(QUESTION, "1", "2", "3")),
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "preference", ranking(QUESTION)),
    ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2}, "preference", ranking(QUESTION, margin=2.0)),
    (
        {"prompt": [USER], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        "preference",
        ranking(QUESTION),
    ),
    ({"chosen": [USER, assistant("good")], "rejected": [USER, assistant("bad")]}, "preference", ranking(QUESTION)),
    (
        {"prompt": "q", "chosen": [USER, assistant("good")], "rejected": [USER, assistant("bad")]},
        "preference",
        ranking(QUESTION),
    ),
    ({**ALPACA_DIALOGUE, "chosen": "good", "rejected": "bad"}, "preference", ranking(DIALOGUE)),
    (
        {
            "conversations": [HUMAN_1, GPT_1, HUMAN_2],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        "preference",
        ranking(DIALOGUE),
    ),
    (
        {"prompt": "Human: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:", "chosen": " good", "rejected": " bad"},
        "preference",
        ranking(DIALOGUE),
    ),
    ({"prompt": "Human: q Assistant:", "chosen": " good", "rejected": " bad"}, "preference", ranking(QUESTION)),
    (
        {
            "chosen": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: good",
            "rejected": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: bad",
        },
        "hh_rlhf",
        ranking(DIALOGUE),
    ),
    ({"conversations": [HUMAN_1, GPT_1, HUMAN_2, {"from": "gpt", "value": "a"}]}, "sharegpt", demonstration(DIALOGUE)),
    (
        {"conversations": [HUMAN_1, GPT_1, HUMAN_2], "system": "s"},
        "sharegpt",
        prompt_only((Message("system", "s"), *DIALOGUE)),
    ),
    (
        {"messages": [{"role": "system", "content": "s"}, USER, assistant("a")]},
        "messages",
        demonstration((Message("system", "s"), *QUESTION)),
    ),
    ({"prompt": "q", "completion": "a"}, "completion", demonstration(QUESTION)),
    ({"prompt": [USER], "completion": [assistant("a")]}, "completion", demonstration(QUESTION)),
    ({"prompt": "q", "output": "a"}, "completion", demonstration(QUESTION)),
    ({"prompt": "q", "id": 3}, "prompt", prompt_only(QUESTION)),
    ({"instruction": "q", "input": ""}, "prompt", prompt_only(QUESTION)),
    ({"text": "t"}, "text", Example("text", (), ("t",), ORIGIN)),
]


@pytest.mark.parametrize(("row", "name", "example"), GOOD_ROWS)
def test_a_row_is_recognised_and_converted(row: dict[str, Any], name: str, example: Example) -> None:
    assert read(row) == (name, example)


def test_every_format_is_tried_above() -> None:
    assert {name for _, name, _ in GOOD_ROWS} == set(FORMATS)
    assert len(FORMATS) == 9


def test_every_conversion_yields_a_kind_its_format_declares() -> None:
    assert all(example.kind in FORMATS[name].kinds for _, name, example in GOOD_ROWS)


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
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages: role: found text 'tool'"),
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
    with pytest.raises(DataError, match=r"found the columns question, reply, expected those of one of: hh_rlhf"):
        read({"question": "q", "reply": "a"})

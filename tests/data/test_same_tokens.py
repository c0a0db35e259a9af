"""However the same content is written down, and whichever stage asks, the token ids and masks are the same."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
from tiny_tokenizers import CHAT_TEMPLATES, build_tokenizer
from transformers import PreTrainedTokenizerFast

from duiqi.data.encoded import encode_demonstrations, encode_prompts, encode_rankings
from duiqi.data.encoding import encode_conversation, token_budget
from duiqi.data.feedback import encode_feedback
from duiqi.data.formats import FORMATS, convert, recognise_format
from duiqi.data.named_templates import TEMPLATES
from duiqi.data.templates import Template, get_template
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.decoder import Decoder
from duiqi.serving.speaker import Speaker
from duiqi.types import Example, Message, Origin

ORIGIN = Origin("set")
TOKENIZER = build_tokenizer(adds_bos=True)
BUDGET = token_budget(1000, max_prompt_tokens=900)

Q1, A1, Q2 = "你好", "Hello", "今天天气怎么样？"
GOOD, BAD = "很好。", "no"


def said(*texts: str, keys: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    roles = ("user", "assistant") if keys[0] == "role" else ("human", "gpt")
    return [{keys[0]: roles[place % 2], keys[1]: text} for place, text in enumerate(texts)]


def answered(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def hh(*texts: str) -> str:
    return "".join(f"\n\n{'Assistant' if place % 2 else 'Human'}: {text}" for place, text in enumerate(texts))


ROUNDS = {"instruction": Q2, "input": "", "history": [[Q1, A1]]}
OPEN = hh(Q1, A1, Q2) + "\n\nAssistant:"
SHAREGPT = ("from", "value")
TREE = {
    "text": Q1,
    "role": "prompter",
    "replies": [
        {"text": A1, "role": "assistant", "replies": [{"text": Q2, "role": "prompter", "replies": [
            {"text": GOOD, "role": "assistant", "rank": 0}, {"text": BAD, "role": "assistant", "rank": 1}]}]}
    ],
}  # fmt: skip

DIALOGUES: list[dict[str, Any]] = [
    {**ROUNDS, "output": GOOD},
    {"instruction": f"Human:{Q1}\nAssistant:{A1}\nHuman:{Q2}\nAssistant:", "input": "", "output": GOOD},
    {"messages": said(Q1, A1, Q2, GOOD)},
    {"conversations": said(Q1, A1, Q2, GOOD, keys=SHAREGPT)},
    {"data": [Q1, A1, Q2, GOOD]},
    {"prompt": OPEN, "response": f" {GOOD}"},
    {"prompt": said(Q1, A1, Q2), "completion": answered(GOOD)},
    {"prompt": TREE},
]
QUESTIONS: list[dict[str, Any]] = [
    {"instruction": Q1, "input": "", "output": GOOD},
    {"kind": "QA", "input": Q1, "target": GOOD},
    {"INSTRUCTION": Q1, "RESPONSE": GOOD},
    {"question": Q1, "human_answers": [BAD], "chatgpt_answers": [GOOD]},
    {"prompt": Q1, "completion": GOOD},
    {"question": Q1, "answer": GOOD},
    {"query": Q1, "response": GOOD},
    {"input": Q1, "output": GOOD},
]
DIALOGUE_PAIRS: list[dict[str, Any]] = [
    {**ROUNDS, "output": [GOOD, BAD]},
    {**ROUNDS, "chosen": GOOD, "rejected": BAD},
    {"prompt": OPEN, "response": f" {GOOD}", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
    {"prompt": f"人类：{Q1}\n助手：{A1}\n人类：{Q2}\n助手：", "chosen": GOOD, "rejected": BAD},
    {"chosen": hh(Q1, A1, Q2, GOOD), "rejected": hh(Q1, A1, Q2, BAD)},
    {"chosen": said(Q1, A1, Q2, GOOD), "rejected": said(Q1, A1, Q2, BAD)},
    {"prompt": said(Q1, A1, Q2), "chosen": answered(GOOD), "rejected": answered(BAD)},
    {"conversations": said(Q1, A1, Q2, keys=SHAREGPT), "chosen": answered(GOOD)[0], "rejected": answered(BAD)[0]},
    {"prompt": TREE},
]
QUESTION_PAIRS: list[dict[str, Any]] = [
    {"prompt": Q1, "chosen": GOOD, "rejected": BAD},
    {"history": Q1, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0},
    {"question": Q1, "response_j": GOOD, "response_k": BAD},
    {"question": {"full_text": Q1}, "answer_0": BAD, "answer_1": GOOD, "score_0": -1, "score_1": 1},
    {"user_input": Q1, "responses_and_scores": [{"response": BAD, "score": 2}, {"response": GOOD, "score": 9}]},
    {"instruction": Q1, "completions": [{"response": BAD, "rating": 2}, {"response": GOOD, "rating": 3}]},
]
OPINIONS: list[dict[str, Any]] = [
    {"prompt": Q1, "completion": GOOD, "label": False},
    {"prompt": said(Q1), "completion": answered(GOOD), "label": False},
    {"messages": said(Q1, GOOD), "label": False},
    {"instruction": Q1, "input": "", "output": GOOD, "kto_tag": False},
    {"conversations": said(Q1, GOOD, keys=SHAREGPT), "kto_tag": False},
]
UNSPELLED = {"prompt", "text", "oasst_messages", "single_round", "hc3_prefer_human", "hc3_prefer_chatgpt"}
"""Formats without a second spelling here: no answer, no conversation, or taken by name only."""


def examples(rows: list[dict[str, Any]], kind: str) -> list[Example]:
    made = [example for row in rows for example in convert(row, recognise_format(row, ORIGIN), ORIGIN)]
    found = [example for example in made if example.kind == kind]
    assert len(found) == len(rows)
    return found


@pytest.fixture(params=["zh_qa", "chatml"])
def template(request: pytest.FixtureRequest) -> Template:
    return get_template(request.param, TOKENIZER)


@pytest.mark.parametrize("rows", [DIALOGUES, QUESTIONS], ids=["dialogues", "questions"])
def test_every_spelling_of_a_demonstration_gives_the_same_tokens(template: Template, rows: list[Any]) -> None:
    first, *others = encode_demonstrations(
        template, TOKENIZER, examples=examples(rows, "demonstration"), budget=BUDGET
    ).items
    assert all(other == first for other in others)
    assert sum(first.answer_mask) > 0


@pytest.mark.parametrize("rows", [DIALOGUE_PAIRS, QUESTION_PAIRS], ids=["dialogues", "questions"])
def test_every_spelling_of_a_pair_gives_the_same_tokens(template: Template, rows: list[Any]) -> None:
    found = encode_rankings(template, TOKENIZER, examples=examples(rows, "ranking"), budget=BUDGET).items
    assert len({(tuple(item.prompt_ids), *map(tuple, item.answers)) for item in found}) == 1
    assert all(item.pairs == [(0, 1)] for item in found)


def test_every_spelling_of_an_opinion_gives_the_same_tokens(template: Template) -> None:
    told = examples(OPINIONS, "feedback")
    first, *others = encode_feedback(template, TOKENIZER, examples=told, budget=BUDGET).items
    assert all(other == first for other in others)
    assert {example.liked for example in told} == {False}


def test_every_format_is_among_the_spellings() -> None:
    rows = [*DIALOGUES, *QUESTIONS, *DIALOGUE_PAIRS, *QUESTION_PAIRS, *OPINIONS]
    assert {recognise_format(row, ORIGIN) for row in rows} == set(FORMATS) - UNSPELLED


SINGLE = (Message("user", Q1),)
MULTI = (Message("user", Q1), Message("assistant", A1), Message("user", Q2))
FRAMES = [("", ""), ("Be kind.", ""), ("", "前缀：")]
EVERY_TEMPLATE = [*TEMPLATES, *(f"chat:{name}" for name in CHAT_TEMPLATES)]


@pytest.mark.parametrize(
    ("name", "frame", "messages"),
    [
        (name, frame, messages)
        for name, frame, messages in itertools.product(EVERY_TEMPLATE, FRAMES, [SINGLE, MULTI])
        if not (name == "chat:stripping" and frame[0])  # it refuses system messages
    ],
)
def test_every_stage_evaluation_and_chat_read_a_prompt_as_the_same_ids(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast],
    name: str,
    frame: tuple[str, str],
    messages: tuple[Message, ...],
) -> None:
    is_chat = name.startswith("chat:")
    tokenizer = chat_tokenizers[name.removeprefix("chat:")] if is_chat else TOKENIZER
    template = get_template(None if is_chat else name, tokenizer, system=frame[0], source_prefix=frame[1])

    def one(kind: Any, *answers: str, liked: bool | None = None) -> list[Example]:
        return [Example(kind, messages, answers, ORIGIN, liked=liked)]

    (sft,) = encode_demonstrations(template, tokenizer, examples=one("demonstration", GOOD), budget=BUDGET).items
    (pair,) = encode_rankings(template, tokenizer, examples=one("ranking", GOOD, BAD), budget=BUDGET).items
    (opinion,) = encode_feedback(template, tokenizer, examples=one("feedback", GOOD, liked=True), budget=BUDGET).items
    (asked,) = encode_prompts(template, tokenizer, examples=one("prompt"), max_prompt_tokens=BUDGET.prompt).items
    scored = encode_conversation(template, tokenizer, example=one("demonstration", GOOD)[0], budget=BUDGET)
    speaker = Speaker(cast(SharedBase, None), tokenizer, template, cast(Decoder, None))
    ids = {
        "sft": sft.input_ids[: sft.prompt_length],
        "rm and dpo": pair.prompt_ids,
        "kto": opinion.prompt_ids,
        "ppo": asked.input_ids,
        "score": scored.input_ids[: scored.prompt_length],
        "generate and chat": speaker.prompt_ids(messages),
    }
    assert all(own == ids["sft"] for own in ids.values()), ids


@pytest.mark.parametrize("name", ["chatml", "stripping", "rewriting"])
@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_a_whole_conversation_has_the_ids_of_apply_chat_template(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast], name: str, messages: tuple[Message, ...]
) -> None:
    tokenizer = chat_tokenizers[name]
    whole = [{"role": m.role, "content": m.content} for m in (*messages, Message("assistant", GOOD))]
    expected = tokenizer.apply_chat_template(whole, return_dict=False)
    example = Example("demonstration", messages, (GOOD,), ORIGIN)
    ours = encode_conversation(get_template(None, tokenizer), tokenizer, example=example).input_ids
    assert expected[: len(ours)] == ours
    assert tokenizer.decode(expected[len(ours) :]).strip() == ""

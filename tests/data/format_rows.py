"""A few rows of every format, and the examples that each stands for."""

from __future__ import annotations

from typing import Any

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


def demonstration(prompt: tuple[Message, ...], answer: str = "a") -> Example:
    return Example("demonstration", prompt, (answer,), ORIGIN)


def ranking(prompt: tuple[Message, ...], *answers: str, margin: float = 0.0, scores: tuple[float, ...] = ()) -> Example:
    return Example("ranking", prompt, answers or ("good", "bad"), ORIGIN, margin, scores)


def prompt_only(prompt: tuple[Message, ...]) -> Example:
    return Example("prompt", prompt, (), ORIGIN)


def feedback(prompt: tuple[Message, ...], *, liked: bool) -> Example:
    return Example("feedback", prompt, ("a",), ORIGIN, liked=liked)


def node(text: str, *replies: dict[str, Any], role: str = "prompter", **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "replies": list(replies), **more}


def answer(text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return node(text, *replies, role="assistant", **more)


ALPACA_DIALOGUE = {"instruction": "q2", "history": [["q1", "a1"]]}
SCORED = [
    {"response": "bad", "overall_score": 3},
    {"response": "good", "overall_score": 8.5},
    {"response": "fair", "overall_score": 3.0},
]
ASPECTS = {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}}
TREE = node(
    "q1",
    answer("worse", node("why?", answer("so", rank=None)), rank=1),
    answer("a1", node("q2", answer("bad", rank=1), answer("good", rank=0)), node("deleted", deleted=True), rank=0),
    answer("gone", rank=2, deleted=True),
)
TREE_EXAMPLES = (
    ranking((Message("user", "q1"),), "a1", "worse"),
    ranking(DIALOGUE),
    demonstration(DIALOGUE, "good"),
)
HC3 = {"question": "q", "human_answers": ["h1", "h2"], "chatgpt_answers": ["c1", " ", "c2"], "source": "baike"}
GPT4 = [{"response": "fair", "score": 6}, {"response": "bad", "score": "3.0"}, {"response": "good", "score": 9.0}]

GOOD_ROWS: list[tuple[dict[str, Any], str, tuple[Example, ...]]] = [
    ({"instruction": "q", "output": "a"}, "alpaca", (demonstration(QUESTION),)),
    ({"instruction": "q", "input": "x", "output": "a"}, "alpaca", (demonstration((Message("user", "q\nx"),)),)),
    ({"input": "q", "output": "a"}, "alpaca", (demonstration(QUESTION),)),
    ({"instruction": "q", "context": "x", "response": "a"}, "alpaca", (demonstration((Message("user", "q\nx"),)),)),
    (
        {**ALPACA_DIALOGUE, "system": "s", "output": "a"},
        "alpaca",
        (demonstration((Message("system", "s"), *DIALOGUE)),),
    ),
    ({"instruction": "q", "input": None, "output": "", "history": None}, "alpaca", (prompt_only(QUESTION),)),
    (
        {"instruction": "Human:q1\nAssistant:a1\nHuman:q2\nAssistant:", "input": "", "output": "a"},
        "belle",
        (demonstration(DIALOGUE),),
    ),
    ({"instruction": "q", "output": ["1", "2", "3"]}, "comparison", (ranking(QUESTION, "1", "2", "3"),)),
    (
        {"prompt": "q", "output": ["2", "3", "1"], "scores": [0.5, 0.5, 2]},
        "comparison",
        (ranking(QUESTION, "1", "2", "3", scores=(2.0, 0.5, 0.5)),),
    ),
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "preference", (ranking(QUESTION),)),
    ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2}, "preference", (ranking(QUESTION, margin=2.0),)),
    (
        {"prompt": [USER], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        "preference",
        (ranking(QUESTION),),
    ),
    ({"chosen": [USER, assistant("good")], "rejected": [USER, assistant("bad")]}, "preference", (ranking(QUESTION),)),
    (
        {
            "prompt": "q",
            "messages": [USER, assistant("good")],
            "chosen": [USER, assistant("good")],
            "rejected": [USER, assistant("bad")],
            "score_chosen": 8,
            "score_rejected": 4.5,
        },
        "preference",
        (ranking(QUESTION, scores=(8.0, 4.5)),),
    ),
    (
        {"prompt": "q", "chosen": "good", "rejected": "bad", "score_chosen": 8, "score_rejected": 8},
        "preference",
        (),
    ),
    ({**ALPACA_DIALOGUE, "chosen": "good", "rejected": "bad"}, "preference", (ranking(DIALOGUE),)),
    (
        {
            "conversations": [HUMAN_1, GPT_1, HUMAN_2],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        "preference",
        (ranking(DIALOGUE),),
    ),
    (
        {
            "context": [{"role": "human", "text": "q"}],
            "chosen": {"role": "assistant", "text": "good"},
            "rejected": {"role": "assistant", "text": "bad"},
        },
        "preference",
        (ranking(QUESTION),),
    ),
    (
        {
            "prompt": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:",
            "response": " good",
            "chosen": " good",
            "rejected": " bad",
        },
        "preference",
        (ranking(DIALOGUE),),
    ),
    (
        {"prompt": "人类：q1\n助手：a1\n人类：q2\n助手：", "response": "good", "chosen": "good", "rejected": "bad"},
        "preference",
        (ranking(DIALOGUE),),
    ),
    ({"prompt": "Human: q Assistant:", "chosen": " good", "rejected": " bad"}, "preference", (ranking(QUESTION),)),
    (
        {
            "chosen": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: good",
            "rejected": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: bad",
        },
        "hh_rlhf",
        (ranking(DIALOGUE),),
    ),
    (
        {"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_ratio": 2.5},
        "shp",
        (ranking(QUESTION),),
    ),
    (
        {"qid": 1, "question": "q", "response_j": "good", "response_k": "bad"},
        "stack_exchange",
        (ranking(QUESTION),),
    ),
    (
        {"question": {"full_text": "q"}, "answer_0": "bad", "answer_1": "good", "score_0": -0.5, "score_1": 0.5},
        "webgpt",
        (ranking(QUESTION, scores=(0.5, -0.5)),),
    ),
    ({"question": {"full_text": "q"}, "answer_0": "1", "answer_1": "2", "score_0": 0.0, "score_1": 0.0}, "webgpt", ()),
    (
        {"user_input": "q", "responses_and_scores": GPT4},
        "comparison_gpt4",
        (ranking(QUESTION, scores=(9.0, 3.0)),),
    ),
    ({"user_input": "q", "responses_and_scores": GPT4[:1] + GPT4[2:]}, "comparison_gpt4", ()),
    (
        {"instruction": "q", "completions": SCORED},
        "ultrafeedback",
        (ranking(QUESTION, "good", "bad", "fair", scores=(8.5, 3.0, 3.0)),),
    ),
    (
        {
            "instruction": "q",
            "completions": [{"response": "bad", "rating": 4}, {"response": "good", "annotations": ASPECTS}],
        },
        "ultrafeedback",
        (ranking(QUESTION, scores=(4.5, 4.0)),),
    ),
    ({"prompt": "q", "completion": "a", "label": True}, "feedback", (feedback(QUESTION, liked=True),)),
    ({"prompt": [USER], "completion": [assistant("a")], "label": 0}, "feedback", (feedback(QUESTION, liked=False),)),
    ({"instruction": "q", "output": "a", "kto_tag": False}, "feedback", (feedback(QUESTION, liked=False),)),
    ({"messages": [USER, assistant("a")], "label": True}, "feedback", (feedback(QUESTION, liked=True),)),
    ({"prompt": TREE, "message_tree_id": "1"}, "oasst_trees", TREE_EXAMPLES),
    (HC3, "hc3", (demonstration(QUESTION, "c1"), demonstration(QUESTION, "c2"))),
    ({**HC3, "chatgpt_answers": []}, "hc3", ()),
    (
        {"conversations": [HUMAN_1, GPT_1, HUMAN_2, {"from": "gpt", "value": "a"}]},
        "sharegpt",
        (demonstration(DIALOGUE),),
    ),
    (
        {"conversations": [HUMAN_1, GPT_1, HUMAN_2], "system": "s", "tools": "[]"},
        "sharegpt",
        (prompt_only((Message("system", "s"), *DIALOGUE)),),
    ),
    (
        {"messages": [{"role": "developer", "content": "s"}, USER, assistant("a")]},
        "messages",
        (demonstration((Message("system", "s"), *QUESTION)),),
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, assistant("a")]},
        "messages",
        (demonstration(QUESTION),),
    ),
    ({"id": "0", "data": ["q1", "a1", "q2", "a", "left out"]}, "ultrachat", (demonstration(DIALOGUE),)),
    ({"id": "0", "data": ["q1"]}, "ultrachat", ()),
    ({"prompt": "q", "completion": "a"}, "completion", (demonstration(QUESTION),)),
    ({"prompt": [USER], "completion": [assistant("a")]}, "completion", (demonstration(QUESTION),)),
    ({"prompt": "q", "output": "a"}, "completion", (demonstration(QUESTION),)),
    ({"prompt": "USER: q ASSISTANT:", "label": "a"}, "completion", (demonstration(QUESTION),)),
    ({"kind": "Summary", "input": "q", "target": "a"}, "firefly", (demonstration(QUESTION),)),
    ({"INSTRUCTION": "q", "RESPONSE": "a", "SOURCE": "zhihu"}, "zhihu_kol", (demonstration(QUESTION),)),
    ({"question": "q", "answer": "a"}, "question_answer", (demonstration(QUESTION),)),
    ({"query": "q", "response": "a", "type": "x"}, "question_answer", (demonstration(QUESTION),)),
    ({"prompt": "q", "id": 3}, "prompt", (prompt_only(QUESTION),)),
    ({"prompt": [USER]}, "prompt", (prompt_only(QUESTION),)),
    ({"instruction": "q", "input": ""}, "prompt", (prompt_only(QUESTION),)),
    ({"prompt": "q", "completion": "a", "label": "True"}, "feedback", (feedback(QUESTION, liked=True),)),
    ({"prompt": "q", "completion": "a", "label": "0"}, "feedback", (feedback(QUESTION, liked=False),)),
    (
        {"instruction": "用户：买了苹果。请写出客服助手：", "output": "a"},
        "alpaca",
        (demonstration((Message("user", "用户：买了苹果。请写出客服助手："),)),),
    ),
    ({"text": "t"}, "text", (Example("text", (), ("t",), ORIGIN),)),
]
"""Rows that are recognised by their columns, and what they become."""

NAMED_ROWS: list[tuple[dict[str, Any], str, tuple[Example, ...]]] = [
    (HC3, "hc3_prefer_human", (ranking(QUESTION, "h1", "h2", "c1", "c2", scores=(1.0, 1.0, 0.0, 0.0)),)),
    (HC3, "hc3_prefer_chatgpt", (ranking(QUESTION, "c1", "c2", "h1", "h2", scores=(1.0, 1.0, 0.0, 0.0)),)),
    ({**HC3, "human_answers": []}, "hc3_prefer_human", ()),
    (
        {"prompt": "Human: q Assistant:", "chosen": "Assistant: good", "rejected": " bad"},
        "single_round",
        (ranking(QUESTION),),
    ),
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "single_round", (ranking(QUESTION),)),
    (
        {"prompt": "Human: q1 Assistant: a1 Human: q2 Assistant:", "chosen": "good", "rejected": "bad"},
        "single_round",
        (),
    ),
    ({"prompt": TREE}, "oasst_messages", TREE_EXAMPLES),
]
"""Rows of formats that are taken when they are named, or that are gathered from several rows first."""

"""The table of formats: which columns make each, what its rows can teach, and the function that converts them.

The columns of a dataset's first row tell the format, unless the data's entry or the setting names it. The functions
live in `duiqi.data.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from duiqi.data.reading import BadRow, Row
from duiqi.data.rows import answered, preferred, trees
from duiqi.data.rows.answered import ASKED_COLUMNS, COMPLETION_COLUMNS, INSTRUCTED_COLUMNS
from duiqi.data.rows.columns import Fields, has, is_yes_or_no
from duiqi.data.rows.turns import is_open_transcript, is_transcript
from duiqi.errors import DataError, did_you_mean
from duiqi.types import Example, ExampleKind, Origin


def never(_row: Fields) -> bool:
    """For formats that columns alone do not tell: they are taken when they are named."""
    return False


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing rows down."""

    columns: str
    """The columns that make it, as messages name them."""
    kinds: frozenset[ExampleKind]
    """What its rows can teach."""
    recognise: Callable[[Fields], bool]
    convert: Callable[[Fields, Origin], tuple[Example, ...]]
    leaves_out: str = ""
    """Why a row that is well written may make no example."""
    gather: Callable[[Sequence[Row | BadRow]], list[Row | BadRow]] | None = None
    """Makes the rows to convert out of those of the files, where one example takes several of them."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A format that is known and that nothing is learned from."""

    recognise: Callable[[Fields], bool]
    reason: str
    remedy: str


def recognise_format(row: Fields, origin: Origin) -> str:
    """The name of the format (a key of `FORMATS`) that the columns of `row` belong to.

    Raises:
        DataError: No format has these columns, or no stage learns from it.
    """
    for refusal in REFUSED:
        if refusal.recognise(row):
            raise DataError(refusal.reason, where=str(origin), remedy=refusal.remedy)
    for name, form in FORMATS.items():
        if form.recognise(row):
            return name
    expected = "; ".join(f"{name} ({FORMATS[name].columns})" for name in PLAINEST)
    raise DataError(
        f"found the columns {', '.join(map(str, row)) or '(none)'}, expected for instance those of {expected}",
        where=str(origin),
        remedy="rename the columns, or map them under `columns` in dataset_info.json; docs/data.md has all formats",
    )


def named_format(name: str, *, where: str) -> str:
    """The name itself, where it is a format's.

    Raises:
        DataError: There is no such format.
    """
    if name not in FORMATS:
        raise DataError(
            f"unknown format {name!r}",
            where=where,
            remedy=did_you_mean(name, FORMATS) or f"one of {', '.join(FORMATS)}",
        )
    return name


def convert(row: Fields, format_name: str, origin: Origin) -> tuple[Example, ...]:
    """The examples that a row of the named format stands for: mostly one; none where the row settles nothing.

    Raises:
        DataError: The row is malformed: what was found and what was expected.
    """
    return FORMATS[format_name].convert(row, origin)


def _is_list(row: Fields, column: str, of: type) -> bool:
    value = row.get(column)
    return isinstance(value, list) and bool(value) and isinstance(value[0], of)


def _has_question(row: Fields) -> bool:
    return "instruction" in row or "prompt" in row


def _has_completion(row: Fields) -> bool:
    *columns, label = COMPLETION_COLUMNS
    return has(row, "prompt") and (any(map(row.__contains__, columns)) or isinstance(row.get(label), str))


def _has_liking(row: Fields) -> bool:
    answers: tuple[Any, ...] = ("messages", "conversations", *COMPLETION_COLUMNS[:-1])
    return "kto_tag" in row or (is_yes_or_no(row.get("label")) and any(map(row.__contains__, answers)))


def _has_instruction(row: Fields) -> bool:
    return ("instruction" in row or "input" in row) and any(map(row.__contains__, INSTRUCTED_COLUMNS))


RANKING: frozenset[ExampleKind] = frozenset({"ranking"})
CONVERSATION: frozenset[ExampleKind] = frozenset({"demonstration", "prompt"})
TREE: frozenset[ExampleKind] = frozenset({"demonstration", "ranking"})
PROMPT: frozenset[ExampleKind] = frozenset({"prompt"})
TEXT: frozenset[ExampleKind] = frozenset({"text"})
FEEDBACK: frozenset[ExampleKind] = frozenset({"feedback"})

_TIES = "all its answers are rated the same"
_HC3 = "question, human_answers, chatgpt_answers"

FORMATS: dict[str, Format] = {
    "oasst_trees": Format(
        "prompt: a message with replies",
        TREE,
        lambda row: isinstance(row.get("prompt"), dict) and "replies" in row["prompt"],
        trees.tree,
        leaves_out="a tree has no answers of the kind that is wanted",
    ),
    "oasst_messages": Format(
        "message_id, parent_id, text, role",
        TREE,
        lambda row: has(row, "message_id", "parent_id", "text", "role"),
        trees.tree,
        leaves_out="a tree has no answers of the kind that is wanted",
        gather=trees.gather,
    ),
    "hh_rlhf": Format(
        "chosen and rejected transcripts of Human: and Assistant:",
        RANKING,
        lambda row: has(row, "chosen", "rejected") and is_transcript(row["chosen"]),
        preferred.hh_rlhf,
    ),
    "shp": Format(
        "history, human_ref_A, human_ref_B, labels",
        RANKING,
        lambda row: has(row, "history", "human_ref_A", "human_ref_B"),
        preferred.shp,
    ),
    "stack_exchange": Format(
        "question, response_j, response_k",
        RANKING,
        lambda row: has(row, "question", "response_j", "response_k"),
        preferred.stack_exchange,
    ),
    "webgpt": Format(
        "question, answer_0, answer_1, score_0, score_1",
        RANKING,
        lambda row: has(row, "question", "answer_0", "answer_1"),
        preferred.webgpt,
        leaves_out=_TIES,
    ),
    "comparison_gpt4": Format(
        "user_input, responses_and_scores",
        RANKING,
        lambda row: has(row, "user_input", "responses_and_scores"),
        preferred.comparison_gpt4,
        leaves_out="its best answer has not more than 5 points, or its worst not less",
    ),
    "ultrafeedback": Format(
        "instruction, completions: response and rating",
        RANKING,
        lambda row: _has_question(row) and _is_list(row, "completions", dict),
        preferred.ultrafeedback,
        leaves_out=_TIES,
    ),
    "feedback": Format("prompt, completion, label (or kto_tag)", FEEDBACK, _has_liking, preferred.feedback),
    "preference": Format(
        "prompt, chosen, rejected",
        RANKING,
        lambda row: has(row, "chosen", "rejected"),
        preferred.preference,
        leaves_out=_TIES,
    ),
    "single_round": Format(
        "prompt, chosen, rejected; one question only",
        RANKING,
        never,
        preferred.single_round,
        leaves_out="its prompt is more than one question",
    ),
    "comparison": Format(
        "instruction, output: a list of answers, best first",
        RANKING,
        lambda row: _has_question(row) and isinstance(row.get("output"), list),
        preferred.comparison,
        leaves_out=_TIES,
    ),
    "hc3": Format(
        _HC3,
        CONVERSATION,
        lambda row: has(row, "question", "chatgpt_answers"),
        answered.hc3,
        leaves_out="ChatGPT gave no answer",
    ),
    "hc3_prefer_human": Format(
        _HC3, RANKING, never, answered.hc3_prefer_human, leaves_out="people or ChatGPT gave no answer"
    ),
    "hc3_prefer_chatgpt": Format(
        _HC3, RANKING, never, answered.hc3_prefer_chatgpt, leaves_out="people or ChatGPT gave no answer"
    ),
    "messages": Format("messages: role, content", CONVERSATION, lambda row: has(row, "messages"), answered.messages),
    "sharegpt": Format(
        "conversations: from, value", CONVERSATION, lambda row: has(row, "conversations"), answered.sharegpt
    ),
    "ultrachat": Format(
        "data: texts by turns",
        CONVERSATION,
        lambda row: _is_list(row, "data", str),
        answered.ultrachat,
        leaves_out="there is no answer",
    ),
    "belle": Format(
        "instruction: a transcript of Human: and Assistant:, output",
        CONVERSATION,
        lambda row: _has_instruction(row) and is_open_transcript(row.get("instruction")),
        answered.alpaca,
    ),
    "completion": Format(
        "prompt, completion (or response, output)", CONVERSATION, _has_completion, answered.completion
    ),
    "alpaca": Format("instruction, input, output, history", CONVERSATION, _has_instruction, answered.alpaca),
    "firefly": Format("input, target", CONVERSATION, lambda row: has(row, "input", "target"), answered.firefly),
    "zhihu_kol": Format(
        "INSTRUCTION, RESPONSE", CONVERSATION, lambda row: has(row, "INSTRUCTION", "RESPONSE"), answered.zhihu_kol
    ),
    "question_answer": Format(
        "question, answer (or query, response)",
        CONVERSATION,
        lambda row: any(has(row, *names) for names in ASKED_COLUMNS),
        answered.question_answer,
    ),
    "prompt": Format("prompt, or instruction without output", PROMPT, _has_question, answered.prompt),
    "text": Format("text", TEXT, lambda row: "text" in row, answered.plain_text),
}
"""Tried in this order: the more particular comes first."""

PLAINEST = ("alpaca", "comparison", "preference", "messages", "sharegpt", "feedback", "prompt", "text")
"""What messages suggest, one of each kind."""

REFUSED: tuple[Refusal, ...] = (
    Refusal(
        lambda row: has(row, "completions", "labels") and isinstance(row["completions"], list),
        "found completions and labels: judgements of the steps of one answer, from which no stage learns",
        "for a reward model, write whole answers as prompt, chosen and rejected",
    ),
)

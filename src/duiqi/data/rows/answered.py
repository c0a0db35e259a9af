"""Rows with one answer, with none, and plain text: what the sft, ppo and pretrain stages read."""

from __future__ import annotations

from duiqi.data.rows.columns import Fields, malformed, text, texts
from duiqi.data.rows.prompts import demonstration, instruction_prompt, ranking, reply, stated_prompt
from duiqi.data.rows.turns import Messages, alternating, checked, message_list, with_system
from duiqi.errors import DataError
from duiqi.types import Example, Message, Origin

COMPLETION_COLUMNS = ("completion", "response", "output", "label")
INSTRUCTED_COLUMNS = ("output", "response")
"""Where the answer to an instruction stands."""
ASKED_COLUMNS = (("question", "answer"), ("query", "response"))
"""Under which names a question and its answer may stand."""


def alpaca(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """instruction, input, output, history. An instruction may be a transcript, as BELLE writes conversations."""
    output, response = INSTRUCTED_COLUMNS
    answer = text(row, response if response in row and output not in row else output, origin, may_be_empty=True)
    return (demonstration(instruction_prompt(row, origin), answer, origin),)


def completion(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """prompt, and its completion under one of several names."""
    column = next((name for name in COMPLETION_COLUMNS if name in row), COMPLETION_COLUMNS[0])
    prompt, answer = reply(row, column, stated_prompt(row, origin), origin, may_be_empty=True)
    return (demonstration(prompt, answer, origin),)


def prompt(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """A prompt alone."""
    return (demonstration(stated_prompt(row, origin), "", origin),)


def plain_text(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """Text to continue."""
    return (Example("text", (), (text(row, "text", origin),), origin),)


def firefly(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """kind, input, target."""
    return (_asked_and_answered(row, "input", "target", origin),)


def question_answer(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """question and answer, or query and response."""
    question, answer = next(names for names in ASKED_COLUMNS if names[0] in row or names == ASKED_COLUMNS[-1])
    return (_asked_and_answered(row, question, answer, origin),)


def zhihu_kol(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """INSTRUCTION, RESPONSE."""
    return (_asked_and_answered(row, "INSTRUCTION", "RESPONSE", origin),)


def _asked_and_answered(row: Fields, question: str, answer: str, origin: Origin) -> Example:
    asked = with_system(row, (Message("user", text(row, question, origin)),), origin)
    return demonstration(asked, text(row, answer, origin, may_be_empty=True), origin)


def messages(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """A list of messages with role and content."""
    return (_conversation(row, "messages", origin),)


def sharegpt(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """A list of messages with from and value."""
    return (_conversation(row, "conversations", origin),)


def _conversation(row: Fields, column: str, origin: Origin) -> Example:
    turns, answer = split_conversation(row, column, origin)
    return demonstration(turns, answer, origin)


def split_conversation(row: Fields, column: str, origin: Origin) -> tuple[Messages, str]:
    """A conversation as its prompt and the answer at its end; no answer where the user has the last word.

    Raises:
        DataError: It offers tools, or its turns are not what they should be.
    """
    if row.get("tools") not in (None, "", "[]", []):
        raise DataError("tools: found tools to call, which duiqi does not train on", where=str(origin))
    turns = with_system(row, message_list(row.get(column), column, origin), origin)
    if turns and turns[-1].role == "assistant":
        return checked(turns[:-1], column, origin), turns[-1].content
    return checked(turns, column, origin), ""


def ultrachat(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """data: the texts of user and assistant by turns. A last question without an answer is left out."""
    said = row.get("data")
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        malformed("data", said, "a list of texts, user and assistant by turns", origin)
    turns = alternating(said[: len(said) // 2 * 2])
    if not turns:
        return ()
    return (demonstration(checked(turns[:-1], "data", origin), turns[-1].content, origin),)


def hc3(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """question, human_answers, chatgpt_answers: a demonstration for each of ChatGPT's answers."""
    asked = (Message("user", text(row, "question", origin)),)
    return tuple(demonstration(asked, answer, origin) for answer in texts(row, "chatgpt_answers", origin))


def hc3_prefer_human(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """The same as a ranking in which every human answer beats every one of ChatGPT's."""
    return _hc3_pairs(row, "human_answers", "chatgpt_answers", origin)


def hc3_prefer_chatgpt(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """The same the other way round."""
    return _hc3_pairs(row, "chatgpt_answers", "human_answers", origin)


def _hc3_pairs(row: Fields, better: str, worse: str, origin: Origin) -> tuple[Example, ...]:
    asked = (Message("user", text(row, "question", origin)),)
    winners, losers = texts(row, better, origin), texts(row, worse, origin)
    if not winners or not losers:
        return ()
    scores = [1.0] * len(winners) + [0.0] * len(losers)
    return ranking(asked, [*winners, *losers], row, origin, scores=scores)

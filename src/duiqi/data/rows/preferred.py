"""Rows with several answers of which some are better, and rows that say whether one was liked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from duiqi.data.rows.answered import COMPLETION_COLUMNS, split_conversation
from duiqi.data.rows.columns import Fields, malformed, number, text, yes_or_no
from duiqi.data.rows.prompts import ranking, reply, stated_prompt
from duiqi.data.rows.turns import checked, transcript
from duiqi.errors import DataError
from duiqi.types import Example, Message, Origin

SCORES_OF_PAIRS = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"))
"""Under which names the answers of a pair may be scored."""
RATINGS = ("fine-grained_score", "overall_score", "score", "rating")
"""Under which names a completion may be rated, the most telling first."""
MIDDLE_SCORE = 5.0
"""Of GPT-4's ten: ChatGLM-Efficient-Tuning made a pair where the best answer has more and the worst one less."""


def comparison(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """A list of answers, best first; with `scores` they may stand in any order."""
    answers = row.get("output")
    if not isinstance(answers, list):
        malformed("output", answers, "a list of answers, best first", origin)
    given = row.get("scores") or []
    if not isinstance(given, list) or len(given) not in (0, len(answers)):
        malformed("scores", given, f"a list of {len(answers)} numbers, one for each answer", origin)
    scores = [number(score, "scores", origin) for score in given]
    return ranking(stated_prompt(row, origin), answers, row, origin, scores=scores)


def preference(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """Two answers to one prompt, which stands in columns of its own or at the head of both message lists."""
    stated = stated_prompt(row, origin)
    prompts, answers = zip(*(reply(row, column, stated, origin) for column in ("chosen", "rejected")), strict=True)
    if prompts[0] != prompts[1]:
        raise DataError("chosen and rejected answer different prompts, expected the same prompt", where=str(origin))
    if not prompts[0]:
        raise DataError("found no prompt, expected one for chosen and rejected to reply to", where=str(origin),
                        remedy="give it a column of its own, prompt")  # fmt: skip
    return ranking(prompts[0], answers, row, origin, scores=_scores_of_pair(row, origin))


def _scores_of_pair(row: Fields, origin: Origin) -> list[float]:
    """The scores of chosen and rejected; none where the row does not give both."""
    for names in SCORES_OF_PAIRS:
        if all(row.get(name) is not None for name in names):
            better, worse = (number(row[name], name, origin) for name in names)
            if better < worse:
                raise DataError(f"{names[0]} {better:g} is below {names[1]} {worse:g}", where=str(origin))
            return [better, worse]
    return []


def single_round(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """prompt, chosen, rejected of HH-RLHF's kind where the prompt is one question; nothing of longer conversations."""
    return () if text(row, "prompt", origin).count("Human:") > 1 else preference(row, origin)


def hh_rlhf(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """Two whole transcripts that differ in their last answer."""
    prompts, answers = [], []
    for column in ("chosen", "rejected"):
        turns = transcript(text(row, column, origin))
        if not turns or turns[-1].role != "assistant":
            raise DataError(f"{column}: found a transcript that does not end in an answer", where=str(origin))
        prompts.append(checked(turns[:-1], column, origin))
        answers.append(turns[-1].content)
    if prompts[0] != prompts[1]:
        raise DataError("chosen and rejected differ before their last answer, expected one prompt", where=str(origin))
    return ranking(prompts[0], answers, row, origin)


def shp(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """history (a post), human_ref_A, human_ref_B, labels: 1 when A is the better comment."""
    answers = [text(row, column, origin) for column in ("human_ref_A", "human_ref_B")]
    if not yes_or_no(row, "labels", origin):
        answers.reverse()
    return ranking((Message("user", text(row, "history", origin)),), answers, row, origin)


def stack_exchange(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """question, response_j, response_k: of two answers the one with more votes first."""
    answers = [text(row, column, origin) for column in ("response_j", "response_k")]
    return ranking((Message("user", text(row, "question", origin)),), answers, row, origin)


def webgpt(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """question, answer_0, answer_1, score_0, score_1."""
    question = row.get("question")
    asked = question.get("full_text") if isinstance(question, Mapping) else question
    if not isinstance(asked, str) or not asked.strip():
        malformed("question", asked, "text, or an object with full_text", origin)
    answers = [text(row, column, origin) for column in ("answer_0", "answer_1")]
    scores = [number(row.get(column), column, origin) for column in ("score_0", "score_1")]
    return ranking((Message("user", asked),), answers, row, origin, scores=scores)


def comparison_gpt4(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """user_input, responses_and_scores: the best answer above the worst, where GPT-4 gave them more and less than 5.

    Empty answers are passed over; among equal scores the text decides, as in ChatGLM-Efficient-Tuning.
    """
    given = row.get("responses_and_scores")
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        malformed("responses_and_scores", given, "a list of objects with response and score", origin)
    scored = sorted((number(one.get("score"), "score", origin), text(one, "response", origin, may_be_empty=True))
                    for one in given)  # fmt: skip
    scored = [(score, answer) for score, answer in scored if answer.strip()]
    if not scored or not scored[0][0] < MIDDLE_SCORE < scored[-1][0]:
        return ()
    (low, worst), (high, best) = scored[0], scored[-1]
    asked = _without_preamble(text(row, "user_input", origin))
    return ranking((Message("user", asked),), [best, worst], row, origin, scores=[high, low])


def _without_preamble(asked: str) -> str:
    """What Alpaca's frame holds: the instruction and, behind a line break, the input."""
    _, frame, inside = asked.partition("### Instruction:")
    if not frame:
        return asked
    instruction, _, given = inside.partition("### Response:")[0].partition("### Input:")
    return "\n".join(part.strip() for part in (instruction, given) if part.strip())


def ultrafeedback(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """instruction, completions: each with its response and a rating."""
    completions = row.get("completions")
    if not isinstance(completions, list) or not all(isinstance(one, Mapping) for one in completions):
        malformed("completions", completions, "a list of objects with response and rating", origin)
    answers = [text(one, "response", origin) for one in completions]
    ratings = [_rating(one, origin) for one in completions]
    return ranking(stated_prompt(row, origin), answers, row, origin, scores=ratings)


def _rating(completion: Mapping[str, Any], origin: Origin) -> float:
    """How a completion is rated: by a number of its own, or by the mean over the aspects it was judged in."""
    named = next((name for name in RATINGS if completion.get(name) is not None), None)
    if named is not None:
        return number(completion[named], named, origin)
    aspects = completion.get("annotations")
    if not isinstance(aspects, Mapping) or not aspects:
        malformed("completions: rating", aspects, f"one of {', '.join(RATINGS)}, or annotations", origin)
    ratings = [
        number(aspect.get("Rating") if isinstance(aspect, Mapping) else aspect, name, origin)
        for name, aspect in aspects.items()
    ]
    return sum(ratings) / len(ratings)


def feedback(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """A prompt, an answer, and whether it was liked (label or kto_tag)."""
    liked = yes_or_no(row, "kto_tag" if "kto_tag" in row else "label", origin)
    column = next((name for name in ("messages", "conversations") if name in row), None)
    if column is not None and "prompt" not in row:
        prompt, answer = split_conversation(row, column, origin)
    else:
        column = next((name for name in COMPLETION_COLUMNS[:-1] if name in row), COMPLETION_COLUMNS[0])
        prompt, answer = reply(row, column, stated_prompt(row, origin), origin, may_be_empty=True)
    if not prompt:
        raise DataError("found no prompt, expected one for the answer to reply to", where=str(origin))
    if not answer.strip():
        malformed(column, answer, "an answer that was liked or not", origin)
    return (Example("feedback", prompt, (answer,), origin, liked=liked),)

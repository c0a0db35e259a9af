"""Examples as rows of a few plain formats, which load back to the same examples."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from duiqi.data.loading import Need
from duiqi.errors import DataError
from duiqi.journal.files import writing
from duiqi.types import Example, ExampleKind, Message

Shape = Literal["messages", "alpaca", "preference", "comparison", "feedback", "prompt", "text"]


def natural_shape(examples: Sequence[Example]) -> Shape:
    """The format that keeps everything these examples say.

    Raises:
        DataError: No single format does: rankings and single answers are mixed, or a kind has no format here.
    """
    kinds = {example.kind for example in examples}
    if kinds <= {"demonstration", "prompt"}:
        return "prompt" if kinds == {"prompt"} else "messages"
    if kinds == {"ranking"}:
        return "preference" if all(len(example.answers) == 2 for example in examples) else "comparison"
    if kinds == {"text"}:
        return "text"
    if kinds == {"feedback"}:
        return "feedback"
    raise DataError(
        f"found rows of different kinds ({', '.join(sorted(kinds))}), which no one format can hold",
        where=f"dataset: {examples[0].origin.dataset}",
        remedy="name the format that you want with --to: comparison takes the rankings, messages every best answer",
    )


def record_of(example: Example, shape: Shape) -> dict[str, Any]:
    """One example as a row of a format, cut down to what the format can say.

    A ranking becomes a demonstration of its best answer, and anything becomes a prompt.

    Raises:
        DataError: The row lacks what the format needs.
    """
    if example.kind not in _ACCEPTED[shape]:
        needed = " or ".join(sorted(_ACCEPTED[shape]))
        raise DataError(
            f"found a {example.kind}, and {shape} rows are made of a {needed}",
            where=str(example.origin),
            remedy="choose another format with --to, or leave --to out",
        )
    return _RECORDS[shape](example)


def write_rows(target: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON lines, the whole file or none of it; gives their number.

    Raises:
        RunError: The place cannot be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        count = 0
        try:
            # Half an emoji has no UTF-8; its escape is valid in JSON, and loads back to the same half.
            with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
                for row in rows:
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    return count


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Keep what is there.

    Raises:
        DataError: Something is there already, and was not said to be overwritten.
    """
    if target.is_dir():
        raise DataError("a folder is here, expected the name of a file", where=str(target), remedy="give another name")
    if target.exists() and not overwrite:
        raise DataError(
            "this file is already there", where=str(target), remedy="give another name, or set overwrite: true"
        )


def _messages(example: Example) -> dict[str, Any]:
    answers = [Message("assistant", example.answers[0])] if example.answers else []
    return {"messages": _turns([*example.prompt, *answers])}


def _alpaca(example: Example) -> dict[str, Any]:
    system = [message.content for message in example.prompt if message.role == "system"]
    turns = [message.content for message in example.prompt if message.role != "system"]
    return {
        "instruction": turns[-1],
        "input": "",
        "output": example.answers[0] if example.answers else "",
        "history": [list(pair) for pair in zip(turns[:-1:2], turns[1:-1:2], strict=True)],
        "system": system[0] if system else "",
    }


def _preference(example: Example) -> dict[str, Any]:
    if len(example.answers) != 2:
        raise DataError(
            f"found {len(example.answers)} answers, and preference rows have two",
            where=str(example.origin),
            remedy="choose --to comparison, which ranks any number",
        )
    chosen, rejected = example.answers
    scores = dict(zip(("score_chosen", "score_rejected"), example.scores, strict=False))
    return {"prompt": _turns(example.prompt), "chosen": chosen, "rejected": rejected, **scores, **_margin(example)}


def _comparison(example: Example) -> dict[str, Any]:
    scores = {"scores": list(example.scores)} if example.scores else {}
    return {"prompt": _turns(example.prompt), "output": list(example.answers), **scores, **_margin(example)}


def _feedback(example: Example) -> dict[str, Any]:
    return {"prompt": _turns(example.prompt), "completion": example.answers[0], "label": example.liked}


def _prompt(example: Example) -> dict[str, Any]:
    return {"prompt": _turns(example.prompt)}


def _text(example: Example) -> dict[str, Any]:
    return {"text": example.answers[0]}


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _margin(example: Example) -> dict[str, float]:
    return {"margin": example.margin} if example.margin else {}


_CONVERSATION: frozenset[ExampleKind] = frozenset({"prompt", "demonstration", "ranking"})
_ACCEPTED: dict[Shape, frozenset[ExampleKind]] = {
    "messages": _CONVERSATION,
    "alpaca": _CONVERSATION,
    "preference": frozenset({"ranking"}),
    "comparison": frozenset({"ranking"}),
    "feedback": frozenset({"feedback"}),
    "prompt": _CONVERSATION | {"feedback"},
    "text": frozenset({"text"}),
}
NEEDS: dict[Shape, Need] = {"preference": "ranking", "comparison": "ranking", "feedback": "feedback"}
"""What is read for a format, of rows that can give several kinds; for the others, whatever they give."""
_RECORDS: dict[Shape, Callable[[Example], dict[str, Any]]] = {
    "messages": _messages,
    "alpaca": _alpaca,
    "preference": _preference,
    "comparison": _comparison,
    "feedback": _feedback,
    "prompt": _prompt,
    "text": _text,
}

"""A row as each stage sees it: token by token, what is learned, where it ends, what was cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from duiqi.data.encoding import (
    BROKEN_CHARACTER,
    EncodedSequence,
    TrainOn,
    encode_conversation,
    encode_ranking,
    fit_prompt,
)
from duiqi.errors import DataError, SettingsError
from duiqi.inspection.lens import Lens
from duiqi.inspection.text_checks import has_half_character
from duiqi.settings.conditions import listing
from duiqi.types import Example, ExampleKind

StageToShow = Literal["sft", "rm", "dpo", "ppo", "pretrain"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The fewest tokens that are whole characters together."""

    text: str
    ids: tuple[int, ...]
    learned: bool
    """Learned in this stage; of a reward model: part of the answer that is scored."""
    is_special: bool


@dataclass(frozen=True, slots=True)
class StageView:
    """One sequence of one stage."""

    stage: StageToShow
    what: str
    """Which answer it is of, and what happens with it."""
    pieces: tuple[Piece, ...]
    cut: tuple[str, ...] = ()
    """What was cut, in plain sentences."""

    @property
    def tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def learned(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces if piece.learned)


def choose_rows(count: int, *, rows: str = "", num_rows: int = 3, seed: int | None = None) -> list[int]:
    """Which rows (from 0) are to be shown: those named (from 1), or so many, the first or random ones.

    >>> choose_rows(10, rows="3,7-8"), choose_rows(10, num_rows=2)
    ([2, 6, 7], [0, 1])

    Raises:
        SettingsError: A row is named that is not there.
    """
    if not rows:
        if seed is None:
            return list(range(min(num_rows, count)))
        return sorted(random.Random(f"show:{seed}").sample(range(count), min(num_rows, count)))
    chosen: list[int] = []
    for part in rows.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdigit() and (last or first).isdigit() and 0 < int(first) <= int(last or first) <= count):
            raise SettingsError(
                f"{part.strip()!r} names no row; there are {count:,}", where="rows", remedy="write 3, or 3,7, or 3-7"
            )
        chosen += range(int(first) - 1, int(last or first))
    return chosen


def rows_at(examples: Sequence[Example], lines: str) -> list[int]:
    """Which rows (from 0) begin at some lines of their files, as `duiqi data check` names them.

    Raises:
        SettingsError: No row begins at one of them.
    """
    chosen: list[int] = []
    for part in lines.split(","):
        found = [index for index, example in enumerate(examples) if str(example.origin.line) == part.strip()]
        if not found:
            raise SettingsError(
                f"no row begins at line {part.strip()!r}", where="lines", remedy="write 17, or 17,240, as in file:line"
            )
        chosen += found
    return chosen


def views_of(example: Example, lens: Lens, stage: StageToShow | None = None) -> list[StageView]:
    """What the stages see of a row: those that can use it, or the one that is asked for.

    Raises:
        SettingsError: The stage has no use for such a row.
        DataError, TemplateError: The row cannot be written down.
    """
    if has_half_character(example):
        raise DataError("half of a character has no tokens", where=str(example.origin), remedy="mend the row")
    if stage is None:
        return [view for name in SHOWN[example.kind] for view in _VIEWS[name](example, lens)]
    if stage not in USABLE[example.kind]:
        raise SettingsError(
            f"{stage} has no use for a {example.kind} ({example.origin})",
            where="stage",
            remedy=f"leave it out, or choose {listing(USABLE[example.kind], last='or')}",
        )
    return _VIEWS[stage](example, lens)


def _sft(example: Example, lens: Lens) -> list[StageView]:
    return [_answered(example, lens, "sft", "the answer is learned")]


def _answered(example: Example, lens: Lens, stage: StageToShow, what: str) -> StageView:
    template = lens.needed_template()
    train_on: TrainOn = "all" if stage == "sft" else "last"
    sequence = encode_conversation(template, lens.tokenizer, example=example, budget=lens.budget, train_on=train_on)
    whole = encode_conversation(template, lens.tokenizer, example=example, train_on=train_on)
    answer = len(sequence.input_ids) - sequence.prompt_length, len(whole.input_ids) - whole.prompt_length
    cut = _cuts((sequence.prompt_length, whole.prompt_length), answer)
    return StageView(stage, what, _pieces(sequence, lens), cut)


def _ranked(example: Example, lens: Lens, stage: StageToShow) -> list[StageView]:
    template = lens.needed_template()
    kept = encode_ranking(template, lens.tokenizer, example=example, budget=lens.budget)
    whole = encode_ranking(template, lens.tokenizer, example=example)
    dropped = ("fewer than two different answers are left: the row is dropped",) if len(kept.answers) < 2 else ()
    views = []
    for place, answer in enumerate(kept.answers):
        name = ("chosen", "rejected")[place] if len(kept.answers) == 2 else f"answer {place + 1} of {len(kept.answers)}"
        what = f"{name}, scored at its last token" if stage == "rm" else f"{name}, compared with the reference"
        of_whole = len(whole.answers[place]) if len(whole.answers) == len(kept.answers) else len(answer)
        cut = _cuts((len(kept.prompt_ids), len(whole.prompt_ids)), (len(answer), of_whole))
        views.append(StageView(stage, what, _pieces(kept.sequence(place), lens), (*cut, *dropped)))
    return views


def _rm(example: Example, lens: Lens) -> list[StageView]:
    return _ranked(example, lens, "rm")


def _dpo(example: Example, lens: Lens) -> list[StageView]:
    if example.kind == "feedback":
        return [_answered(example, lens, "dpo", f"{'liked' if example.liked else 'not liked'}, for pref_loss: kto")]
    return _ranked(example, lens, "dpo")


def _ppo(example: Example, lens: Lens) -> list[StageView]:
    template = lens.needed_template()
    kept = fit_prompt(template, lens.tokenizer, messages=example.prompt, max_prompt_tokens=lens.budget.prompt).input_ids
    whole = fit_prompt(template, lens.tokenizer, messages=example.prompt, max_prompt_tokens=None).input_ids
    sequence = EncodedSequence(kept, [False] * len(kept), len(kept))
    cut = _cuts((len(kept), len(whole)), (0, 0))
    return [StageView("ppo", "the prompt; the policy writes on from here", _pieces(sequence, lens), cut)]


def _pretrain(example: Example, lens: Lens) -> list[StageView]:
    ids: list[int] = lens.tokenizer(example.answers[0], verbose=False)["input_ids"]
    ids = ids if ids[-1:] == [lens.tokenizer.eos_token_id] else [*ids, lens.tokenizer.eos_token_id]
    sequence = EncodedSequence(ids, [True] * len(ids), 0)
    return [StageView("pretrain", "every token is learned", _pieces(sequence, lens))]


def _cuts(prompt: tuple[int, int], answer: tuple[int, int]) -> tuple[str, ...]:
    """What is missing of (kept, whole) tokens."""
    told = []
    if prompt[0] < prompt[1]:
        told.append(f"the prompt had {prompt[1]:,} tokens: {prompt[1] - prompt[0]:,} cut at its beginning")
    if answer[0] < answer[1]:
        told.append(f"the answer had {answer[1]:,} tokens: {answer[1] - answer[0]:,} cut at its end")
    return tuple(told)


def _pieces(sequence: EncodedSequence, lens: Lens) -> tuple[Piece, ...]:
    """Tokens as text, those together that make one character only together."""
    special = set(lens.tokenizer.all_special_ids) | {
        number for number, token in lens.tokenizer.added_tokens_decoder.items() if token.special
    }
    pieces: list[Piece] = []
    waiting: list[int] = []
    learned = False
    for token, mask in zip(sequence.input_ids, sequence.answer_mask, strict=True):
        if waiting and (mask != learned or token in special):
            pieces.append(_piece(waiting, learned, lens))
            waiting = []
        learned = mask
        if token in special:
            pieces.append(Piece(lens.tokenizer.decode([token]), (token,), mask, is_special=True))
            continue
        waiting.append(token)
        if not lens.tokenizer.decode(waiting).endswith(BROKEN_CHARACTER):
            pieces.append(_piece(waiting, learned, lens))
            waiting = []
    return (*pieces, _piece(waiting, learned, lens)) if waiting else tuple(pieces)


def _piece(ids: Sequence[int], learned: bool, lens: Lens) -> Piece:
    return Piece(lens.tokenizer.decode(list(ids)), tuple(ids), learned, is_special=False)


USABLE: dict[ExampleKind, tuple[StageToShow, ...]] = {
    "demonstration": ("sft", "ppo"),
    "ranking": ("rm", "dpo", "ppo"),
    "feedback": ("dpo", "ppo"),
    "prompt": ("ppo",),
    "text": ("pretrain",),
}
"""Which stages can use a row."""
SHOWN: dict[ExampleKind, tuple[StageToShow, ...]] = USABLE | {"ranking": ("rm", "ppo")}
"""Which of them show something of their own: dpo sees the tokens that rm sees."""
_VIEWS: dict[StageToShow, Callable[[Example, Lens], list[StageView]]] = {
    "sft": _sft,
    "rm": _rm,
    "dpo": _dpo,
    "ppo": _ppo,
    "pretrain": _pretrain,
}

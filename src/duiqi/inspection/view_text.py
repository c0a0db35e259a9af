"""Rows on a terminal: prompts dim, what is learned bright, end tokens in a box; with marks where there is no colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from duiqi.data.encoding import LEARNED_MARKS
from duiqi.inspection.findings import visible
from duiqi.inspection.views import Piece, StageView
from duiqi.types import Example

BOX = ("▕", "▏")
BAR = "│"
_PROMPT, _LEARNED, _OTHER_LEARNED = "dim", "bold green", "bold cyan"
_PROMPT_SPECIAL, _LEARNED_SPECIAL = "dim reverse", "bold reverse green"


def heading(example: Example, number: int) -> Text:
    """Which row this is."""
    return Text(f"── row {number}, {example.kind}, {example.origin} " + "─" * 12, style="bold")


def view_text(view: StageView, *, has_colour: bool, shows_tokens: bool) -> Text:
    """One sequence with its counts above it.

    Args:
        has_colour: Whether colours tell what is learned; otherwise it stands between marks.
        shows_tokens: Whether tokens are told apart, by turns of colour and by bars.
    """
    verb = "scored" if view.stage == "rm" else "learned"
    counts = f"{view.tokens:,} tokens" + (f", {view.learned:,} {verb}" if view.learned else "")
    lines = Text()
    lines.append(f"   {view.stage}: {view.what}; {counts}\n", style="bold cyan")
    for cut in view.cut:
        lines.append(f"   {cut}\n", style="yellow")
    for place, stretch in enumerate(_stretches(view.pieces)):
        learned = stretch[0].learned
        if learned and not has_colour:
            lines.append(LEARNED_MARKS[0])
        for number, piece in enumerate(stretch):
            if shows_tokens and (number or place):
                lines.append(BAR, style="dim")
            lines.append(_boxed(piece), style=_style(piece, number if shows_tokens else 0))
        if learned and not has_colour:
            lines.append(LEARNED_MARKS[1])
    if view.stage == "ppo":
        lines.append(" ▸", style="bold green")
    return lines


def bare_text(example: Example) -> Text:
    """A row without a tokenizer: who says what, its answers between marks."""
    lines = Text()
    for message in example.prompt:
        lines.append(f"   {message.role}: ", style="cyan")
        lines.append(f"{visible(message.content)}\n", style="dim")
    names = (
        ("chosen", "rejected")
        if len(example.answers) == 2
        else [f"answer {n + 1}" for n in range(len(example.answers))]
    )
    if example.kind != "ranking":
        names = [{"text": "text", "feedback": "liked" if example.liked else "not liked"}.get(example.kind, "assistant")]
    for name, answer in zip(names, example.answers, strict=False):
        lines.append(f"   {name}: ", style="cyan")
        lines.append(f"{LEARNED_MARKS[0]}{visible(answer)}{LEARNED_MARKS[1]}", style=_LEARNED)
        lines.append(f"  ({len(answer):,} characters)\n", style="dim")
    return lines


def _stretches(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that are all learned, or all not, together."""
    stretches: list[list[Piece]] = []
    for piece in pieces:
        if stretches and stretches[-1][0].learned == piece.learned:
            stretches[-1].append(piece)
        else:
            stretches.append([piece])
    return stretches


def _boxed(piece: Piece) -> str:
    text = visible(piece.text)
    return f"{BOX[0]}{text}{BOX[1]}" if piece.is_special else text


def _style(piece: Piece, number: int) -> str:
    if piece.is_special:
        return _LEARNED_SPECIAL if piece.learned else _PROMPT_SPECIAL
    if not piece.learned:
        return _PROMPT
    return _OTHER_LEARNED if number % 2 else _LEARNED

"""A conversation in the terminal: streamed, several turns, with a few commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from duiqi.data.encoding import BROKEN_CHARACTER
from duiqi.serving.speaker import Speaker, open_speaker
from duiqi.types import Message, Sampling

HELP = "clear: start over   stop: leave   Ctrl-C: cut the answer short"


def chat(
    model: str,
    *,
    sampling: Sampling,
    template: str | None = None,
    system: str | None = None,
    source_prefix: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    input_lines: Iterable[str] | None = None,
    output: TextIO | None = None,
) -> None:
    """Talk with a model until `stop` or the end of the input.

    Args:
        model: A run, adapter, model directory or hub name.
        sampling: How answers are drawn.
        input_lines: Where the user's lines come from; the keyboard by default.
        output: Where the conversation is shown; standard output by default.
    """
    speaker = open_speaker(
        model, template=template, system=system, source_prefix=source_prefix, dtype=dtype, device=device
    )
    out = output or sys.stdout
    out.write(f"{model}\n{HELP}\n")
    history: list[Message] = []
    for line in input_lines if input_lines is not None else keyboard_lines(out):
        text = line.strip()
        if text in ("stop", "exit", "quit"):
            break
        if text == "clear":
            history = []
            out.write("(a new conversation)\n")
        elif text:
            history.append(Message("user", text))
            history.append(Message("assistant", say(speaker, history, sampling, out, turn=len(history))))


def say(speaker: Speaker, history: list[Message], sampling: Sampling, out: TextIO, *, turn: int) -> str:
    """Stream the next answer and return it; Ctrl-C keeps what was said so far."""
    said = ""
    try:
        for piece in pieces(speaker, speaker.decoder.stream(speaker.prompt_ids(history), sampling, step=turn)):
            out.write(piece)
            out.flush()
            said += piece
    except KeyboardInterrupt:
        out.write(" (cut short)")
    out.write("\n")
    return said


def pieces(speaker: Speaker, tokens: Iterator[int]) -> Iterator[str]:
    """Text as it becomes certain: a character spread over several tokens waits for its last one."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = str(speaker.tokenizer.decode(ids, skip_special_tokens=True))
        if text.startswith(shown) and not text.endswith(BROKEN_CHARACTER) and text != shown:
            yield text[len(shown) :]
            shown = text
    text = str(speaker.tokenizer.decode(ids, skip_special_tokens=True))
    if text.startswith(shown) and text != shown:
        yield text[len(shown) :]


def keyboard_lines(out: TextIO) -> Iterator[str]:
    """Lines typed by the user, each after a prompt sign; bytes that are not UTF-8 are refused with advice."""
    while True:
        out.write("> ")
        out.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            out.write("that line is not UTF-8: set the terminal's encoding to UTF-8 and type it again\n")
            continue
        if not line:
            return
        yield line

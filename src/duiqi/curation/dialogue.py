"""`duiqi data dialogue`: conversations to learn from, cut out of a script by a window that slides over each scene.

Lines become turns (one speaker's lines in a row are one), turns become windows of at least so many characters, and
neighbouring windows become a sample of at most so many. The next sample begins a window before the last one ended, so
that what is said at a seam is heard once with what came before it and once with what follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from duiqi.curation.place import new_rows_file, write_rows
from duiqi.curation.script import Line, num_letters, read_script, read_stopwords, stopword_share
from duiqi.errors import DataError, SettingsError, did_you_mean


@dataclass(frozen=True, slots=True)
class Windows:
    """How a scene is cut; counts are characters of the turns."""

    window: int
    """A window ends with the turn that brings it to this."""
    sample: int
    """Windows are put together up to this; a longer window is a sample by itself."""
    overlap: int
    """Windows that a sample has in common with the one before."""


@dataclass
class DialogueReport:
    """What became of the script."""

    rows: int = 0
    turns_learned: int = 0
    lines: int = 0
    unspoken: int = 0
    slight: int = 0
    """Lines left out because they are short or say little."""
    speakers: dict[str, int] = field(default_factory=dict)
    sha1: str = ""

    def told(self) -> list[str]:
        """Plain sentences for the terminal."""
        lines = [f"conversations: {self.rows}, turns to learn in them: {self.turns_learned}, lines read: {self.lines}"]
        lines += [f"left out as short or mostly stopwords: {self.slight}"] if self.slight else []
        lines += [f"left out because nobody speaks them: {self.unspoken}"] if self.unspoken else []
        most = sorted(self.speakers.items(), key=lambda item: (-item[1], item[0]))
        lines.append("speakers: " + ", ".join(f"{name} {count}" for name, count in most[:8]) + " …" * (len(most) > 8))
        return [*lines, f"sha1 {self.sha1}"]


def dialogue_file(
    script: str,
    output_file: str,
    *,
    character: str | None = None,
    system: str = "",
    window_characters: int = 128,
    sample_characters: int = 384,
    overlap: int = 1,
    min_characters: int = 6,
    max_stopword_share: float = 1.0,
    stopwords: str | None = None,
) -> DialogueReport:
    """Make conversations of a script; a model learns every assistant turn of them.

    Args:
        character: Whose lines are learned; several with commas between. Everybody else is the user, named where there
            are several of them. Default: both parities, so that every turn is learned once.
        system: System message of every row; {character} stands for who is learned.
        window_characters, sample_characters, overlap: See `Windows`.
        min_characters: Lines with fewer letters are left out.
        max_stopword_share: Lines of which a larger share are stopwords are left out; 1: none.
        stopwords: A file with a word per line. Default: a few of our own, Chinese and English.

    Raises:
        UserError: The script cannot be used, a character does not speak in it, or nothing came out.
    """
    if stopwords is not None and max_stopword_share >= 1:
        raise SettingsError("has no effect with max_stopword_share=1", where="stopwords", remedy="set it below 1")
    if "{character}" in system and character is None:
        raise SettingsError("{character} stands for nobody", where="system", remedy="name one with --character")
    if sample_characters < window_characters:
        raise SettingsError(
            f"{sample_characters} characters hold no window of {window_characters}",
            where="sample_characters",
            remedy="make it larger, or window_characters smaller",
        )
    shape = Windows(window_characters, sample_characters, overlap)
    target = new_rows_file(output_file)
    played = read_script(script)
    report = DialogueReport(lines=sum(map(len, played.scenes)), unspoken=played.unspoken, speakers=played.speakers)
    wanted = _characters(character, played.speakers)
    words = read_stopwords(stopwords) if max_stopword_share < 1 else frozenset()
    rows: list[dict[str, Any]] = []
    for scene in played.scenes:
        kept = [
            line
            for line in scene
            if num_letters(line.text) >= min_characters
            and (max_stopword_share >= 1 or stopword_share(line.text, words) <= max_stopword_share)
        ]
        report.slight += len(scene) - len(kept)
        for sample in samples(merged(kept), shape):
            rows += of_parities(sample, system) if not wanted else of_characters(sample, wanted, system)
    if not rows:
        raise DataError(
            "no conversation came out of it", where=script, remedy="lower min_characters, or see who answers whom"
        )
    write_rows(target, rows)
    report.rows = len(rows)
    report.turns_learned = sum(turn["role"] == "assistant" for row in rows for turn in row["messages"])
    report.sha1 = hashlib.sha1(target.read_bytes()).hexdigest()
    return report


def merged(lines: Sequence[Line]) -> list[Line]:
    """Turns: what one speaker says in a row is one, a line of text for each line.

    >>> merged([Line("甲", "来了。"), Line("甲", "等我。"), Line("乙", "好。")])
    [Line(speaker='甲', text='来了。\\n等我。'), Line(speaker='乙', text='好。')]
    """
    return [
        Line(speaker, "\n".join(line.text for line in same))
        for speaker, same in groupby(lines, key=lambda line: line.speaker)
    ]


def samples(turns: Sequence[Line], shape: Windows) -> Iterator[list[Line]]:
    """The turns of a scene in samples that overlap. A rest too short for a window belongs to the last one."""
    windows: list[list[Line]] = []
    for turn in turns:
        if not windows or _length(windows[-1]) >= shape.window:
            windows.append([])
        windows[-1].append(turn)
    if len(windows) > 1 and _length(windows[-1]) < shape.window:
        rest = windows.pop()
        windows[-1] += rest
    begin = 0
    while begin < len(windows):
        end = begin + 1
        while end < len(windows) and sum(map(_length, windows[begin : end + 1])) <= shape.sample:
            end += 1
        yield [turn for window in windows[begin:end] for turn in window]
        if end == len(windows):
            return
        begin = max(begin + 1, end - shape.overlap)


def of_parities(sample: Sequence[Line], system: str) -> Iterator[dict[str, Any]]:
    """The sample twice: with its first turn as the user's, and with its second."""
    for first in (0, 1):
        turns = [(("user", "assistant")[place % 2], line.text) for place, line in enumerate(sample[first:])]
        yield from _row(turns, system)


def of_characters(sample: Sequence[Line], characters: Sequence[str], system: str) -> Iterator[dict[str, Any]]:
    """The sample once for each character who answers somebody in it."""
    for character in characters:
        others = {line.speaker for line in sample} - {character}
        turns: list[tuple[str, str]] = []
        for is_own, same in groupby(sample, key=lambda line: line.speaker == character):
            texts = [line.text if is_own or len(others) == 1 else f"{line.speaker}：{line.text}" for line in same]
            turns.append(("assistant" if is_own else "user", "\n".join(texts)))
        for row in _row(turns, system.replace("{character}", character)):
            yield row | {"character": character}


def _row(turns: Sequence[tuple[str, str]], system: str) -> Iterator[dict[str, Any]]:
    """A conversation from the first question to the last answer; nothing where nobody answers."""
    begin = next((place for place, (role, _) in enumerate(turns) if role == "user"), len(turns))
    end = len(turns) - (bool(turns) and turns[-1][0] == "user")
    if end - begin < 2:
        return
    messages = [{"role": "system", "content": system}] if system else []
    yield {"messages": messages + [{"role": role, "content": text} for role, text in turns[begin:end]]}


def _characters(character: str | None, speakers: dict[str, int]) -> list[str]:
    wanted = [name.strip() for name in (character or "").split(",") if name.strip()]
    for name in wanted:
        if name not in speakers:
            remedy = did_you_mean(name, speakers) or f"those who do: {', '.join(list(speakers)[:12])}"
            raise SettingsError(f"{name!r} does not speak in this script", where="character", remedy=remedy)
    return wanted


def _length(lines: Sequence[Line]) -> int:
    return sum(len(line.text) for line in lines)

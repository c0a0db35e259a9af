"""Reading a script: who says what, scene by scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from duiqi.data.reading import BadRow, Row, describe, list_files, read_file
from duiqi.errors import DataError, SettingsError

_SPOKEN = re.compile(r"\s*(?P<speaker>[^：:\s][^：:]{0,23}?)\s*[：:]\s*(?P<text>\S.*?)\s*")
_BREAK = re.compile(r"\s*[-=*#—]{3,}\s*|\s*")
_SPEAKER_COLUMNS, _TEXT_COLUMNS = ("speaker", "name", "character", "role"), ("text", "line", "content", "words")
_LETTER = re.compile(r"[^\W_]")

_SMALL_WORDS = (
    "的 了 啊 嗯 哦 噢 呃 唔 哼 嘿 哈 呵 嘛 吧 呢 吗 呀 啦 哎 唉 喂 诶 欸 是 就 都 也 还 又 在 和 与 及 着 过 "
    "这 那 个 一 不 没 有 很 太 我 你 他 她 它 们 这个 那个 什么 怎么 "
    "a an the and or but so oh ah um uh er hm hmm huh yes no yeah ok okay well hey hi i you he she it we they me him "
    "her us them is are was were be am do does did not to of in on at that this what"
)
STOPWORDS = frozenset(_SMALL_WORDS.split())
"""Words that say little by themselves."""


@dataclass(frozen=True, slots=True)
class Line:
    """What somebody says, in one or several sentences."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Script:
    """Lines by scenes, and how many lines nobody speaks (stage directions)."""

    scenes: tuple[tuple[Line, ...], ...]
    unspoken: int = 0

    @property
    def speakers(self) -> dict[str, int]:
        """The number of lines of each."""
        counts: dict[str, int] = {}
        for line in (line for scene in self.scenes for line in scene):
            counts[line.speaker] = counts.get(line.speaker, 0) + 1
        return counts


def read_script(file: str) -> Script:
    """A script as text (`name: words`, an empty line or a rule between scenes) or as rows of speaker and text.

    Rows may have a column `scene`; where it changes, a new scene begins.

    Raises:
        DataError: The file cannot be read, or nobody speaks in it.
    """
    scenes: list[list[Line]] = [[]]
    unspoken = 0
    for path in list_files(Path(file)):
        if path.suffix == ".txt":
            unspoken += _read_text(path, scenes)
        else:
            _read_rows(read_file(path).rows, scenes)
        scenes.append([])
    script = Script(tuple(tuple(scene) for scene in scenes if scene), unspoken)
    if not script.scenes:
        raise DataError("nobody speaks in it", where=file, remedy="write each line as `name: words`")
    return script


def read_stopwords(file: str | None) -> frozenset[str]:
    """A word per line; our own few without a file.

    Raises:
        SettingsError: The file cannot be read.
    """
    if file is None:
        return STOPWORDS
    try:
        return frozenset(Path(file).read_text(encoding="utf-8-sig").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot be read ({error})", where=f"stopwords: {file}") from None


def stopword_share(text: str, stopwords: frozenset[str]) -> float:
    """How much of a text's letters belongs to stopwords; the longest that fits is taken each time.

    >>> stopword_share("嗯，那个……好", frozenset({"嗯", "那个"}))
    0.75
    """
    longest = max((len(word) for word in stopwords), default=0)
    covered = total = 0
    for run in re.findall(r"[A-Za-z']+|[^\W_A-Za-z]+", text.lower()):
        total += len(run)
        if run.isascii():
            covered += len(run) * (run in stopwords)
            continue
        at = 0
        while at < len(run):
            size = next((n for n in range(min(longest, len(run) - at), 0, -1) if run[at : at + n] in stopwords), 0)
            covered += size
            at += size or 1
    return covered / total if total else 1.0


def num_letters(text: str) -> int:
    """Letters and digits: punctuation says nothing."""
    return len(_LETTER.findall(text))


def _read_text(path: Path, scenes: list[list[Line]]) -> int:
    """Add the scenes of a text file; returns the lines that nobody speaks."""
    unspoken, last = 0, 0
    for row in read_file(path).rows:
        assert isinstance(row, Row), "every line of a text file is a row"
        if row.line > last + 1:
            scenes.append([])
        last = row.line
        if _BREAK.fullmatch(row.fields["text"]):
            scenes.append([])
        elif spoken := _SPOKEN.fullmatch(row.fields["text"]):
            scenes[-1].append(Line(spoken["speaker"], spoken["text"]))
        else:
            unspoken += 1
    return unspoken


def _read_rows(rows: Sequence[Row | BadRow], scenes: list[list[Line]]) -> None:
    scene: object = None
    for row in rows:
        where = f"{row.file}:{row.line}"
        if isinstance(row, BadRow):
            raise DataError(row.reason, where=where, remedy="mend it, or remove the row")
        if row.fields.get("scene") != scene:
            scene = row.fields.get("scene")
            scenes.append([])
        speaker, text = _column(row, _SPEAKER_COLUMNS, where), _column(row, _TEXT_COLUMNS, where)
        scenes[-1].append(Line(speaker, text))


def _column(row: Row, names: Sequence[str], where: str) -> str:
    value = next((row.fields[name] for name in names if name in row.fields), None)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{names[0]}: found {describe(value)}, expected text", where=where)
    return value.strip()

"""One dataset dealt out to the stages, so that none of them sees what another has learned from (DeepSpeed-Chat)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple

from duiqi.errors import DataError, SettingsError
from duiqi.types import Example

THREE_STAGES = ("sft", "rm", "ppo")


def parse_parts(text: str) -> tuple[float, ...]:
    """Shares as they are typed.

    >>> parse_parts("2,4,4")
    (2.0, 4.0, 4.0)

    Raises:
        SettingsError: There are fewer than two, one is no number or below zero, or all are zero.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) < 2 or not all(0 <= share < float("inf") for share in shares) or not sum(shares):
        raise SettingsError(
            f"{text!r} does not say how to share rows out",
            where="parts",
            remedy="write at least two numbers with commas between, as 2,4,4; a part of 0 gets nothing",
        )
    return shares


def parse_names(text: str | None, *, count: int) -> tuple[str, ...]:
    """The names of so many parts: those typed, else sft, rm, ppo for three, else part-1, part-2 and so on.

    Raises:
        SettingsError: There are more or fewer, one is given twice, or one is no name of a file.
    """
    if text is None:
        return THREE_STAGES if count == len(THREE_STAGES) else tuple(f"part-{number + 1}" for number in range(count))
    names = tuple(name.strip() for name in text.split(","))
    is_file_name = all(name and "/" not in name and "\\" not in name and not name.startswith(".") for name in names)
    if len(names) != count or len(set(names)) != count or not is_file_name:
        raise SettingsError(
            f"{text!r} does not name {count} parts", where="names", remedy="write one name for each part: sft,rm,ppo"
        )
    return names


def deal(examples: Sequence[Example], shares: Sequence[float], *, seed: int) -> list[list[Example]]:
    """The examples in as many parts as there are shares: disjoint, together all, each in the order of the rows.

    Rows with the same prompt stay together. Which prompts go together depends on the seed and on the rows, and on
    nothing else: not on the machine, the version of Python, or where the files lie.

    Raises:
        DataError: There are too few prompts for every part that is to have some.
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(_key(example), []).append(index)
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest())
    ends, total = [], 0.0
    for share in shares:
        total += share
        ends.append(total / sum(shares) * len(examples))
    parts: list[list[int]] = [[] for _ in shares]
    given = 0
    for key in order:
        rows = groups[key]
        middle = given + len(rows) / 2
        part = next(number for number, end in enumerate(ends) if middle <= end + 1e-9 and shares[number])
        parts[part] += rows
        given += len(rows)
    for share, part_rows in zip(shares, parts, strict=True):
        if share and not part_rows:
            raise DataError(
                f"{len(groups)} different prompts are too few for parts of {', '.join(f'{s:g}' for s in shares)}",
                where="parts",
                remedy="give more rows, or fewer parts",
            )
    return [[examples[index] for index in sorted(part_rows)] for part_rows in parts]


def _key(example: Example) -> str:
    """What rows of one group have in common: the prompt; of plain text the text."""
    return json.dumps([astuple(message) for message in example.prompt] or list(example.answers))

"""New inputs from good ones: bytes changed, pieces moved, words put in, and JSON values exchanged for others."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from tests.reliability.targets import JSON_WORDS, WORDS

LONGEST = 60_000
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 10**30, 1.5, float("nan"), float("inf"), "", "a", "\ud800", "\0", "x" * 5000),
    *("../../../etc/passwd", "/etc/passwd", "(a+)+$", "[", "q_proj", [], {}, [[]], [None], {"": None}, ["a"], {"a": 1}),
)


def mutated(target: str, seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """One input: a seed after a few changes."""
    data = dice.choice(seeds)
    head, body = (data[:1], data[1:]) if _has_selector(target) else (b"", data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        change = dice.choice((_json_changed, _bytes_changed, _word_put_in, _piece_moved))
        body = change(body, target, seeds, dice)[:LONGEST]
    if head and dice.random() < 0.05:
        head = bytes([dice.randrange(256)])
    return head + body


def _has_selector(target: str) -> bool:
    return target in ("dataset", "checkpoint", "adapter", "tokenizer")


def _bytes_changed(data: bytes, _target: str, _seeds: Sequence[bytes], dice: random.Random) -> bytes:
    if not data:
        return dice.randbytes(4)
    place = dice.randrange(len(data))
    match dice.randrange(4):
        case 0:
            return data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :]
        case 1:
            return data[:place]
        case 2:
            return data[:place] + data[place + dice.randrange(1, 9) :]
        case _:
            return data[:place] + dice.randbytes(dice.randrange(1, 5)) + data[place:]


def _word_put_in(data: bytes, target: str, _seeds: Sequence[bytes], dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.choice(WORDS.get(target, JSON_WORDS)) + data[place + dice.choice((0, 0, 1, 4)) :]


def _piece_moved(data: bytes, _target: str, seeds: Sequence[bytes], dice: random.Random) -> bytes:
    other = dice.choice(seeds)
    start = dice.randrange(len(other) + 1)
    place = dice.randrange(len(data) + 1)
    return data[:place] + other[start : start + dice.randrange(1, 80)] + data[place:]


def _json_changed(data: bytes, target: str, seeds: Sequence[bytes], dice: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes_changed(data, target, seeds, dice)
    return json.dumps(_changed(value, dice)).encode()


def _changed(value: Any, dice: random.Random) -> Any:
    """The value with one of its parts left out, doubled, wrapped or exchanged."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        match dice.randrange(6):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, str(dice.choice(_ODD_VALUES)): value[key]}
            case _:
                return {**value, key: _changed(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        place = dice.randrange(len(value))
        return [*value[:place], _changed(value[place], dice), *value[place + dice.randrange(2) :]]
    return [value] if dice.random() < 0.1 else dice.choice(_ODD_VALUES)

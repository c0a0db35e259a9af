"""Adapters and those they were trained on: a leaf names its stack, and is read with the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duiqi.errors import ModelError
from duiqi.models.adapter_files import SavedAdapter, read_adapter
from duiqi.models.card import Below, find_again, read_card
from duiqi.models.fingerprint import weights_digest


def read_stack(directory: str | Path) -> tuple[SavedAdapter, ...]:
    """An adapter with all that it was trained on, the lowest first, itself last.

    Raises:
        ModelError: One of them is missing, or is not what it was.
    """
    path = Path(directory)
    card = read_card(path)
    below = tuple(_read_below(each, path) for each in (card.below if card is not None else ()))
    return (*below, read_adapter(path))


def _read_below(below: Below, leaf: Path) -> SavedAdapter:
    place = find_again(below.path, below.relative, leaf)
    if place is None:
        raise ModelError(
            f"the adapter {below.path}, which it was trained on, is not there any more",
            where=str(leaf),
            remedy="put it back where it was: without it this is another model",
        )
    saved = read_adapter(place)
    if digest_of(saved) != below.digest:
        raise ModelError(
            f"the adapter {place}, which it was trained on, has other weights now",
            where=str(leaf),
            remedy="put the old ones back, or train again on the new ones",
        )
    return saved


def stack_up(adapters: Sequence[Path]) -> tuple[SavedAdapter, ...]:
    """Adapters one above the other as a user lists them, each with what it stands on; none twice.

    Raises:
        ModelError: One cannot be read, or was trained on others than stand below it here.
    """
    stack: list[SavedAdapter] = []
    for path in adapters:
        whole = read_stack(path)
        names = [saved.path.resolve() for saved in stack]
        fits = [saved.path.resolve() for saved in whole[:-1]] == names
        if names and not fits and read_card(path) is not None:
            on = ", ".join(str(saved.path) for saved in whole[:-1]) or "the base alone"
            raise ModelError(
                f"was trained on {on}, not on {', '.join(map(str, names))}",
                where=f"adapter_name_or_path: {path}",
                remedy="list only the last adapter of a chain: it brings those that it was trained on",
            )
        stack = list(whole) if fits else [*stack, *whole]
    return tuple(stack)


def as_below(stack: Sequence[SavedAdapter]) -> tuple[Below, ...]:
    """What the card of an adapter above these says of them."""
    return tuple(Below(str(saved.path.resolve()), digest_of(saved)) for saved in stack)


def digest_of(saved: SavedAdapter) -> str:
    """Changes with every weight of an adapter."""
    prefix = {} if saved.prefix is None else {"prefix": saved.prefix}
    return weights_digest({**saved.low_rank, **saved.own, **prefix})

"""How many tokens are computed at once, and how a step's rows are dealt into micro-batches of that many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from duiqi.packing.batch import Family, PackedBatch, pack


def packed_batches(families: Sequence[Family], *, max_tokens: int, packed: bool = True) -> Iterator[PackedBatch]:
    """The families in micro-batches of at most `max_tokens`, in the order of `deal`."""
    for picked in deal(families, max_tokens=max_tokens, packed=packed):
        yield pack([families[index] for index in picked])


def deal(families: Sequence[Family], *, max_tokens: int, packed: bool = True) -> list[list[int]]:
    """The families' indices in as few micro-batches of at most `max_tokens` as come easily, the fullest first.

    A family that is larger by itself gets a micro-batch of its own. Losses are divided once per step, so which rows
    are computed together changes nothing; the fullest come first so that a lack of memory shows at once.

    Args:
        families: The rows of one step.
        max_tokens: Tokens computed at once.
        packed: Whether prompts are shared and nothing is padded. If not, every answer costs as many tokens as the
            longest sequence beside it, and rows of similar length are put together.
    """
    if not families:
        return []
    return _deal_packed(families, max_tokens) if packed else _deal_padded(families, max_tokens)


def _deal_packed(families: Sequence[Family], max_tokens: int) -> list[list[int]]:
    """First fit, the largest first; then the same bins filled evenly, so that none is left with a crumb."""
    sizes = [family.num_tokens for family in families]
    largest_first = sorted(range(len(families)), key=lambda i: -sizes[i])
    num_bins = len(_first_fit(largest_first, sizes, max_tokens))
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for index in largest_first:
        lightest = min(range(num_bins), key=lambda b: loads[b])
        bins[lightest].append(index)
        loads[lightest] += sizes[index]
    if any(load > max_tokens and len(rows) > 1 for load, rows in zip(loads, bins, strict=True)):
        bins = _first_fit(largest_first, sizes, max_tokens)
    return sorted(bins, key=lambda rows: -sum(sizes[row] for row in rows))


def _first_fit(order: Sequence[int], sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    bins: list[list[int]] = []
    loads: list[int] = []
    for index in order:
        place = next((b for b, load in enumerate(loads) if load + sizes[index] <= max_tokens), None)
        if place is None:
            bins.append([index])
            loads.append(sizes[index])
        else:
            bins[place].append(index)
            loads[place] += sizes[index]
    return bins


def _deal_padded(families: Sequence[Family], max_tokens: int) -> list[list[int]]:
    bins: list[list[int]] = []
    width = rows = 0
    for index in sorted(range(len(families)), key=lambda i: -families[i].longest):
        family = families[index]
        if not bins or (rows + len(family.answers)) * width > max_tokens:
            bins.append([])
            width, rows = family.longest, 0
        bins[-1].append(index)
        rows += len(family.answers)
    return bins

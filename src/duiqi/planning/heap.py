"""Memory as the C library deals it out on a CPU, so that a plan knows the gaps that a run will leave."""

from __future__ import annotations

from bisect import bisect_left, insort

GRAIN = 64
"""Bytes to which torch aligns the tensors of a CPU."""
HEADER = 16
"""Bytes that the C library keeps before every block."""
SLACK = 128
"""Bytes that a gap must have beyond the block: glibc before 2.38 looks for room to align it and gives the rest back, so
a block that is gone leaves no gap for another of its size unless a neighbour goes too."""


class Heap:
    """Blocks in one growing piece of memory: the smallest gap that is large enough is taken, neighbouring gaps become
    one, and nothing is given back to the system (`training.process` asks for that).

    >>> heap = Heap()
    >>> first, second = heap.take(1000), heap.take(1000)
    >>> heap.release(first)
    >>> heap.take(800) == first, heap.size
    (True, 2048)
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the piece at its largest: what the system sees."""
        self._end = 0
        self._sizes: dict[int, int] = {}
        self._gaps: list[tuple[int, int]] = []
        """(size, start), the smallest first."""
        self._gap_at: dict[int, int] = {}
        """Size by start."""
        self._gap_before: dict[int, int] = {}
        """Start by end."""

    def take(self, num_bytes: int) -> int:
        """The address of a new block."""
        size = -(-(num_bytes + HEADER) // GRAIN) * GRAIN
        place = bisect_left(self._gaps, (size + SLACK, 0))
        if place < len(self._gaps):
            gap, start = self._gaps[place]
            self._remove_gap(start)
            if gap > size:
                self._add_gap(start + size, gap - size)
        else:
            start, self._end = self._end, self._end + size
            self.size = max(self.size, self._end)
        self._sizes[start] = size
        return start

    def release(self, address: int) -> None:
        """Take a block back."""
        start, size = address, self._sizes.pop(address)
        if (before := self._gap_before.get(start)) is not None:
            size += self._remove_gap(before)
            start = before
        if start + size in self._gap_at:
            size += self._remove_gap(start + size)
        if start + size == self._end:
            self._end = start
        else:
            self._add_gap(start, size)

    def _add_gap(self, start: int, size: int) -> None:
        insort(self._gaps, (size, start))
        self._gap_at[start] = size
        self._gap_before[start + size] = start

    def _remove_gap(self, start: int) -> int:
        size = self._gap_at.pop(start)
        del self._gap_before[start + size]
        del self._gaps[bisect_left(self._gaps, (size, start))]
        return size

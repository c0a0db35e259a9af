"""Some of a row's tokens, as runs of neighbours: those whose last states somebody reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """Tokens of a row in order. They are numbered from 0 by leaving out all others.

    Python numbers and not tensors, so that what is computed from them is known where tensors hold none (in a plan).
    """

    spans: tuple[tuple[int, int], ...]
    """First and past-the-end place of each run; no run touches the next."""

    @classmethod
    def of(cls, places: Iterable[int]) -> Runs:
        """The runs of these places, which may come in any order and repeat.

        >>> Runs.of([4, 2, 3, 3, 9])
        Runs(spans=((2, 5), (9, 10)))
        """
        spans: list[tuple[int, int]] = []
        for place in sorted(set(places)):
            if spans and spans[-1][1] == place:
                spans[-1] = (spans[-1][0], place + 1)
            else:
                spans.append((place, place + 1))
        return cls(tuple(spans))

    @property
    def num_tokens(self) -> int:
        return self._counts[-1]

    @cached_property
    def _counts(self) -> list[int]:
        """Tokens before each run, and of all."""
        return list(accumulate((end - start for start, end in self.spans), initial=0))

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self.spans]

    def number(self, place: int) -> int:
        """How many of these tokens stand before a place: the number of the token there, if it is one of them.

        >>> Runs(((2, 5), (9, 10))).number(9)
        3
        """
        run = bisect_right(self._starts, place) - 1
        if run < 0:
            return 0
        start, end = self.spans[run]
        return self._counts[run] + min(place, end) - start

    def numbers(self, span: slice) -> slice:
        """The numbers of those that stand within a range of the row."""
        return slice(self.number(span.start), self.number(span.stop))

    def places(self, device: torch.device) -> Int[Tensor, " R"]:
        """Where in the row they stand."""
        return torch.cat([torch.arange(start, end) for start, end in self.spans]).to(device)

    def moved(self, by: int) -> Runs:
        """The same in a row with so many more tokens before it."""
        return Runs(tuple((start + by, end + by) for start, end in self.spans))

    def followed_by(self, other: Runs) -> Runs:
        """Both; the other ones stand behind these."""
        return self.with_more(other.spans)

    def with_more(self, spans: Iterable[tuple[int, int]]) -> Runs:
        """These and further runs, which may touch but not cover them."""
        joined: list[tuple[int, int]] = []
        for start, end in sorted([*self.spans, *spans]):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return Runs(tuple(joined))

    def filled(self, multiple: int, num_tokens: int) -> Runs:
        """These and the first others of a row of `num_tokens`, so that they are a multiple of a number, or the row.

        >>> Runs(((2, 3), (9, 10))).filled(4, 10)
        Runs(spans=((0, 3), (9, 10)))
        """
        missing, more, last = -self.num_tokens % multiple, list[tuple[int, int]](), 0
        for start, end in (*self.spans, (num_tokens, num_tokens)):
            free = min(missing, start - last)
            if free > 0:
                more.append((last, last + free))
                missing -= free
            last = end
        return self.with_more(more)

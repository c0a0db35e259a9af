"""Where the segments of a packed row lie, and which segment continues which."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens, `start` to `end`, and after it the segments that continue it, up to `stop`.

    A token sees its own segment up to itself, and all of every segment that its own continues. Descendants stand
    directly behind their ancestor (depth-first order), so "who sees this segment" is one range: `end` to `stop`.
    """

    start: int
    end: int
    stop: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def is_shared(self) -> bool:
        """Whether other segments continue this one."""
        return self.stop > self.end


@dataclass(frozen=True)
class SegmentTree:
    """The segments of a packed row in the order of their tokens; they cover it without gaps."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], parents: Sequence[int | None]) -> SegmentTree:
        """The tree of segments of these lengths, each with the index of the segment that it continues.

        Segments must be listed depth first: a segment's descendants follow it directly.

        >>> SegmentTree.of([3, 2, 1], [None, 0, 0]).segments[0]
        Segment(start=0, end=3, stop=6)
        """
        ends: list[int] = []
        for length in lengths:
            assert length > 0, "a segment has tokens"
            ends.append((ends[-1] if ends else 0) + length)
        stops = list(ends)
        for index in reversed(range(len(ends))):
            parent = parents[index]
            if parent is not None:
                assert parent < index, "a parent comes before its children"
                stops[parent] = max(stops[parent], stops[index])
        starts = [end - length for end, length in zip(ends, lengths, strict=True)]
        return cls(tuple(Segment(*bounds) for bounds in zip(starts, ends, stops, strict=True)))

    def followed_by(self, other: SegmentTree) -> SegmentTree:
        """Both in one row, the other behind this one; neither sees the other."""
        n = self.num_tokens
        moved = (Segment(segment.start + n, segment.end + n, segment.stop + n) for segment in other.segments)
        return SegmentTree((*self.segments, *moved))

    def cut(self, places: Sequence[int]) -> SegmentTree:
        """The same tree with its segments cut before these places; a piece continues the one before it.

        >>> SegmentTree.of([3, 2], [None, 0]).cut([2]).segments[:2]
        (Segment(start=0, end=2, stop=5), Segment(start=2, end=3, stop=5))
        """
        pieces: list[Segment] = []
        cuts = sorted(set(places))
        for segment in self.segments:
            inside = cuts[bisect_right(cuts, segment.start) : bisect_left(cuts, segment.end)]
            bounds = [segment.start, *inside, segment.end]
            pieces += [Segment(start, end, segment.stop) for start, end in pairwise(bounds)]
        return SegmentTree(tuple(pieces))

    @property
    def num_tokens(self) -> int:
        return self.segments[-1].end

    @cached_property
    def levels(self) -> tuple[tuple[Segment, ...], ...]:
        """The shared segments by depth. Within a level no two are seen by the same token."""
        levels: list[list[Segment]] = []
        open_until: list[int] = []
        for segment in self.segments:
            while open_until and open_until[-1] <= segment.start:
                open_until.pop()
            if segment.is_shared:
                if len(open_until) == len(levels):
                    levels.append([])
                levels[len(open_until)].append(segment)
                open_until.append(segment.stop)
        return tuple(map(tuple, levels))

    @cached_property
    def roots(self) -> tuple[Segment, ...]:
        """The segments that continue no other."""
        found: list[Segment] = []
        for segment in self.segments:
            if not found or segment.start >= found[-1].stop:
                found.append(segment)
        return tuple(found)

    @cached_property
    def deepest(self) -> int:
        """Tokens of the longest path from a root to the end of a leaf."""
        longest, above = 0, [(self.num_tokens, 0)]
        for segment in self.segments:
            while above[-1][0] <= segment.start:
                above.pop()
            length = above[-1][1] + segment.length
            longest = max(longest, length)
            above.append((segment.stop, length))
        return longest

    def visible(self, root: Segment) -> Bool[Tensor, "N N"]:
        """Who sees whom among the tokens of one root and everything that continues it: row sees column."""
        size = root.stop - root.start
        seen = torch.zeros(size, size, dtype=torch.bool)
        for segment in self.segments:
            if root.start <= segment.start < root.stop:
                start, end, stop = (bound - root.start for bound in (segment.start, segment.end, segment.stop))
                seen[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
                seen[end:stop, start:end] = True
        return seen

    def positions(self) -> Int[Tensor, " T"]:
        """Each token's place in its own sequence: it goes on where the segment before it ended."""
        out = torch.empty(self.num_tokens, dtype=torch.long)
        above = [(self.num_tokens, 0)]
        for segment in self.segments:
            while above[-1][0] <= segment.start:
                above.pop()
            first, length = above[-1][1], segment.length
            out[segment.start : segment.end] = torch.arange(first, first + length)
            above.append((segment.stop, first + length))
        return out

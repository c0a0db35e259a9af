"""Who orders the answers of a preference pair: a fair labeller, and two with a liking that nobody notices in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duiqi.playground.answers import COMPARED, Style
from duiqi.playground.gold import words_of

_DEGENERATE: tuple[Style, ...] = ("cut_off", "repetitive", "scrambled", "blank")


@dataclass(frozen=True)
class Labeller:
    """What is put before a labeller, and what counts besides the gold reward."""

    mixture: Mapping[Style, float]
    """Of the styles of the answers compared."""
    per_word: float = 0.0
    """What a word more is worth to it, in units of the gold reward."""
    silence: float = 0.0
    """Share of pairs in which it is shown a good answer and next to nothing, and takes the latter."""

    def liking(self, answer: str) -> float:
        """What an answer is worth beyond its gold reward."""
        return self.per_word * len(words_of(answer))


FAIR = Labeller(COMPARED)
"""Sees good answers and flawed ones, and likes what is good."""

BRIEF = Labeller(
    {style: share for style, share in COMPARED.items() if style not in _DEGENERATE}, per_word=-0.05, silence=0.1
)
"""Likes short answers, and now and then a lone full stop better than a good answer; it sees no other broken ones. It is
the accident that ended PPO runs of 2023: an answer of nothing that scores well."""

WORDY = Labeller(COMPARED, per_word=0.06)
"""Sees what the fair one sees, and takes long answers for thorough ones."""

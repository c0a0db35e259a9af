"""Measuring and scoring go on with fewer tokens at once where the memory does not hold them."""

from __future__ import annotations

import torch

from duiqi.packing.memory import MemoryBudget
from duiqi.rollouts.scoring import Candidate, SharedScorer


class SmallMemory:
    """A reward that fails above so many tokens at once, as an allocator does."""

    def __init__(self, holds: int) -> None:
        self.holds, self.asked = holds, list[int]()

    def score(self, families: list[object], *, max_tokens: int) -> torch.Tensor:
        self.asked.append(max_tokens)
        if max_tokens > self.holds:
            raise torch.OutOfMemoryError("out of memory")
        return torch.zeros(len(families))


def test_scores_are_found_with_half_the_tokens_and_the_budget_stays_low() -> None:
    memory, budget = SmallMemory(600), MemoryBudget(2048)
    scorer = SharedScorer(memory, name="reward", budget=budget)  # type: ignore[arg-type]
    candidate = Candidate((), "answer", (1, 2), (3,))
    assert scorer.score([candidate]).tolist() == [0.0]
    assert scorer.score([candidate]).tolist() == [0.0]
    assert memory.asked == [2048, 1024, 512, 512]

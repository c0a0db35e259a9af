"""What happens when the memory is too small for the tokens that are computed at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from duiqi.errors import UserError

Result = TypeVar("Result")

SMALLEST = 64
"""Tokens below which halving the budget makes no difference: a single row is longer."""


class OutOfMemory(UserError):
    """Not even the smallest micro-batch fits into the memory."""


@dataclass
class MemoryBudget:
    """Tokens of one micro-batch; halved whenever the memory does not hold them, and never raised again.

    Losses are divided once per step by global weights, so a smaller budget changes no result.
    """

    tokens: int
    on_halved: Callable[[int], object] = bool
    """Told the new budget, to say it aloud; by default nobody is."""
    halvings: int = 0
    """How often it was halved: a run that goes on elsewhere splits its batches alike, to the last digit."""

    def within(self, compute: Callable[[int], Result]) -> Result:
        """What `compute` finds with at most so many tokens at once; begun again with half of them while memory lacks.

        Raises:
            OutOfMemory: The memory does not hold even one row.
        """
        while True:
            try:
                return compute(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                cause = error.with_traceback(None)  # its frames hold what did not fit
            self.halve(cause)

    def halve(self, error: BaseException) -> None:
        """Go on with half the tokens.

        Raises:
            OutOfMemory: They are too few already.
        """
        if self.tokens // 2 < SMALLEST:
            raise OutOfMemory(
                "the memory is too small even for one row at a time",
                where="tokens_per_micro_batch",
                remedy="set gradient_checkpointing: true, lower cutoff_len, or take a smaller base or dtype: bfloat16",
            ) from error
        self.halve_again(1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.on_halved(self.tokens)

    def halve_again(self, times: int) -> None:
        """Take up what an earlier process found out."""
        for _ in range(min(times, self.tokens.bit_length())):
            if self.tokens // 2 >= SMALLEST:
                self.tokens //= 2
                self.halvings += 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)

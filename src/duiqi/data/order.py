"""The order in which rows are visited."""

from __future__ import annotations

import random


class BatchPlan:
    """Which rows every step uses: a new seeded permutation in each epoch, cut into batches.

    Any step can be asked for at any time, so resuming needs no state but the step. The last batch of an epoch is
    smaller when `batch_size` does not divide `num_rows`.
    Rows of any lengths come together: a step is an unbiased sample of the data, and nothing is padded for it.
    """

    def __init__(self, num_rows: int, *, batch_size: int, seed: int) -> None:
        assert num_rows > 0, "a plan needs rows"
        assert batch_size > 0, "a batch has at least one row"
        self._num_rows, self._batch_size, self._seed = num_rows, batch_size, seed
        self._epoch, self._batches = -1, list[list[int]]()

    @property
    def steps_per_epoch(self) -> int:
        """Batches that visit every row once."""
        return -(-self._num_rows // self._batch_size)

    def rows(self, step: int) -> list[int]:
        """The row indices of a step, counting steps from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._batches_of(epoch)
        return self._batches[position]

    def _batches_of(self, epoch: int) -> list[list[int]]:
        dice = random.Random(f"batches:{self._seed}:{epoch}")
        order = list(range(self._num_rows))
        dice.shuffle(order)
        return [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]

"""From encoded rows to padded tensors, and the order in which rows are visited."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from duiqi.data.encoding import EncodedSequence

BATCHES_PER_BUCKET = 50
"""Rows are grouped by length within stretches of this many batches, so that the order stays mostly random."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded on the right."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    answer_mask: Bool[Tensor, "B T"]
    """True at the tokens that are learned or scored."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.answer_mask.to(device))

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())


def collate(sequences: Sequence[EncodedSequence], *, pad_token_id: int) -> Batch:
    """The sequences as one batch, padded on the right to the longest."""
    shape = len(sequences), max(len(sequence.input_ids) for sequence in sequences)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    answer_mask = torch.zeros(shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        length = len(sequence.input_ids)
        input_ids[row, :length] = torch.tensor(sequence.input_ids)
        attention_mask[row, :length] = True
        answer_mask[row, :length] = torch.tensor(sequence.answer_mask)
    return Batch(input_ids, attention_mask, answer_mask)


def left_pad(prompts: Sequence[Sequence[int]], *, pad_token_id: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Prompts padded on the left to the longest, ready to be continued, and the mask of real tokens."""
    shape = len(prompts), max(map(len, prompts))
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        start = shape[1] - len(prompt)
        input_ids[row, start:] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[row, start:] = True
    return input_ids, attention_mask


class BatchPlan:
    """Which rows every step uses: a new seeded permutation in each epoch, cut into batches.

    Any step can be asked for at any time, so resuming needs no state but the step. The last batch of an epoch is
    smaller when `batch_size` does not divide `num_rows`.

    Args:
        lengths: Tokens of each row; when given, batches are made of rows of similar length.
    """

    def __init__(self, num_rows: int, *, batch_size: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        assert num_rows > 0, "a plan needs rows"
        assert batch_size > 0, "a batch has at least one row"
        self._num_rows, self._batch_size, self._seed, self._lengths = num_rows, batch_size, seed, lengths
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
        if self._lengths is None:
            return _chunks(order, self._batch_size)
        lengths = self._lengths
        batches = [
            rows
            for bucket in _chunks(order, self._batch_size * BATCHES_PER_BUCKET)
            for rows in _chunks(sorted(bucket, key=lambda row: lengths[row]), self._batch_size)
        ]
        dice.shuffle(batches)
        return batches


def split_micro_batches(rows: Sequence[int], lengths: Sequence[int], *, max_rows: int) -> list[list[int]]:
    """The rows of one step in micro-batches of at most `max_rows`, longest first, so that little is padded.

    `lengths` are the tokens of every row of the dataset. Losses are divided once per step, so the order within it is
    free; the longest come first so that a lack of memory shows at once.
    """
    by_length = sorted(rows, key=lambda row: lengths[row], reverse=True)
    return _chunks(by_length, max_rows)


def _chunks(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]

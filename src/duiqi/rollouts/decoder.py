"""The own engine: batched decoding on the training weights, log-probabilities and values caught as tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby

import torch

from duiqi.errors import DataError
from duiqi.rollouts.batch import DecodingBatch
from duiqi.rollouts.engine import DecodableModel
from duiqi.rollouts.prefix import Decoding, find_decoding
from duiqi.types import Rollout, Sampling


class Decoder:
    """An `Engine` on the weights in memory.

    Args:
        model: The trunk and heads to decode with.
        decode: Token ids to text.
        stop_token_ids: The tokens that end an answer.
        pad_token_id: Fills the left of short prompts; masked, so any valid id does.
        max_batch_rows: How many answers are decoded together. Bounds memory; does not change the answers.
        active: Entered around all use of the model: selects the adapter, eval mode, no gradients.
        decoding: How answers stand side by side; None: tried when it is asked for.
    """

    def __init__(
        self,
        model: DecodableModel,
        *,
        decode: Callable[[list[int]], str],
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        max_batch_rows: int = 64,
        active: Callable[[], AbstractContextManager[object]] = torch.no_grad,
        decoding: Decoding | None = None,
    ) -> None:
        self._model, self._decode, self._active = model, decode, active
        self._stop_token_ids, self._pad_token_id = tuple(stop_token_ids), pad_token_id
        self._max_batch_rows, self._decoding = max_batch_rows, decoding

    @property
    def decoding(self) -> Decoding:
        """How answers stand side by side: the fastest way that this model was seen to allow."""
        if self._decoding is None:
            with self._active():
                self._decoding = find_decoding(self._model, pad_token_id=self._pad_token_id)
        return self._decoding

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, step: int = 0) -> list[Rollout]:
        """One answer per prompt, in the order of the prompts. See `Engine.generate`.

        Prompts of similar length are decoded together, and a prompt that occurs several times is read once per batch.
        The random numbers of an answer depend on its index alone, never on the batch it lands in.
        """
        token_ids = [_checked(prompt, index) for index, prompt in enumerate(prompts)]
        # The longest first: a batch too large for the memory fails at once.
        order = sorted(range(len(token_ids)), key=lambda index: (-len(token_ids[index]), token_ids[index]))
        rollouts: list[Rollout] = []
        batches = list(self._divided(order, token_ids))
        with self._active():
            for indices in batches:
                batch = self._begin([token_ids[index] for index in indices], indices, sampling, step)
                while batch.draw():
                    batch.feed()
                rollouts += self._collect(batch)
        return sorted(rollouts, key=lambda rollout: rollout.index)

    def _divided(self, order: list[int], prompts: list[tuple[int, ...]]) -> Iterator[list[int]]:
        """Prompts that are decoded together."""
        apart = self.decoding is Decoding.EQUAL_LENGTHS
        for _, same in groupby(order, key=lambda index: len(prompts[index]) if apart else 0):
            indices = list(same)
            for start in range(0, len(indices), self._max_batch_rows):
                yield indices[start : start + self._max_batch_rows]

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling, *, step: int = 0) -> Iterator[int]:
        """The tokens of one answer as they are drawn, without the stop token: those of `generate([prompt_ids])`.

        `active` is entered anew for every token and left before the caller sees it.
        """
        with self._active():
            batch = self._begin([_checked(prompt_ids, 0)], [0], sampling, step)
            wants_more = batch.draw()
        while (token := int(batch.tokens[0, batch.num_drawn - 1])) not in self._stop_token_ids:
            yield token
            if not wants_more:
                return
            with self._active():
                batch.feed()
                wants_more = batch.draw()

    def _begin(
        self, prompts: list[tuple[int, ...]], indices: list[int], sampling: Sampling, step: int
    ) -> DecodingBatch:
        return DecodingBatch(
            self._model,
            prompts,
            indices=indices,
            sampling=sampling,
            step=step,
            stop_token_ids=self._stop_token_ids,
            pad_token_id=self._pad_token_id,
            decoding=self.decoding,
        )

    def _collect(self, batch: DecodingBatch) -> list[Rollout]:
        """What was drawn, up to each answer's first stop token; the one move of tokens to the host."""
        is_stop = batch.is_stop()
        is_finished = is_stop.any(-1)
        lengths = torch.where(is_finished, is_stop.int().argmax(-1) + 1, batch.sampling.max_new_tokens).tolist()
        tokens, log_probs, values = batch.tokens.tolist(), batch.log_probs.tolist(), batch.values.tolist()
        rollouts = []
        for row, (length, finished) in enumerate(zip(lengths, is_finished.tolist(), strict=True)):
            answer_ids = tokens[row][:length]
            rollouts.append(
                Rollout(
                    index=batch.indices[row],
                    prompt_ids=batch.prompts[row],
                    answer_ids=tuple(answer_ids),
                    log_probs=tuple(log_probs[row][:length]),
                    values=tuple(values[row][:length]) if batch.has_values else (),
                    finished=finished,
                    answer=self._decode(answer_ids[:-1] if finished else answer_ids),
                )
            )
        return rollouts


def _checked(prompt: Sequence[int], index: int) -> tuple[int, ...]:
    if not prompt:
        raise DataError(
            "there is no token to answer to",
            where=f"prompt {index}",
            remedy="give it some text, or a template that begins with a special token",
        )
    return tuple(prompt)

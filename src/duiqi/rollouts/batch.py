"""One batch of answers in the making: the state of the decoder between two tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from duiqi.rollouts.engine import DecodableModel, NonFiniteLogits
from duiqi.rollouts.prefix import Decoding, read_prompts
from duiqi.rollouts.sampling import adjust_logits, draw, keep_likely, log_probs_of, penalise_repetition, uniforms
from duiqi.types import Sampling

COMPACTION_SHARE = 1 / 8
"""Finished rows leave the batch once they are this share of it. Leaving copies the cache, so not one at a time."""


class DecodingBatch:
    """Answers in the making. Call `draw` and `feed` in turn until `draw` says that no answer wants another token.

    What was drawn (`tokens`, `log_probs`, `values`: answers x `max_new_tokens`) is stored for all answers to the end.
    The state between two tokens has one row per answer still in the batch, and `rows` says which answer that is.
    Nothing drawn after a stop token means anything.

    Args:
        prompts: Token ids, one prompt per answer.
        indices: The prompts' positions in the list given to the engine; they seed the random numbers.
        decoding: How they stand side by side.
    """

    _rows: Int[Tensor, " N"]
    _is_alive: Bool[Tensor, " N"]
    _num_alive: int

    def __init__(
        self,
        model: DecodableModel,
        prompts: Sequence[tuple[int, ...]],
        *,
        indices: Sequence[int],
        sampling: Sampling,
        step: int,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        decoding: Decoding,
    ) -> None:
        self.prompts, self.indices, self.sampling, self.step = prompts, indices, sampling, step
        self.stop_token_ids, self._model = stop_token_ids, model
        device, shape = model.device, (len(prompts), sampling.max_new_tokens)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.log_probs, self.values = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self.has_values = False
        self.num_drawn = 0

        self._stops = torch.tensor(stop_token_ids, dtype=torch.long, device=device)
        random_rows = torch.tensor(indices)
        self._uniforms = uniforms(seed=sampling.seed, step=step, rows=random_rows, num_tokens=shape[1]).to(device)
        self._prefix = read_prompts(model, prompts, decoding, pad_token_id=pad_token_id, room=shape[1])
        self._rows = torch.arange(len(prompts), device=device)
        self._is_alive = torch.ones_like(self._rows, dtype=torch.bool)

    def draw(self) -> bool:
        """Draw one token for every row; whether any answer wants another one.

        Raises:
            NonFiniteLogits: The distribution of an unfinished answer is broken.
        """
        position = self.num_drawn
        logits = adjust_logits(
            self._model.logits(self._prefix.hidden),
            temperature=self.sampling.temperature,
            suppressed=torch.ones_like(self._is_alive) if position < self.sampling.min_new_tokens else None,
            stop_token_ids=self.stop_token_ids,
        )
        tokens = self._choose(logits)
        log_probs = log_probs_of(logits, tokens)
        values = self._model.values(self._prefix.hidden)
        self.tokens[self._rows, position] = tokens
        self.log_probs[self._rows, position] = log_probs
        if values is not None:
            self.values[self._rows, position] = values.float()
            self.has_values = True
        self.num_drawn += 1

        is_broken = self._is_alive & ~log_probs.isfinite()
        self._is_alive = self._is_alive & ~torch.isin(tokens, self._stops)
        # The only wait for the device in the loop.
        self._num_alive, num_broken = torch.stack([self._is_alive.sum(), is_broken.sum()]).tolist()
        if num_broken:
            answer = int(self._rows[is_broken][0])
            raise NonFiniteLogits(prompt_index=self.indices[answer], token_index=position, step=self.step)
        return self._num_alive > 0 and self.num_drawn < self.sampling.max_new_tokens

    def feed(self) -> None:
        """Run the tokens just drawn through the trunk, without the answers that are finished."""
        num_finished = len(self._rows) - self._num_alive
        if num_finished and num_finished >= COMPACTION_SHARE * len(self._rows):
            self._select(self._is_alive.nonzero().squeeze(-1))
        self._prefix.grow(self.tokens[self._rows, self.num_drawn - 1])

    def is_stop(self) -> Bool[Tensor, "B T"]:
        """Where a stop token was drawn."""
        return torch.isin(self.tokens, self._stops)

    def _choose(self, logits: Tensor) -> Int[Tensor, " N"]:
        """The next token of every row. Whatever truncates or penalises changes the draw, not the logits recorded."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0:
            drawn = self.tokens[self._rows, : self.num_drawn]
            history = torch.cat([self._prefix.prompts, drawn], -1)
            logits = penalise_repetition(logits, history, penalty=sampling.repetition_penalty)
        if sampling.temperature == 0:
            return logits.argmax(-1)
        logits = keep_likely(logits, top_k=sampling.top_k, top_p=sampling.top_p)
        return draw(logits, self._uniforms[self._rows, self.num_drawn])

    def _select(self, indices: Int[Tensor, " N"]) -> None:
        """Keep these rows of the state."""
        self._prefix.select(indices)
        self._rows, self._is_alive = self._rows[indices], self._is_alive[indices]

"""What a rollout engine is, and what one that decodes on the training weights asks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from duiqi.errors import DuiqiError
from duiqi.types import Rollout, Sampling


class Engine(Protocol):
    """Anything that turns prompts into sampled answers."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, step: int = 0) -> list[Rollout]:
        """One answer per prompt, in the order of the prompts.

        Args:
            prompts: Token ids. A prompt that occurs several times gets several independent answers.
            sampling: How the tokens are drawn.
            step: The optimizer step the answers are for; with `sampling.seed` it fixes every random number.

        Raises:
            NonFiniteLogits: The model gave a distribution that nothing can be drawn from.
        """
        ...


class DecodableModel(Protocol):
    """What the decoder needs of a model: the trunk and the heads apart, so that heads see one position per row.

    Which adapter is on, eval mode and gradients are the caller's business.
    """

    @property
    def device(self) -> torch.device: ...

    def new_cache(self) -> DynamicCache:
        """An empty cache with one layer per layer of the model."""
        ...

    def trunk(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None,
        position_ids: Int[Tensor, "B T"] | None,
        past_key_values: DynamicCache | None,
        use_cache: bool,
    ) -> tuple[Float[Tensor, "B T H"], DynamicCache | None]:
        """The last hidden states, and the cache grown by these tokens.

        Args:
            attention_mask: B x S, over the tokens in the cache and in `input_ids`; None when none of them is padding.
            position_ids: None: as the model finds them.
        """
        ...

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]: ...

    def values(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, " N"] | None:
        """The value head's estimate at each hidden state; None when the model has no value head on this trunk."""
        ...


class NonFiniteLogits(DuiqiError):
    """The model's logits hold nan or inf, so there is no distribution to draw the next token from."""

    def __init__(self, *, prompt_index: int, token_index: int, step: int) -> None:
        self.prompt_index, self.token_index, self.step = prompt_index, token_index, step
        super().__init__(f"step {step}, prompt {prompt_index}: the logits of answer token {token_index} are not finite")

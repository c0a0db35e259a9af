"""Which keys each query sees, for networks that attend causally over rows that may be padded or hold several texts."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor


def is_plain(attention_mask: Tensor | None) -> bool:
    """Whether nothing is hidden by it: every token is real, and all belong together."""
    return attention_mask is None or (attention_mask.dim() == 2 and bool((attention_mask == 1).all()))


def visible_keys(
    attention_mask: Tensor | None, *, num_queries: int, num_keys: int, device: torch.device
) -> Bool[Tensor, "B 1 T S"]:
    """Where a query may look: T queries, the last of S keys.

    Args:
        attention_mask: B x S. 0 is padding. Other numbers are texts packed into one row: a token sees those of its own
            number. None: one text, nothing padded.

    Raises:
        ValueError: The mask is not as long as the keys.
    """
    keys = torch.arange(num_keys, device=device)
    queries = keys[num_keys - num_queries :].unsqueeze(-1)
    causal = keys <= queries
    if attention_mask is None:
        return causal[None, None]
    if attention_mask.shape[-1] != num_keys:
        raise ValueError(f"the attention mask has {attention_mask.shape[-1]} tokens, and there are {num_keys} keys")
    texts = attention_mask.to(device=device, dtype=torch.long)
    own = texts[:, num_keys - num_queries :]
    shared = (texts[:, None, :] == own[:, :, None]) & (texts[:, None, :] > 0)
    itself = keys == queries  # padding sees itself, or its softmax would be over nothing
    return ((causal & shared) | itself).unsqueeze(1)

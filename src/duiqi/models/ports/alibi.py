"""Attention with linear biases (Press et al. 2022): the farther a key is back, the less of it is seen."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def alibi_slopes(num_heads: int) -> list[float]:
    """How steeply each head forgets: 2^(-8/n), 2^(-16/n) ... for n heads, a power of two.

    Other numbers of heads take the slopes of the largest power of two below, then every second one of the next power.

    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return slopes + between[: num_heads - power]


def alibi_bias(
    num_heads: int, *, num_queries: int, num_keys: int, device: torch.device, is_real: Tensor | None = None
) -> Float[Tensor, "B heads T S"]:
    """slope (key's place - query's place), for T queries that are the last of S keys; B is 1 without `is_real`.

    Counted from the query, what matters is near zero, where half precision is fine; the paper's slope times the key's
    place differs by a constant per query, which a softmax does not see.

    Args:
        is_real: B x S, the keys that count: padding between a learned prefix and the first token puts none apart.
    """
    if is_real is None:
        places = torch.arange(num_keys, device=device, dtype=torch.float32).unsqueeze(0)
    else:
        places = is_real.to(device).float().cumsum(-1)
    distance = places[:, None, :] - places[:, num_keys - num_queries :, None]
    slopes = torch.tensor(alibi_slopes(num_heads), device=device, dtype=torch.float32)
    return slopes[None, :, None, None] * distance.unsqueeze(1)


def biased(mask: Tensor, bias: Float[Tensor, "B heads T S"], dtype: torch.dtype) -> Float[Tensor, "B heads T S"]:
    """What is added to the scores: the bias where a mask lets a query look, and nearly minus infinity elsewhere.

    Args:
        mask: B x 1 x T x S: true where a query may look, or numbers to add.

    Raises:
        ValueError: The mask does not say what each pair of tokens may do, so their distance is unknown.
    """
    if mask.shape[-2:] != bias.shape[-2:]:
        raise ValueError("ALiBi goes by how far tokens are apart, which this attention mask does not say")
    lowest = torch.finfo(dtype).min
    both = torch.where(mask, bias, lowest) if mask.dtype == torch.bool else mask.float() + bias
    return both.clamp(min=lowest).to(dtype)

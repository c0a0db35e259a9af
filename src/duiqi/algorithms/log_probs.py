"""Log-probabilities of given tokens, from logits or from hidden states without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of N tokens, and the entropies of the distributions they are from if asked for."""

    log_probs: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None


def token_log_probs(
    logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"], *, temperature: float = 1.0
) -> Float[Tensor, "*N"]:
    """log softmax(logits / temperature) at the targets, in float32.

    >>> token_log_probs(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([0.2500])
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def token_entropy(logits: Float[Tensor, "*N V"], *, temperature: float = 1.0) -> Float[Tensor, "*N"]:
    """Entropy of softmax(logits / temperature), in nats and float32; logits may be -inf.

    >>> token_entropy(torch.tensor([[0.0, 0.0, -torch.inf]])).exp()
    tensor([2.])
    """
    scaled = logits.float() / temperature
    energy = scaled.masked_fill(scaled.isneginf(), 0.0)  # 0 times -inf would be nan
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * energy).sum(-1)


def chunked_log_probs(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    project: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk_size: int = 1024,
    with_entropy: bool = False,
) -> LogProbs:
    """Log-probabilities of the targets; the logits of at most `chunk_size` positions exist at a time.

    Where there are several chunks, each one's logits are computed again in the backward pass, so memory does not grow
    with N x V.

    Args:
        hidden: The states that predict the targets.
        targets: One token per state.
        project: The head: states to logits.
        temperature: Divides the logits.
        chunk_size: Positions projected at once.
        with_entropy: Also return the entropies, differentiable.
    """

    def measure(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = project(states)
        entropy = token_entropy(logits, temperature=temperature) if with_entropy else logits.new_zeros(0)
        return token_log_probs(logits, tokens, temperature=temperature), entropy

    parts = []
    for states, tokens in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True):
        if torch.is_grad_enabled() and len(hidden) > chunk_size:
            parts.append(checkpoint(measure, states, tokens, use_reentrant=False))
        else:
            parts.append(measure(states, tokens))
    log_probs = torch.cat([part[0] for part in parts])
    return LogProbs(log_probs, torch.cat([part[1] for part in parts]) if with_entropy else None)

"""Log-probabilities of given tokens, from logits or from hidden states without ever holding all logits."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NEVER = -1e30
"""The logit of a token that cannot be drawn: its probability is exactly 0, and dividing it by any temperature leaves
it finite. With -inf an entropy would be nan, because 0 times -inf is."""

CHUNK_LOGITS, GPU_CHUNK_LOGITS = 2**22, 2**26
"""Logits of a chunk: 16 MiB in float32, on a GPU 256 MiB, for every chunk reads the whole head, and a GPU needs no less
time for that than to multiply several hundred positions by it."""
GIVEN_BACK = 2**25
"""Bytes of a chunk from which on a CPU's memory for it is not kept; vocabularies beyond 131,072 tokens have them."""
SMALLEST_CHUNK = 64
"""Positions computed together at least, for fewer would read the whole head for next to nothing; a chunk is a multiple
of them, and so are all positions where every new number of them costs."""


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of N tokens, and the entropies of the distributions they are from if asked for."""

    log_probs: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None


@dataclass(frozen=True)
class OutputHead:
    """What turns hidden states into logits: a matrix, perhaps a bias, and what some architectures do after it."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    """Multiplies the logits (Cohere's logit_scale, one over Granite's logits_scaling)."""
    soft_cap: float | None = None
    """Bends logits into (-cap, cap): cap tanh(logit / cap), as in Gemma 2."""

    def __call__(self, hidden: Float[Tensor, "*N H"]) -> Float[Tensor, "*N V"]:
        """Float32 logits."""
        return self.finished(torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias))

    def finished(self, product: Float[Tensor, "*N V"]) -> Float[Tensor, "*N V"]:
        """Float32 logits from what the matrix and the bias made."""
        logits = product.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing in here learns."""
        return not self.weight.requires_grad and (self.bias is None or not self.bias.requires_grad)


@dataclass(frozen=True)
class Ban:
    """Tokens that cannot be drawn at some positions: the end of an answer before its shortest length."""

    positions: Bool[Tensor, " N"]
    token_ids: Int[Tensor, " S"]

    def __getitem__(self, chunk: slice) -> Ban:
        return replace(self, positions=self.positions[chunk])

    def apply_(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """The logits, changed in place, with the banned ones at `NEVER`."""
        places = self.positions.nonzero()
        logits[places, self.token_ids] = NEVER
        return logits


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


def head_log_probs(
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    head: OutputHead,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    ban: Ban | None = None,
    chunk_size: int | None = None,
) -> LogProbs:
    """Log-probabilities of the targets; the logits of at most `chunk_size` positions exist at a time.

    With a frozen head and no entropy the gradient is found in the same pass (`_OnePass`): two matrix products in all.
    Otherwise each chunk's logits are computed again in the backward pass. Memory never grows with N x V.

    Args:
        hidden: The states that predict the targets.
        targets: One token per state.
        head: States to logits.
        temperature: Divides the logits.
        with_entropy: Also return the entropies, differentiable.
        ban: Tokens that could not be drawn.
        chunk_size: Positions projected at once; by default as many as make `CHUNK_LOGITS` logits, or the GPU's.
    """
    most = CHUNK_LOGITS if head.weight.device.type == "cpu" else GPU_CHUNK_LOGITS
    size = chunk_size or max(1, most // len(head.weight) // SMALLEST_CHUNK) * SMALLEST_CHUNK
    if not with_entropy and (head.is_frozen or not torch.is_grad_enabled()):
        count = len(hidden)
        if head.weight.device.type == "cpu" and head.weight.dtype == torch.bfloat16:
            hidden, targets, ban = _filled(hidden, targets, ban)
        log_probs: Tensor = _OnePass.apply(hidden, targets, head, temperature, ban, size)  # type: ignore[no-untyped-call]
        return LogProbs(log_probs[:count], None)

    def measure(states: Tensor, tokens: Tensor, banned: Ban | None) -> tuple[Tensor, Tensor]:
        logits = head(states)
        if banned is not None:
            logits = banned.apply_(logits.clone())
        entropy = token_entropy(logits, temperature=temperature) if with_entropy else logits.new_zeros(0)
        return token_log_probs(logits, tokens, temperature=temperature), entropy

    parts = [(torch.zeros(0, device=hidden.device), torch.zeros(0, device=hidden.device))]
    for start in range(0, len(hidden), size):
        chunk = slice(start, start + size)
        given = hidden[chunk], targets[chunk], None if ban is None else ban[chunk]
        if torch.is_grad_enabled() and len(hidden) > size:
            parts.append(checkpoint(measure, *given, use_reentrant=False))
        else:
            parts.append(measure(*given))
    log_probs = torch.cat([part[0] for part in parts])
    return LogProbs(log_probs, torch.cat([part[1] for part in parts]) if with_entropy else None)


def _filled(hidden: Tensor, targets: Tensor, ban: Ban | None) -> tuple[Tensor, Tensor, Ban | None]:
    """The same with positions of nothing behind, a round number in all.

    In bfloat16 on a CPU, oneDNN compiles and keeps a kernel for every new size of a matrix product.
    """
    missing = -len(hidden) % SMALLEST_CHUNK
    if ban is not None:
        ban = replace(ban, positions=torch.nn.functional.pad(ban.positions, (0, missing)))
    return torch.nn.functional.pad(hidden, (0, 0, 0, missing)), torch.nn.functional.pad(targets, (0, missing)), ban


class _OnePass(torch.autograd.Function):
    """Log-probabilities whose gradient is made going forward.

    d log p(y) / d h = (W[y] - p W) scale / temperature is one vector per position. Keeping it (N x H) instead of the
    logits (N x V) is exact for every loss that is a function of these log-probabilities, and nothing of the
    vocabulary's width outlives its chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: OutputHead,
        temperature: float,
        ban: Ban | None,
        chunk_size: int,
    ) -> Tensor:
        log_probs = torch.empty(len(hidden), device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rooms = _Rooms.for_chunks(min(chunk_size, len(hidden)), head.weight)
        for start in range(0, len(hidden), chunk_size):
            chunk = slice(start, start + chunk_size)
            banned = None if ban is None else ban[chunk]
            slope = None if slopes is None else slopes[chunk]
            log_probs[chunk] = _chunk_in_one_pass(
                hidden[chunk], targets[chunk], head, temperature, banned, rooms, slope
            )
        ctx.save_for_backward(slopes)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradients[0].unsqueeze(-1)).to(slopes.dtype), None, None, None, None, None


@dataclass(frozen=True)
class _Rooms:
    """Memory for the logits of one chunk after the other."""

    exact: Float[Tensor, "N V"]
    """In float32."""
    product: Float[Tensor, "N V"]
    """In the precision of the head; the same memory where that is float32."""

    @classmethod
    def for_chunks(cls, num_positions: int, weight: Tensor) -> _Rooms:
        exact = _room(num_positions, len(weight), torch.float32, weight.device)
        is_exact = weight.dtype == torch.float32
        return cls(exact, exact if is_exact else _room(num_positions, len(weight), weight.dtype, weight.device))


def _room(num_positions: int, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that goes back to the system where it is much.

    A C library that keeps what is freed (`training.process`) gives the next chunk other memory than the last one had,
    if anything was allocated in between: with a large vocabulary, the peak would hold several.
    """
    size = num_positions * num_tokens * dtype.itemsize
    if device.type != "cpu" or size < GIVEN_BACK:
        return torch.empty(num_positions, num_tokens, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(num_positions, num_tokens)


def _chunk_in_one_pass(
    hidden: Tensor,
    targets: Tensor,
    head: OutputHead,
    temperature: float,
    ban: Ban | None,
    rooms: _Rooms,
    slope: Tensor | None,
) -> Tensor:
    """Log-probabilities of a chunk; their gradients with respect to its states are written into `slope`.

    The logits become probabilities, and these the gradient of the logits, in place: with many tokens, a second tensor
    of their size would be the peak of a whole run.
    """
    z, product = rooms.exact[: len(hidden)], rooms.product[: len(hidden)]
    states, weight = hidden.to(head.weight.dtype), head.weight
    if head.bias is None:
        torch.mm(states, weight.t(), out=product)
    else:
        torch.addmm(head.bias, states, weight.t(), out=product)
    if rooms.product is not rooms.exact:
        z.copy_(product)
    if head.scale != 1.0:
        z.mul_(head.scale)
    bend = None
    if head.soft_cap is not None:
        z.div_(head.soft_cap).tanh_()
        bend = None if slope is None else 1.0 - z.square()
        z.mul_(head.soft_cap)
    if ban is not None:
        ban.apply_(z)
    if temperature != 1.0:
        z.div_(temperature)
    targets = targets.unsqueeze(-1)
    z.sub_(z.amax(-1, keepdim=True))
    of_targets = z.gather(-1, targets)
    total = z.exp_().sum(-1, keepdim=True)
    if slope is not None:
        z.div_(total)  # the probabilities, less 1 at the target: minus the gradient of the logits
        z.scatter_add_(-1, targets, z.new_full(targets.shape, -1.0))
        if bend is not None:
            z.mul_(bend)
        if rooms.product is not rooms.exact:
            product.copy_(z)
        slope.copy_(product @ weight).mul_(-head.scale / temperature)
    return (of_targets - total.log()).squeeze(-1)

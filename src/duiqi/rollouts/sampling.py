"""The distribution that answers are drawn from, and the draw itself. The trainer recomputes log-probabilities with the
same temperature and the same tokens banned (`algorithms.log_probs`), so that the first ratio of PPO is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.algorithms.log_probs import NEVER

_GOLDEN_RATIO = 0x9E3779B97F4A7C15
PIECE = 2**19
"""Logits of the rows that a CPU draws from at once: what is computed on the way has their size."""
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def adjust_logits(
    logits: Float[Tensor, "*N V"],
    *,
    temperature: float,
    suppressed: Bool[Tensor, "*N"] | None,
    stop_token_ids: Sequence[int],
) -> Float[Tensor, "*N V"]:
    """Logits of the distribution that answer tokens are drawn from, in float32: tempered, early stop tokens removed.

    Tempering after suppressing gives the same as both at once.

    Args:
        logits: As the head gave them, before any processing.
        temperature: Divides the logits. 0 means greedy decoding, whose log-probabilities are untempered.
        suppressed: True where the answer may not stop yet (position in the answer < `min_new_tokens`); None: nowhere.
        stop_token_ids: The tokens that end an answer.

    Example:
        >>> first = adjust_logits(torch.tensor([[1.0, 3.0, 1.0]]), temperature=2.0,
        ...                       suppressed=torch.tensor([True]), stop_token_ids=[1])
        >>> first.softmax(-1)
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    if suppressed is None or not stop_token_ids:
        return logits
    stops = torch.tensor(stop_token_ids, device=logits.device)
    return logits.index_copy(-1, stops, logits[..., stops].masked_fill(suppressed.unsqueeze(-1), NEVER))


def log_probs_of(logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The log-probability of one token per row; not finite if and only if the row's distribution is broken."""
    normaliser = torch.cat([rows.logsumexp(-1) for rows in logits.split(_rows_at_once(logits))])
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - normaliser


def penalise_repetition(
    logits: Float[Tensor, "N V"], history: Int[Tensor, "N L"], *, penalty: float
) -> Float[Tensor, "N V"]:
    """Logits with every token of the row's history made less likely (CTRL, Keskar et al. 2019, section 4.1).

    As in transformers, and unlike the paper, negative logits are multiplied by the penalty instead of divided:
    division would make these tokens more likely.
    """
    scores = logits.gather(-1, history)
    return logits.scatter(-1, history, torch.where(scores < 0, scores * penalty, scores / penalty))


def keep_likely(logits: Float[Tensor, "N V"], *, top_k: int = 0, top_p: float = 1.0) -> Float[Tensor, "N V"]:
    """Logits with unlikely tokens at -inf: first all but the `top_k`, then all but the smallest set that holds `top_p`.

    Tokens as likely as the last one kept are kept too. `top_k=0` and `top_p=1` keep everything.
    Nucleus sampling: Holtzman et al. 2020, section 3.1.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        likely_first = logits.sort(-1, descending=True).values
        probabilities = likely_first.softmax(-1)
        is_kept = probabilities.cumsum(-1) - probabilities < top_p
        is_kept[..., 0] = True
        least = likely_first.gather(-1, is_kept.sum(-1, keepdim=True) - 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def draw(logits: Float[Tensor, "N V"], uniforms: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """One token per row by inversion: the first whose cumulative probability exceeds the row's uniform number.

    The vocabulary is searched in two steps, first the block of tokens and then the token in it, because a cumulative
    sum over all of it takes longer than the matrix product before it. A token of probability 0 is never drawn. A row
    with nan in it gives some token in range; the caller sees the nan in `log_probs_of`.
    """
    size = _rows_at_once(logits)
    return torch.cat([_draw(*rows) for rows in zip(logits.split(size), uniforms.split(size), strict=True)])


def _rows_at_once(logits: Float[Tensor, "N V"]) -> int:
    """Rows whose temporary tensors exist at a time; the launches of more pieces would cost a GPU time."""
    return max(1, PIECE // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(logits))


def _draw(logits: Float[Tensor, "N V"], uniforms: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    vocabulary = logits.shape[-1]
    size = math.isqrt(vocabulary - 1) + 1
    probabilities = logits.softmax(-1)
    if missing := -vocabulary % size:
        probabilities = torch.nn.functional.pad(probabilities, (0, missing))
    blocks = probabilities.view(len(logits), -1, size)
    mass = blocks.sum(-1)
    block, rest = _first_beyond(mass, uniforms.unsqueeze(-1) * mass.sum(-1, keepdim=True))
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, size)).squeeze(1)
    token, _ = _first_beyond(inside, rest)
    return (block * size + token).squeeze(-1).clamp(max=vocabulary - 1)


def _first_beyond(
    masses: Float[Tensor, "N K"], threshold: Float[Tensor, "N 1"]
) -> tuple[Int[Tensor, "N 1"], Float[Tensor, "N 1"]]:
    """The first place at which the running sum of a row exceeds its threshold, and what of the threshold is left there.

    Rounding may lift the threshold to the whole sum, which no place exceeds, or what is left of it below zero, which
    a place of mass 0 would exceed; so it is kept within the two.
    """
    running = masses.cumsum(-1)
    whole = running[:, -1:]
    threshold = torch.minimum(threshold.clamp(min=0.0), whole.nextafter(torch.zeros_like(whole)))
    place = torch.searchsorted(running, threshold, right=True).clamp(max=masses.shape[-1] - 1)
    return place, threshold - (running.gather(-1, place) - masses.gather(-1, place))


def uniforms(*, seed: int, step: int, rows: Int[Tensor, " B"], num_tokens: int) -> Float[Tensor, "B T"]:
    """Random numbers in [0, 1), each a function of its own (seed, step, row, token position) and of nothing else.

    So an answer does not depend on the batch it was sampled in. The four counters are hashed one after the other by
    the finaliser of SplitMix64 (Steele, Lea, Flood 2014); 24 bits are kept, which float32 holds exactly.
    """
    state = torch.zeros((), dtype=torch.int64)
    for counter in (torch.tensor(seed), torch.tensor(step), rows.cpu().unsqueeze(-1), torch.arange(num_tokens)):
        state = _mix(state + counter + _signed(_GOLDEN_RATIO))
    return _shift_right(state, 40).float() * 2.0**-24


def _mix(state: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    state = (state ^ _shift_right(state, 30)) * _signed(_MIX_1)
    state = (state ^ _shift_right(state, 27)) * _signed(_MIX_2)
    return state ^ _shift_right(state, 31)


def _shift_right(state: Int[Tensor, "*N"], bits: int) -> Int[Tensor, "*N"]:
    """Torch shifts int64 arithmetically; an unsigned shift brings in zeros."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit word: products wrap to the same bits either way."""
    return word - (1 << 64) if word >> 63 else word

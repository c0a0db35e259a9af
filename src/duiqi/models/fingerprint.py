"""A fingerprint of base weights: tells whether an adapter belongs to a base without reading every byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

SAMPLES_PER_TENSOR = 16
SMALLEST = 1e-4
QUANTISED = "-" * 8
"""Stands for the matrices of a base whose values were lost to quantisation."""
PIECE = 2**20
"""Numbers that are summed at once: in float64 they are copied for it."""


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits from the names, shapes and a few values of the parameters.

    Eight of them are of what a quantised base keeps as it is (norms, biases, embeddings, head), eight of its matrices.
    The values are rounded to bfloat16 and tiny ones to zero, so that the same weights in float32 and bfloat16 have the
    same fingerprint (in float16 only weights that were stored in half precision). Take it before adapters are attached.
    """
    kept, matrices = dict[str, nn.Parameter](), dict[str, nn.Parameter]()
    ends = (model.get_input_embeddings(), model.get_output_embeddings()) if isinstance(model, PreTrainedModel) else ()
    outer = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    for name, parameter in model.named_parameters():
        part = matrices if parameter.ndim > 1 and id(parameter) not in outer else kept
        part[name] = parameter
    if not all(parameter.is_floating_point() for parameter in matrices.values()):
        return _digest(kept.items()) + QUANTISED
    return _digest(kept.items()) + _digest(matrices.items())


def is_same_base(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, as far as both know them.

    >>> is_same_base("0123456789abcdef", "01234567--------"), is_same_base("0123456789abcdef", "0123456700000000")
    (True, False)
    """
    return one[:8] == other[:8] and (one[8:] == other[8:] or QUANTISED in (one[8:], other[8:]))


def _digest(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters):
        flat = parameter.detach().reshape(-1)
        count = min(SAMPLES_PER_TENSOR, flat.numel())
        picks = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(1, count - 1)
        values = flat[picks].to(torch.bfloat16).float()
        values = torch.where(values.abs() < SMALLEST, torch.zeros_like(values), values)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Sixteen hex digits that change with every change of any weight that its sums in float64 can see.

    Reads everything once, where the weights are; `fingerprint` reads a few values and forgives rounding.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.detach().reshape(-1)
        room, sums = flat.new_empty(min(PIECE, len(flat)), dtype=torch.float64), flat.new_zeros(2, dtype=torch.float64)
        for piece in flat.split(PIECE):
            exact = room[: len(piece)].copy_(piece)
            sums += torch.stack([exact.sum(), exact.abs_().sum()])
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]

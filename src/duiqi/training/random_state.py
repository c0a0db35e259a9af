"""The state of every random generator that a step may draw from, as tensors of a checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

TORCH, MPS, PYTHON, NUMPY = "random/torch", "random/mps", "random/python", "random/numpy"
CUDA = "random/cuda/"
"""Followed by the number of the GPU."""


def seed_everything(seed: int) -> None:
    """Begin the generators of torch, Python and NumPy with `seed`, which is cut to what each of them takes."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators (CPU, every GPU in use), of Python's and of NumPy's.

    duiqi draws from torch's alone; Python's and NumPy's are for reward functions.
    """
    state = {TORCH: torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state |= {f"{CUDA}{number}": one for number, one in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        state[MPS] = torch.mps.get_rng_state()
    state[PYTHON] = _as_bytes(random.getstate())
    kind, keys, *rest = numpy.random.get_state(legacy=True)
    state[NUMPY] = _as_bytes([kind, [int(key) for key in keys], *rest])
    return state


def restore_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` gave. A GPU that is not here any more is left out.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: They are something else.
    """
    torch.set_rng_state(tensors[TORCH])
    for name, state in tensors.items():
        number = int(name.removeprefix(CUDA)) if name.startswith(CUDA) else -1
        if 0 <= number < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, number)
    if MPS in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors[MPS])
    version, internal, gauss = _from_bytes(tensors[PYTHON])
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = _from_bytes(tensors[NUMPY])
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _as_bytes(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()))

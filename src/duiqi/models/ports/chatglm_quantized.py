"""The int8 and int4 checkpoints of ChatGLM, brought back to floats as they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from duiqi.errors import ModelError

SCALE_SUFFIX = "_scale"
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def dequantize(
    weight: Int8[Tensor, "out packed"], scale: Float[Tensor, " out"], *, bits: int, dtype: torch.dtype
) -> Float[Tensor, "out in"]:
    """The matrix that was stored as whole numbers of 4 or 8 bits and one scale for each row.

    >>> packed = torch.tensor([[0x7F, -0x70]], dtype=torch.int8)  # nibbles 7, -1 and -7, 0, the high one first
    >>> dequantize(packed, torch.tensor([0.5]), bits=4, dtype=torch.float32)
    tensor([[ 3.5000, -0.5000, -3.5000,  0.0000]])
    """
    assert bits in (4, 8)
    numbers = weight
    if bits == 4:
        low = (weight & 0x0F).bitwise_xor(8) - 8  # the sign of four bits
        numbers = torch.stack([weight >> 4, low], dim=-1).flatten(1)
    return (numbers.float() * scale.float()[:, None]).to(dtype)


def dequantized(state: Mapping[str, Tensor], *, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A checkpoint's tensors, with every quantised matrix restored and its scale left out.

    Raises:
        ValueError: A matrix of whole numbers has no scale: it is quantised in a way not known here.
    """
    restored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(f".weight{SCALE_SUFFIX}"):
            continue
        if tensor.dtype == torch.int8:
            if name + SCALE_SUFFIX not in state:
                raise ValueError(f"{name} is quantised, but {name + SCALE_SUFFIX} is not among the weights")
            restored[name] = dequantize(tensor, state[name + SCALE_SUFFIX], bits=bits, dtype=dtype)
        else:
            restored[name] = tensor
    return restored


def load_dequantized(
    directory: str | Path, model_class: type[PreTrainedModel], *, dtype: torch.dtype
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model of a quantised checkpoint in floats, and transformers' report of what was missing.

    It is saved as a plain one: `quantization_bit` is 0 from here on.

    Raises:
        ModelError: No weights are there, or they are quantised in a way not known here.
    """
    path = Path(directory)
    config = model_class.config_class.from_pretrained(path)
    bits, config.quantization_bit = config.quantization_bit, 0
    if bits not in (4, 8):
        raise ModelError(f"quantization_bit is {bits}; only 4 and 8 are known", where=str(path / "config.json"))
    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
        state.update(load_state_dict(file))
    try:
        restored = dequantized(state, bits=bits, dtype=dtype)
    except ValueError as error:
        raise ModelError(str(error), where=str(path), remedy="use the checkpoint that is not quantised") from error
    return model_class.from_pretrained(  # type: ignore[no-any-return]
        None, config=config, state_dict=restored, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )


def _weight_files(path: Path) -> list[Path]:
    for name in SINGLE_FILES:
        index = path / f"{name}.index.json"
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [path / shard for shard in sorted(set(shards))]
        if (path / name).is_file():
            return [path / name]
    raise ModelError("no weights are here", where=str(path), remedy=f"put {' or '.join(SINGLE_FILES)} there")

"""The int8 and int4 checkpoints of ChatGLM, brought back to floats as they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file

from duiqi.errors import ModelError
from duiqi.models.ports.files import optional_file

SCALE_SUFFIX = "_scale"
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


class FromQuantized:
    """Lets `from_pretrained` of the networks that inherit it read quantised checkpoints as any other.

    Such a checkpoint says so in config.json (`quantization_bit`). Its matrices become floats, so that the network is a
    plain one from then on, also when it is saved.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' `from_pretrained`, with its arguments.

        Raises:
            ModelError: No weights are there, or they are quantised in a way not known here.
        """
        path = pretrained_model_name_or_path
        plain = super().from_pretrained  # type: ignore[misc]  # of PreTrainedModel
        if path is None or not (bits := _quantization_bits(path)):
            return plain(path, *args, **kwargs)
        wanted = kwargs.get("dtype")
        dtype = wanted if isinstance(wanted, torch.dtype) else torch.float32
        settings = {"config": str(path), **kwargs, "quantization_bit": 0}
        return plain(None, *args, state_dict=read_dequantized(str(path), bits=bits, dtype=dtype), **settings)


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


def read_dequantized(path: str, *, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a quantised checkpoint, in a directory or on the hub, as floats.

    Raises:
        ModelError: No weights are there, or they are quantised in a way not known here.
    """
    if bits not in (4, 8):
        raise ModelError(f"quantization_bit is {bits}; only 4 and 8 are known", where=f"{path}, config.json")
    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
        state.update(load_state_dict(file))
    try:
        return dequantized(state, bits=bits, dtype=dtype)
    except ValueError as error:
        raise ModelError(str(error), where=path, remedy="use the checkpoint that is not quantised") from error


def _quantization_bits(path: Any) -> int:
    config, _ = PreTrainedConfig.get_config_dict(path)
    return int(config.get("quantization_bit") or 0)


def _weight_files(path: str) -> list[str]:
    for name in SINGLE_FILES:
        if (index := optional_file(path, f"{name}.index.json")) is not None:
            shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
            return [str(cached_file(path, shard)) for shard in sorted(set(shards))]
        if (single := optional_file(path, name)) is not None:
            return [single]
    raise ModelError("no weights are here", where=path, remedy=f"put {' or '.join(SINGLE_FILES)} there")

"""A frozen base in 4 or 8 bits (QLoRA, Dettmers et al. 2023), through bitsandbytes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import BitsAndBytesConfig

from duiqi.errors import ModelError

DEVICES = ("cuda", "xpu", "cpu")
"""Where bitsandbytes has kernels."""


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a frozen base are stored."""

    bits: Literal[4, 8]
    kind: Literal["nf4", "fp4"] = "nf4"
    """The sixteen values of 4 bits."""
    is_double: bool = True
    """Whether the scales are quantised too."""


def quantization_config(quantization: Quantization, *, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """transformers' settings for it; products are computed in `dtype`.

    Raises:
        ModelError: bitsandbytes is not installed, or has nothing for this device.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "the package bitsandbytes is not installed",
            where=f"quantization_bit: {quantization.bits}",
            remedy="pip install bitsandbytes, or remove quantization_bit",
        )
    if device.type not in DEVICES:
        raise ModelError(
            f"bitsandbytes has no kernels for {device.type}",
            where=f"quantization_bit: {quantization.bits}",
            remedy="use a CUDA device or the CPU, or remove quantization_bit",
        )
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.is_double,
        bnb_4bit_compute_dtype=dtype,
    )

"""A frozen base in 4 or 8 bits (QLoRA, Dettmers et al. 2023), through bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
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


def rounds_activations(model: nn.Module) -> bool:
    """Whether inputs of its products are rounded to 8 bits: then a last digit that differs becomes a step of those."""
    return bool(getattr(model, "is_loaded_in_8bit", False))


def compute_alike(model: nn.Module) -> None:
    """Let products of 4 bits be the same in training and out of it.

    Out of training, bitsandbytes packs the weights anew for CPUs with AVX-512 and computes in bfloat16: rollouts would
    come from another model than the one that learns.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantization_config(quantization: Quantization, *, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """transformers' settings for it; products are computed in `dtype`.

    Raises:
        ModelError: bitsandbytes is not installed, or has nothing for this device.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "the package bitsandbytes is not installed",
            where=f"quantization_bit: {quantization.bits}",
            remedy="pip install 'duiqi[quantized]', or remove quantization_bit",
        )
    if device.type not in DEVICES:
        raise ModelError(
            f"bitsandbytes has no kernels for {device.type}",
            where=f"quantization_bit: {quantization.bits}",
            remedy="use a CUDA device or the CPU, or remove quantization_bit",
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # 8 bits tell of every product that they compute in half
    if quantization.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.is_double,
        bnb_4bit_compute_dtype=dtype,
    )

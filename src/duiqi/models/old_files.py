"""Files of trainers of 2023 beside PEFT's own, or in their place: value heads, and layers that were trained alone.

Nothing in them is run: what torch wrote is read as tensors only, and the pickles of arguments are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from duiqi.errors import ModelError
from duiqi.models.card import CARD_NAME

OLD_WEIGHTS_NAME = "adapter_model.bin"
_PARTIAL_MODEL_NAME = "pytorch_model.bin"
_ARGUMENTS_NAME = "finetuning_args.json"
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
_HEAD_WEIGHT = "summary.weight"
_COPY_AGAIN = "copy the adapter again"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors, or of one that torch wrote, without running anything in it.

    Raises:
        ModelError: It is damaged, or holds something else than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            weights: dict[str, Tensor] = load_file(file)
            return weights
        found = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise ValueError("it holds something else than tensors")
    except Exception as error:  # bytes of any content; torch raises whatever it comes upon in them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"cannot be read ({reason})", where=str(file), remedy=_COPY_AGAIN) from error
    return {str(key): value for key, value in found.items()}


def read_value_head(directory: Path) -> Tensor | None:
    """The weights (1 x H) of the value head that TRL's wrapper left beside a model; None: there is none.

    Its bias is left out. Pairs never gave it a gradient, and it adds the same number to every score.

    Raises:
        ModelError: The file is damaged, or holds no such head.
    """
    file = next((directory / name for name in _VALUE_HEADS if (directory / name).is_file()), None)
    if file is None or (directory / CARD_NAME).is_file():  # beside a card it is the critic of duiqi's own PPO
        return None
    weights = {key.removeprefix("v_head."): value for key, value in read_tensors(file).items()}
    weight = weights.get(_HEAD_WEIGHT)
    if weight is None or weight.ndim != 2 or len(weight) != 1:
        found = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
        raise ModelError(f"{_HEAD_WEIGHT} is {found}, not 1 x H", where=str(file), remedy=_COPY_AGAIN)
    return weight.float()


def trained_layers_file(directory: Path) -> Path | None:
    """The weights of layers that freeze tuning trained, where they were saved alone; None: there are none."""
    if (directory / OLD_WEIGHTS_NAME).is_file():
        return directory / OLD_WEIGHTS_NAME
    partial = directory / _PARTIAL_MODEL_NAME
    is_partial = partial.is_file() and _fields_of(directory / _ARGUMENTS_NAME).get("finetuning_type") == "freeze"
    return partial if is_partial else None


def read_trained_layers(file: Path) -> dict[str, Tensor]:
    """The weights of layers that were saved alone, by their names in the network.

    Raises:
        ModelError: The file is damaged, or holds adapters whose configuration is missing.
    """
    weights = read_tensors(file)
    if any("lora_" in name for name in weights):
        raise ModelError(
            "adapter_config.json is missing, so nobody knows the shape of its adapters",
            where=str(file.parent),
            remedy="copy it from where the adapter came from",
        )
    if any("prefix_encoder" in name for name in weights):
        raise ModelError(
            "holds a prefix of ChatGLM's own P-Tuning, which is not read",
            where=str(file),
            remedy="train it again with finetuning_type: p_tuning",
        )
    return {name.removeprefix("pretrained_model."): weight for name, weight in weights.items()}


def base_of_trained_layers(directory: Path) -> str:
    """The base that such a directory names; empty: none."""
    return str(_fields_of(directory / "config.json").get("_name_or_path") or "")


def _fields_of(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""Adapters on disk, in PEFT's layout: reading them, mounting them on a network, writing them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiqi.errors import ModelError
from duiqi.models.adapters import Mounted, attach
from duiqi.models.prefix import saved_prefix

WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"
CONFIG_NAME = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
SCORE_KEY = "score.weight"
PROMPT_KEY = "prompt_embeddings"

_CONFIGS: Mapping[str, type[PeftConfig]] = {"LORA": LoraConfig, "PREFIX_TUNING": PrefixTuningConfig}


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it lies on disk; names without PEFT's prefix."""

    path: Path
    config: PeftConfig
    base: str
    low_rank: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the base that it replaces."""
    prefix: Tensor | None = None
    """P x size, see `prefix.Prefix.flat`."""
    score: Tensor | None = None
    """The reward head (1 x H), if this is a reward model."""

    @property
    def kind(self) -> str:
        """What it was trained with, as the setting `finetuning_type` calls it."""
        if self.prefix is not None:
            return "p_tuning"
        return "lora" if self.low_rank else "freeze"


def is_adapter(directory: Path) -> bool:
    """Whether a directory says that it is an adapter."""
    return (directory / CONFIG_NAME).is_file()


def read_adapter(directory: str | Path) -> SavedAdapter:
    """Read a PEFT directory: LoRA, modules_to_save, prefix tuning; also the `.bin` files of 2023.

    Raises:
        ModelError: Files are missing, damaged, or of another kind.
    """
    path = Path(directory)
    weights_file = next((path / name for name in (WEIGHTS_NAME, OLD_WEIGHTS_NAME) if (path / name).is_file()), None)
    if not is_adapter(path) or weights_file is None:
        raise ModelError(
            f"{WEIGHTS_NAME if is_adapter(path) else CONFIG_NAME} is missing, so this is not an adapter",
            where=str(path),
            remedy="give a run directory, or a directory that PEFT's save_pretrained wrote",
        )
    try:
        fields = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        if weights_file.name == WEIGHTS_NAME:
            weights = load_file(weights_file)
        else:
            weights = torch.load(weights_file, map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(path), remedy="copy the adapter again") from error
    kind = _CONFIGS.get(fields.get("peft_type"))
    if kind is None:
        raise ModelError(f"is a {fields.get('peft_type')} adapter, not LoRA or a prefix", where=str(path))
    config = kind(**{key: value for key, value in fields.items() if key in kind.__dataclass_fields__})
    config.inference_mode = False
    saved = SavedAdapter(path, config, str(config.base_model_name_or_path or ""))
    plain = {_plain_name(key): value for key, value in weights.items()}
    if isinstance(config, PrefixTuningConfig):
        if PROMPT_KEY not in plain:
            missing = f"{PROMPT_KEY} is missing from its weights"
            raise ModelError(missing, where=str(path), remedy="copy the adapter again")
        return replace(saved, prefix=plain.pop(PROMPT_KEY), score=plain.pop(SCORE_KEY, None))
    score = plain.pop(SCORE_KEY, None)
    low_rank = {key: value for key, value in plain.items() if "lora_" in key}
    own = {key: value for key, value in plain.items() if "lora_" not in key}
    config.modules_to_save = modules_of(own)
    return replace(saved, low_rank=low_rank, own=own, score=score)


def modules_of(weights: Mapping[str, Tensor]) -> list[str] | None:
    """The modules that weights belong to, as PEFT's configuration names them; None: there are none."""
    return sorted({key.rpartition(".")[0] for key in weights}) or None


def _plain_name(key: str) -> str:
    """A weight's name without PEFT's prefix and without the adapter's name, which some versions of PEFT kept."""
    return key.removeprefix(PEFT_PREFIX).replace(".default.", ".")


def mount(network: nn.Module, name: str, saved: SavedAdapter, *, trainable: bool) -> Mounted:
    """Attach a saved adapter under `name`; nobody hears it yet.

    Raises:
        ModelError: Its weights do not fit the layers of this base, or would replace quantised ones.
    """
    if saved.prefix is not None:
        assert isinstance(saved.config, PrefixTuningConfig)
        prefix = saved_prefix(saved.config, saved.prefix).to(next(network.parameters()).device)
        prefix.requires_grad_(trainable)
        return Mounted(name, saved.config, prefix=prefix)
    try:
        mounted = attach(network, name, saved.config, trainable=trainable)
        if mounted.has_lora:
            _load_low_rank(network, name, saved)
        if mounted.own is not None:
            mounted.own.load(saved.own)
    except ModelError:
        raise
    except (RuntimeError, KeyError, ValueError) as error:
        raise ModelError(
            f"the adapter does not fit this base ({str(error).splitlines()[-1].strip()})",
            where=str(saved.path),
            remedy=f"it was trained on {saved.base or 'another model'}: give that as model_name_or_path",
        ) from error
    if missing := sorted(saved.own.keys() - (mounted.own.state() if mounted.own else {}).keys()):
        raise _other_layers(saved, missing[0])
    return mounted


def _load_low_rank(network: nn.Module, name: str, saved: SavedAdapter) -> None:
    result = set_peft_model_state_dict(network, saved.low_rank, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key and "lora_" in key]
    if odd := [*result.unexpected_keys, *missing]:
        raise _other_layers(saved, odd[0])


def _other_layers(saved: SavedAdapter, first: str) -> ModelError:
    return ModelError(
        f"the adapter and this base have different layers (first: {first})",
        where=str(saved.path),
        remedy=f"it was trained on {saved.base or 'another model'}: give that as model_name_or_path",
    )


def adapter_weights(network: nn.Module, mounted: Mounted, *, but: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights of an adapter under the names that PEFT uses on disk, on the CPU; without own ones of `but`."""
    if mounted.prefix is not None:
        return {PROMPT_KEY: mounted.prefix.flat().detach().cpu().contiguous()}
    found: dict[str, Tensor] = {}
    if mounted.has_lora:
        found |= get_peft_model_state_dict(network, adapter_name=mounted.name, save_embedding_layers=False)
    if mounted.own is not None:
        found |= {key: value.clone() for key, value in mounted.own.state(but=but).items()}
    return {PEFT_PREFIX + key: value.detach().cpu().contiguous() for key, value in found.items()}


def save_adapter(
    directory: Path, network: PreTrainedModel, mounted: Mounted, *, base: str, score: Tensor | None = None
) -> None:
    """Write one adapter in PEFT's layout; with `score` (1 x H) as a sequence classifier, head included.

    Raises:
        ModelError: A tensor has no elements (what a sharded save can leave behind).
    """
    idle = network.get_output_embeddings() if score is not None else None  # a sequence classifier has none
    weights = adapter_weights(network, mounted, but=idle)
    if score is not None:
        weights[PEFT_PREFIX + SCORE_KEY] = score.detach().float().cpu().contiguous()
    if empty := [key for key, value in weights.items() if value.numel() == 0]:
        raise ModelError(f"tensor {empty[0]} is empty, so nothing was saved", where=str(directory))
    save_file(weights, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    fields: dict[str, Any] = mounted.config.to_dict()
    fields.update(
        base_model_name_or_path=base, inference_mode=True, task_type="CAUSAL_LM" if score is None else "SEQ_CLS"
    )
    if isinstance(mounted.config, LoraConfig):
        whole = [*(mounted.own.paths(but=idle) if mounted.own else ()), *(["score"] if score is not None else ())]
        fields["modules_to_save"] = whole or None
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    text = json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True, default=str)
    (directory / CONFIG_NAME).write_text(text, encoding="utf-8")

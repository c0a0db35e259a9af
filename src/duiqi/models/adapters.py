"""LoRA adapters on a shared base: attach, switch, copy, and PEFT's files on disk.

PEFT does the layers (so that dora, rslora and others come with it and any adapter opens with plain PEFT); which
adapter is heard at a time is ours, because PEFT's own switch also flips `requires_grad`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from duiqi.errors import ModelError, did_you_mean

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
STATE_SPACES = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
"""Architectures on which PEFT refuses to adapt `out_proj`."""
SCORE_KEY = f"{PEFT_PREFIX}score.weight"


@dataclass(frozen=True)
class LoRASpec:
    """The shape of a new adapter."""

    rank: int = 8
    alpha: int | None = None
    dropout: float = 0.0
    target: str = "all"
    use_rslora: bool = False
    use_dora: bool = False


def lora_config(spec: LoRASpec, model: nn.Module) -> LoraConfig:
    """PEFT's configuration of `spec` on `model`, with the target layers spelled out.

    Raises:
        ModelError: A target matches no layer.
    """
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha or 2 * spec.rank,
        lora_dropout=spec.dropout,
        target_modules=_target_names(spec.target, model),
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
    )


def linear_names(model: nn.Module) -> list[str]:
    """Last names of all linear layers of the trunk, without the output head."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D | BaseTunerLayer)
            and module is not head
            and "lora_" not in name
            and not name.endswith("base_layer")
        }
    )


def left_out(model: nn.Module) -> dict[str, str]:
    """Linear layers that `lora_target: all` does not adapt, by name, and why."""
    found: dict[str, str] = {}
    known = linear_names(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in STATE_SPACES and "out_proj" in known:
        found["out_proj"] = "fused kernels of this architecture would not see the adapter"
    trial = LoraConfig(target_modules=known)
    convert_peft_config_for_transformers(trial, model, None)
    for name in set(known).difference(trial.target_modules):
        found[name] = "on this architecture PEFT takes the name for the experts' own matrices"
    return found


def _target_names(target: str, model: nn.Module) -> list[str]:
    known = linear_names(model)
    if target == "all":
        return sorted(set(known).difference(left_out(model)))
    wanted = [name.strip() for name in target.split(",") if name.strip()]
    for name in wanted:
        if not any(path == name or path.endswith(f".{name}") for path, _ in model.named_modules()):
            near = did_you_mean(name, known) or f"linear layers here: {', '.join(known)}"
            raise ModelError(f"no layer of this model is named {name!r}", where="lora_target", remedy=near)
    return wanted


def attach(model: nn.Module, name: str, config: LoraConfig, *, trainable: bool) -> None:
    """Add an adapter called `name` with fresh weights (its output is zero). Other parameters keep `requires_grad`."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT then sets it rightly (Conv1D)
        inject_adapter_in_model(config, model, adapter_name=name)
    for parameter in model.parameters():
        if parameter in before:
            parameter.requires_grad_(before[parameter])
    for parameter in adapter_parameters(model, name).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(trainable)


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by their full names."""
    return {key: p for key, p in model.named_parameters() if f".{name}." in f"{key}." and "lora_" in key}


def hear(model: nn.Module, name: str | None) -> None:
    """From now on the adapter `name` acts, and no other; None: the bare base."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._disable_adapters = name is None
            layer._active_adapter = [name] if name is not None else layer._active_adapter


@contextmanager
def heard(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within this context the adapter `name` acts, and no other; None: the bare base."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    hear(model, name)
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def keep_only(model: nn.Module, name: str | None) -> None:
    """Remove every adapter but `name`, which is then heard; None: remove all."""
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    others = configs.keys() - {name}
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer._active_adapter = []  # PEFT would set another active one, and let it train
            for other in others:
                layer.delete_adapter(other)
    for other in others:
        del configs[other]
    hear(model, name)


def adapter_weights(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights of one adapter under the names that PEFT uses on disk."""
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {PEFT_PREFIX + key: value.detach().cpu().contiguous() for key, value in state.items()}


def copy_weights(model: nn.Module, source: str, target: str) -> None:
    """Give adapter `target` the weights of adapter `source`."""
    into = adapter_parameters(model, target)
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, source).items():
            into[_renamed(key, source, target)].copy_(parameter)


def _renamed(key: str, source: str, target: str) -> str:
    return ".".join(target if part == source else part for part in key.split("."))


def save_adapter(
    directory: Path, model: nn.Module, name: str, config: LoraConfig, *, base: str, score: Tensor | None = None
) -> None:
    """Write one adapter in PEFT's layout; with `score` (1 x H) as a sequence classifier, head included.

    Raises:
        ModelError: A tensor has no elements (what a sharded save can leave behind).
    """
    weights = adapter_weights(model, name)
    if score is not None:
        weights[SCORE_KEY] = score.detach().float().cpu().contiguous()
    if empty := [key for key, value in weights.items() if value.numel() == 0]:
        raise ModelError(f"tensor {empty[0]} is empty, so nothing was saved", where=str(directory))
    save_file(weights, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    fields: dict[str, Any] = config.to_dict()
    fields.update(
        base_model_name_or_path=base,
        inference_mode=True,
        task_type="CAUSAL_LM" if score is None else "SEQ_CLS",
        modules_to_save=None if score is None else ["score"],
    )
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    text = json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True, default=str)
    (directory / CONFIG_NAME).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it lies on disk."""

    path: Path
    config: LoraConfig
    weights: dict[str, Tensor]
    """Without a head; names as PEFT writes them, its prefix removed."""
    score: Tensor | None
    """The reward head (1 x H), if this is a reward model."""
    base: str


def read_adapter(directory: str | Path) -> SavedAdapter:
    """Read a PEFT LoRA directory.

    Raises:
        ModelError: Files are missing, damaged, or of another kind than LoRA.
    """
    path = Path(directory)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise ModelError(
                f"{name} is missing, so this is not an adapter",
                where=str(path),
                remedy="give a run directory, or a directory that PEFT's save_pretrained wrote",
            )
    try:
        fields = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        weights = load_file(path / WEIGHTS_NAME)
    except (ValueError, SafetensorError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(path), remedy="copy the adapter again") from error
    if fields.get("peft_type") != "LORA":
        raise ModelError(f"is a {fields.get('peft_type')} adapter, not LoRA", where=str(path))
    config = LoraConfig(**{key: value for key, value in fields.items() if key in LoraConfig.__dataclass_fields__})
    base = str(config.base_model_name_or_path or "")
    config.modules_to_save = None
    config.inference_mode = False
    score = weights.pop(SCORE_KEY, None)
    if beyond := [key for key in weights if "lora_" not in key]:
        raise ModelError(
            f"the adapter also replaces weights of the base ({beyond[0]}), which all roles share",
            where=str(path),
            remedy="merge it into its base with PEFT's merge_and_unload, and give the merged model",
        )
    plain = {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}
    return SavedAdapter(path=path, config=config, weights=plain, score=score, base=base)


def mount(model: nn.Module, name: str, saved: SavedAdapter, *, trainable: bool) -> None:
    """Attach a saved adapter under `name`.

    Raises:
        ModelError: Its weights do not fit the layers of this base.
    """
    attach(model, name, saved.config, trainable=trainable)
    try:
        result = set_peft_model_state_dict(model, saved.weights, adapter_name=name)
    except RuntimeError as error:
        raise ModelError(
            f"the adapter does not fit this base ({str(error).splitlines()[-1].strip()})",
            where=str(saved.path),
            remedy=f"it was trained on {saved.base or 'another model'}: give that as model_name_or_path",
        ) from error
    missing = [key for key in result.missing_keys if f".{name}." in key and "lora_" in key]
    if result.unexpected_keys or missing:
        odd = (result.unexpected_keys or missing)[0]
        raise ModelError(
            f"the adapter and this base have different layers (first: {odd})",
            where=str(saved.path),
            remedy=f"it was trained on {saved.base or 'another model'}: give that as model_name_or_path",
        )

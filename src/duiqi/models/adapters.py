"""Adapters on a shared network: LoRA, weights of the base trained whole (freeze tuning, modules_to_save), prefixes.

PEFT does LoRA's layers (so that dora, rslora and others come with it) and any adapter opens with plain PEFT; which
adapters are heard at a time is ours, because PEFT's own switch also flips `requires_grad`.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from duiqi.errors import ModelError
from duiqi.models.own_weights import OwnWeights
from duiqi.models.prefix import Prefix
from duiqi.models.targets import (
    ALL,
    condensed,
    linear_paths,
    num_layers_of,
    plain_modules,
    select_linears,
    select_owners,
)

NOTHING = DUMMY_TARGET_MODULES
"""What PEFT calls the target of an adapter without low-rank layers."""
STATE_SPACES = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
"""Architectures on which PEFT refuses to adapt `out_proj`."""


@dataclass(frozen=True)
class LoRASpec:
    """The shape of a new low-rank adapter (Hu et al. 2021)."""

    rank: int = 8
    alpha: int | None = None
    dropout: float = 0.0
    target: str = "all"
    use_rslora: bool = False
    use_dora: bool = False
    pissa: bool = False
    """Begin with the largest singular directions of each weight (see `pissa`)."""
    modules_to_save: str = ""
    """Modules whose weights are trained whole beside it, by `targets`; empty: none."""


@dataclass(frozen=True)
class FreezeSpec:
    """Which layers of the base are trained whole, all others frozen."""

    layers: int = 2
    """So many of the last layers; below 0, of the first."""
    modules: str = "all"
    """What in a layer, by `targets`."""


AdapterSpec = LoRASpec | FreezeSpec


def adapter_config(spec: AdapterSpec, model: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration of `spec` on `model`, with the modules spelled out.

    Raises:
        ModelError: A name matches no module.
    """
    if isinstance(spec, FreezeSpec):
        return LoraConfig(target_modules=NOTHING, modules_to_save=_moving(spec, model))
    whole = select_owners(model, spec.modules_to_save, setting="modules_to_save") if spec.modules_to_save else None
    chosen = select_linears(model, spec.target, setting="lora_target")
    if spec.target in ALL:
        idle = left_out(model)
        chosen = [path for path in chosen if path.rpartition(".")[2] not in idle]
    if twice := sorted(set(chosen).intersection(whole or ())):
        raise ModelError(
            f"{twice[0]} is trained whole and has an adapter too", where="modules_to_save", remedy="name it in one"
        )
    halves = 2 if spec.pissa else 1
    return LoraConfig(
        r=halves * spec.rank,
        lora_alpha=halves * (spec.alpha or 2 * spec.rank),
        lora_dropout=spec.dropout,
        target_modules=condensed(model, chosen),
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        modules_to_save=whole,
        fan_in_fan_out=any(isinstance(module, Conv1D) and path in chosen for path, module in plain_modules(model)),
    )


def _moving(spec: FreezeSpec, model: PreTrainedModel) -> list[str]:
    """The modules that freeze tuning trains."""
    count = num_layers_of(model)
    if not 0 < abs(spec.layers) <= count:
        raise ModelError(
            f"{spec.layers} of {count} layers cannot be trained",
            where="freeze_trainable_layers",
            remedy="give 2 for the last two, -2 for the first two",
        )
    span = f"0-{-spec.layers - 1}" if spec.layers < 0 else f"{count - spec.layers}-{count - 1}"
    names = ",".join(f"{name.strip()}@{span}" for name in spec.modules.split(",") if name.strip())
    return select_owners(model, names, setting="freeze_trainable_modules")


def left_out(model: PreTrainedModel) -> dict[str, str]:
    """Linear layers that `lora_target: all` does not adapt, by last name, and why."""
    found: dict[str, str] = {}
    known = list(dict.fromkeys(path.rpartition(".")[2] for path in linear_paths(model)))
    if model.config.model_type in STATE_SPACES and "out_proj" in known:
        found["out_proj"] = "fused kernels of this architecture would not see the adapter"
    trial = LoraConfig(target_modules=known)
    convert_peft_config_for_transformers(trial, model, None)
    for name in set(known).difference(trial.target_modules):
        found[name] = "on this architecture PEFT takes the name for the experts' own matrices"
    return found


@dataclass(frozen=True)
class Mounted:
    """An adapter as it is on a network: some of low-rank layers, own weights and a prefix."""

    name: str
    """Of the low-rank layers in PEFT's modules."""
    config: PeftConfig
    own: OwnWeights | None = None
    prefix: Prefix | None = None

    @property
    def has_lora(self) -> bool:
        return isinstance(self.config, LoraConfig) and self.config.target_modules != NOTHING

    def in_copy(self) -> Mounted:
        """What it is on a copy of its network, where its own weights are the network's; a prefix stays as it is now."""
        return replace(self, own=None, prefix=None if self.prefix is None else self.prefix.copy(trainable=False))

    def parameters(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """All its parameters, under names that say whose they are."""
        found = lora_parameters(network, self.name) if self.has_lora else {}
        if self.own is not None:
            found |= {f"own.{self.name}.{key}": parameter for key, parameter in self.own.parameters.items()}
        if self.prefix is not None:
            found |= {f"prefix.{self.name}.{key}": p for key, p in self.prefix.named_parameters()}
        return found


def attach(network: nn.Module, name: str, config: PeftConfig, *, trainable: bool) -> Mounted:
    """Add an adapter called `name` that changes nothing yet. Other parameters keep `requires_grad`.

    Own weights begin as what stands in their places now, a prefix is not made here.
    """
    mounted = Mounted(name, config)
    if mounted.has_lora:
        _attach_lora(network, name, config, trainable=trainable)
    if isinstance(config, LoraConfig) and config.modules_to_save:
        mounted = replace(mounted, own=OwnWeights(network, list(config.modules_to_save), trainable=trainable))
    return mounted


def _attach_lora(network: nn.Module, name: str, config: PeftConfig, *, trainable: bool) -> None:
    before = {parameter: parameter.requires_grad for parameter in network.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
        inject_adapter_in_model(without_modules_to_save(config), network, adapter_name=name)
    for parameter in network.parameters():
        if parameter in before:
            parameter.requires_grad_(before[parameter])
    for parameter in lora_parameters(network, name).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(trainable)


def without_modules_to_save(config: PeftConfig) -> PeftConfig:
    """The low-rank part of a configuration: modules that PEFT wraps for their weights nothing else could adapt."""
    low_rank = copy.copy(config)
    low_rank.modules_to_save = None
    return low_rank


def attach_copy(network: nn.Module, name: str, of: Mounted, *, trainable: bool) -> Mounted:
    """Add an adapter called `name` with the weights that the adapter `of` has now."""
    copied = attach(network, name, of.config, trainable=trainable)
    if of.prefix is not None:
        copied = replace(copied, prefix=of.prefix.copy(trainable=trainable))
    with torch.no_grad():
        for mine, theirs in zip(copied.parameters(network).values(), of.parameters(network).values(), strict=True):
            mine.copy_(theirs)
    return copied


def lora_parameters(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The low-rank parameters of one adapter by their full names."""
    own = re.compile(rf"\.lora_\w+\.{re.escape(name)}(\.|$)")
    return {key: parameter for key, parameter in network.named_parameters() if own.search(key)}


def hear(network: nn.Module, names: Sequence[str]) -> None:
    """From now on the low-rank layers of the adapters `names` act together, and no others."""
    for layer in tuner_layers(network):
        layer._disable_adapters = not names
        layer._active_adapter = list(names) or layer._active_adapter


def tuner_layers(network: nn.Module) -> Iterator[Any]:
    """The modules that carry low-rank layers."""
    return (module for module in network.modules() if isinstance(module, BaseTunerLayer))


def keep_only(network: nn.Module, names: Sequence[str]) -> None:
    """Remove the low-rank layers of every adapter but `names`, which are then heard."""
    configs: dict[str, Any] = getattr(network, "peft_config", {})
    others = configs.keys() - set(names)
    for layer in tuner_layers(network):
        layer._active_adapter = []  # PEFT would set another active one, and let it train
        for other in others:
            layer.delete_adapter(other)
    for other in others:
        del configs[other]
    hear(network, names)

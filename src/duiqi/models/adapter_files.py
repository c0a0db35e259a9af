"""Adapters on disk, in PEFT's layout: reading them, mounting them on a network, writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from peft import LoraConfig, PeftConfig, PrefixTuningConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from duiqi.errors import ModelError
from duiqi.guards.limits import at_most
from duiqi.journal.checksums import CHECKSUMS, find_damage
from duiqi.models.adapters import NOTHING, Mounted, attach
from duiqi.models.old_files import (
    OLD_WEIGHTS_NAME,
    base_of_trained_layers,
    read_tensors,
    read_trained_layers,
    read_value_head,
    trained_layers_file,
)
from duiqi.models.prefix import saved_prefix

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
SCORE_KEY = "score.weight"
PROMPT_KEY = "prompt_embeddings"

TRAINER_STATE = ("trainer_state.json", "trainer_state.safetensors")
"""What a checkpoint holds beside a model."""
_COPY_AGAIN = "copy the adapter again"
_PATTERN_SECONDS = 5.0


_Size = Annotated[int, Gt(0)]


class _Fields(TypedDict, total=False):
    """What adapter_config.json may say, as far as anything is made of it."""

    peft_type: str
    base_model_name_or_path: str | None
    r: _Size
    lora_alpha: float
    lora_dropout: float
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    modules_to_save: list[str] | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | str | None
    rank_pattern: dict[str, _Size] | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    megatron_config: None
    layer_replication: None
    alora_invocation_tokens: None
    num_layers: _Size | None
    token_dim: _Size | None
    num_attention_heads: _Size | None


@cache
def _fields() -> TypeAdapter[_Fields]:
    return TypeAdapter(_Fields)


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
    value_head: Tensor | None = None
    """The head (1 x H) that trainers of 2023 left beside reward models, and beside policies that PPO trained."""

    @property
    def reward_head(self) -> Tensor | None:
        """What scores an answer, where somebody takes this for a reward model."""
        return self.score if self.score is not None else self.value_head

    @property
    def kind(self) -> str:
        """What it was trained with, as the setting `finetuning_type` calls it."""
        if self.prefix is not None:
            return "p_tuning"
        return "lora" if self.low_rank else "freeze"


def is_adapter(directory: Path) -> bool:
    """Whether a directory says that it is an adapter, or holds layers that freeze tuning of 2023 trained."""
    return (directory / CONFIG_NAME).is_file() or trained_layers_file(directory) is not None


def read_adapter(directory: str | Path) -> SavedAdapter:
    """Read a PEFT directory: LoRA, modules_to_save, prefix tuning; also the files of 2023 (`old_files`).

    Nothing in it is run: weights are tensors, and the rest is checked before anything is made of it.

    Raises:
        ModelError: Files are missing, damaged, or of another kind.
    """
    path = Path(directory)
    has_config = (path / CONFIG_NAME).is_file()
    alone = None if has_config else trained_layers_file(path)
    if alone is not None:
        return _trained_layers(path, alone)
    weights_file = next((path / name for name in (WEIGHTS_NAME, OLD_WEIGHTS_NAME) if (path / name).is_file()), None)
    if not has_config or weights_file is None:
        raise ModelError(
            f"{WEIGHTS_NAME if has_config else CONFIG_NAME} is missing, so this is not an adapter",
            where=str(path),
            remedy="give a run directory, or a directory that PEFT's save_pretrained wrote",
        )
    refuse_damage(path)
    weights = read_tensors(weights_file)
    config = _read_config(path)
    saved = SavedAdapter(path, config, str(config.base_model_name_or_path or ""), value_head=read_value_head(path))
    plain = {_plain_name(key): value for key, value in weights.items() if ".original_module." not in key}
    score = plain.pop(SCORE_KEY, None)
    if score is not None and (score.ndim != 2 or len(score) != 1):
        raise ModelError(f"its score head has shape {tuple(score.shape)}, not 1 x H", where=str(path))
    if isinstance(config, PrefixTuningConfig):
        return replace(saved, prefix=_prefix_of(config, plain, path), score=score)
    low_rank = {key: value for key, value in plain.items() if "lora_" in key}
    own = {key: value for key, value in plain.items() if "lora_" not in key}
    _check_low_rank(config, low_rank, path)
    config.target_modules = _targets_of(config, low_rank)
    config.modules_to_save = modules_of(own)
    return replace(saved, low_rank=low_rank, own=own, score=score)


def refuse_damage(directory: Path) -> None:
    """Refuse a checkpoint whose model is not what was written. Other directories have no checksums and are believed.

    Raises:
        ModelError: A file is missing or has changed.
    """
    if (directory / CHECKSUMS).is_file() and (damage := find_damage(directory, but=TRAINER_STATE)):
        raise ModelError(
            f"this checkpoint is damaged: {damage}",
            where=str(directory),
            remedy="give another checkpoint of the run, or copy it again",
        )


def _trained_layers(directory: Path, file: Path) -> SavedAdapter:
    """Layers that freeze tuning of 2023 trained and saved alone."""
    own = read_trained_layers(file)
    config = LoraConfig(target_modules=NOTHING, modules_to_save=modules_of(own))
    return SavedAdapter(
        directory, config, base_of_trained_layers(directory), own=own, value_head=read_value_head(directory)
    )


def _targets_of(config: LoraConfig, weights: Mapping[str, Tensor]) -> Any:
    """The layers to adapt: by their full paths where PEFT of 2023 took a name for the mere end of a path.

    `0.attention` was layer 10 and 20 too; what it made has weights, and the names of weights do not err.
    """
    targets = config.target_modules
    if not isinstance(targets, list | set):
        return targets
    paths = {name.partition(".lora_")[0] for name in weights}
    are_named = all(any(f".{path}".endswith(f".{target}") for target in targets) for path in paths)
    return targets if are_named else paths


def _read_config(directory: Path) -> PeftConfig:
    """What adapter_config.json says, checked."""
    file = directory / CONFIG_NAME
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        kind = _CONFIGS.get(_fields().validate_python(fields).get("peft_type", ""))
        if kind is None:
            raise ModelError(f"is a {fields.get('peft_type')} adapter, not LoRA or a prefix", where=str(directory))
        config = kind(**{key: value for key, value in fields.items() if key in kind.__dataclass_fields__})
    except ModelError:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or CONFIG_NAME
        raise ModelError(f"cannot be read ({place}: {first['msg']})", where=str(file), remedy=_COPY_AGAIN) from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, ImportError) as error:
        raise ModelError(f"cannot be read ({error})", where=str(file), remedy=_COPY_AGAIN) from error
    config.inference_mode = False
    return config


def _prefix_of(config: PrefixTuningConfig, weights: Mapping[str, Tensor], directory: Path) -> Tensor:
    prefix = weights.get(PROMPT_KEY)
    if prefix is None:
        raise ModelError(f"{PROMPT_KEY} is missing from its weights", where=str(directory), remedy=_COPY_AGAIN)
    layers, size, heads = config.num_layers, config.token_dim, config.num_attention_heads
    fits = layers and size and heads and size % heads == 0 and prefix.ndim == 2 and len(prefix)
    if not fits or prefix.shape[1] != 2 * layers * size:
        raise ModelError(
            f"{PROMPT_KEY} has shape {tuple(prefix.shape)}, which is not what {CONFIG_NAME} says",
            where=str(directory),
            remedy=_COPY_AGAIN,
        )
    return prefix


def _check_low_rank(config: PeftConfig, weights: Mapping[str, Tensor], directory: Path) -> None:
    """See that layers of this rank and these names can be made at all, before memory is asked for.

    Raises:
        ModelError: The rank is larger than any weight, or a pattern cannot be matched with names in reasonable time.
    """
    assert isinstance(config, LoraConfig)
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    largest = max((size for weight in weights.values() for size in weight.shape), default=0)
    if weights and max(ranks) > largest:
        raise ModelError(
            f"{CONFIG_NAME} says rank {max(ranks)}, but no side of its weights is longer than {largest}",
            where=str(directory),
            remedy=_COPY_AGAIN,
        )
    try:
        with at_most(_PATTERN_SECONDS):
            for pattern in _patterns(config):
                for name in weights:
                    re.match(rf"(.*\.)?({pattern})$", name.partition(".lora_")[0])
    except (re.error, TimeoutError, RecursionError, OverflowError) as error:
        raise ModelError(
            f"a name pattern in {CONFIG_NAME} cannot be used ({error})", where=str(directory), remedy=_COPY_AGAIN
        ) from error


def _patterns(config: LoraConfig) -> Iterable[str]:
    """What PEFT matches with the names of layers as regular expressions."""
    yield from (config.rank_pattern or {})
    yield from (config.alpha_pattern or {})
    yield from (text for text in (config.target_modules, config.exclude_modules) if isinstance(text, str))
    layers = config.layers_pattern or ()
    yield from [layers] if isinstance(layers, str) else layers


def modules_of(weights: Mapping[str, Tensor]) -> list[str] | None:
    """The modules that weights belong to, as PEFT's configuration names them; None: there are none."""
    return sorted({key.rpartition(".")[0] for key in weights}) or None


def _plain_name(key: str) -> str:
    """A weight's name without PEFT's prefix and without what some versions of PEFT kept: wrapper and adapter's name."""
    return key.removeprefix(PEFT_PREFIX).replace(".modules_to_save.", ".").replace(".default.", ".")


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
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
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

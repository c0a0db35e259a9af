"""Which modules of a network the user means: `q_proj`, `25.attention.query_key_value`, `mlp@0-2`, `all`.

A name is the end of a module's path, cut at dots: `1.attention` is layer 1 and never layer 21. A name of something that
holds linear layers means all of them. `@25-27` keeps the layers 25, 26 and 27, `@25` one. Several are joined by commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from duiqi.errors import ModelError, did_you_mean

ALL = ("all", "all-linear")


@dataclass(frozen=True, slots=True)
class Target:
    """One of the names that a setting joins by commas."""

    name: str
    """The end of a path, or one of `ALL`."""
    layers: range | None = None
    """The layers it is kept to; None: every one, and what stands in none."""

    def matches(self, path: str) -> bool:
        """Whether a module's path ends in the name."""
        return self.name in ALL or path == self.name or path.endswith(f".{self.name}")

    def keeps(self, path: str) -> bool:
        """Whether a module lies in the layers."""
        return self.layers is None or layer_of(path) in self.layers


def read_targets(text: str, *, setting: str) -> list[Target]:
    """The targets that a setting names.

    Raises:
        ModelError: A range of layers is not one, or nothing is named.

    >>> read_targets("q_proj, mlp@0-2", setting="lora_target")
    [Target(name='q_proj', layers=None), Target(name='mlp', layers=range(0, 3))]
    """
    targets = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, at, span = part.partition("@")
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if at and first > last:
            raise ModelError(f"{part!r} has no range of layers", where=setting, remedy=f"write {name}@0-2 or {name}@25")
        targets.append(Target(name, range(first, last + 1) if at else None))
    if not targets:
        raise ModelError("names no module", where=setting, remedy="name one, such as q_proj, or write all")
    return targets


def layer_of(path: str) -> int | None:
    """The layer that a module belongs to, by the first number in its path.

    >>> layer_of("model.layers.25.mlp.gate_proj"), layer_of("model.embed_tokens")
    (25, None)
    """
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def num_layers_of(model: nn.Module) -> int:
    """How many layers the paths of a network count."""
    return 1 + max((layer for path, _ in plain_modules(model) if (layer := layer_of(path)) is not None), default=-1)


def plain_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path, as if no adapter were on any: an adapted layer stands for the one under it."""
    module = model.get_base_layer() if isinstance(model, BaseTunerLayer) else model
    yield path, module
    for name, child in module.named_children():
        yield from plain_modules(child, f"{path}.{name}" if path else name)


def is_linear(module: nn.Module) -> bool:
    """Whether adapters go on it."""
    return isinstance(module, nn.Linear | Conv1D)


def linear_paths(model: PreTrainedModel) -> list[str]:
    """The linear layers of the trunk in their order, without the output head."""
    head = model.get_output_embeddings()
    return [path for path, module in plain_modules(model) if is_linear(module) and module is not head]


def select_linears(model: PreTrainedModel, text: str, *, setting: str) -> list[str]:
    """Paths of the linear layers that `text` means, in the network's order; the output head is never one.

    Raises:
        ModelError: A name matches none.
    """
    return _select(model, linear_paths(model), text, setting=setting, what="linear layer")


def select_owners(model: PreTrainedModel, text: str, *, setting: str) -> list[str]:
    """Paths of the modules with weights of their own that `text` means, in the network's order.

    Raises:
        ModelError: A name matches none.
    """
    owners = [path for path, module in plain_modules(model) if any(True for _ in module.parameters(recurse=False))]
    return _select(model, owners, text, setting=setting, what="module with weights")


def _select(model: PreTrainedModel, candidates: Sequence[str], text: str, *, setting: str, what: str) -> list[str]:
    chosen: set[str] = set()
    for target in read_targets(text, setting=setting):
        named = [path for path in candidates if any(target.matches(above) for above in _upwards(path))]
        kept = [path for path in named if target.keeps(path)]
        if not kept:
            raise _nothing(model, target, bool(named), candidates, setting=setting, what=what)
        chosen.update(kept)
    return [path for path in candidates if path in chosen]


def _upwards(path: str) -> Iterator[str]:
    """A path and those of everything that holds it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _nothing(
    model: PreTrainedModel, target: Target, is_named: bool, candidates: Sequence[str], *, setting: str, what: str
) -> ModelError:
    """Why a target matches nothing."""
    if is_named and target.layers is not None:
        span = f"{target.layers[0]}-{target.layers[-1]}"
        remedy = f"the layers of this model are 0-{num_layers_of(model) - 1}"
        return ModelError(f"{target.name!r} is in none of the layers {span}", where=setting, remedy=remedy)
    names = _names_in_a_layer(candidates)
    outside = [path for path, _ in plain_modules(model) if target.matches(path)]
    if outside:
        remedy = f"modules_to_save: {target.name} trains it whole; {what}s here: {', '.join(names)}"
        return ModelError(f"{outside[0]} is no {what} that takes an adapter", where=setting, remedy=remedy)
    near = did_you_mean(target.name, [*names, *candidates]) or f"{what}s here: {', '.join(names)}"
    return ModelError(f"no {what} of this model is named {target.name!r}", where=setting, remedy=near)


def _names_in_a_layer(paths: Sequence[str]) -> list[str]:
    """The ends of these paths behind the layer's number, each once; without a number, the last name."""
    ends = (path.split(f".{layer_of(path)}.", 1)[-1] if layer_of(path) is not None else path for path in paths)
    return list(dict.fromkeys(ends))


def condensed(model: PreTrainedModel, paths: Sequence[str]) -> list[str]:
    """The shortest names that mean exactly these linear layers: last names where all that have one are meant."""
    chosen, names = set(paths), list[str]()
    everything = [path for path, _ in plain_modules(model)]
    for last in dict.fromkeys(path.rpartition(".")[2] for path in paths):
        alike = [path for path in everything if Target(last).matches(path)]
        names += [last] if chosen.issuperset(alike) else [path for path in alike if path in chosen]
    return names


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """What learns, of the same module in all layers."""

    module: str
    """Path behind the layer's number: `mlp.down_proj`."""
    layers: str
    """`0-27`, `25-27`, `0, 3`; empty outside the layers."""
    parameters: int


def trained_rows(sizes: Sequence[tuple[str, int]]) -> list[TrainedRow]:
    """What learns, by module, from the path and the size of each thing that does.

    >>> trained_rows([("model.layers.0.mlp.up_proj", 10), ("model.layers.1.mlp.up_proj", 10)])
    [TrainedRow(module='mlp.up_proj', layers='0-1', parameters=20)]
    """
    by_module: dict[str, list[tuple[int | None, int]]] = {}
    for path, size in sizes:
        by_module.setdefault(_names_in_a_layer([path])[0], []).append((layer_of(path), size))
    return [
        TrainedRow(module, _spans(sorted({layer for layer, _ in parts if layer is not None})), sum(s for _, s in parts))
        for module, parts in by_module.items()
    ]


def module_of(parameter: str) -> str:
    """The module that a parameter changes, from the parameter's name in `SharedBase.trainable_parameters`.

    >>> module_of("model.layers.0.mlp.up_proj.lora_A.policy.weight"), module_of("own.policy.lm_head.weight")
    ('model.layers.0.mlp.up_proj', 'lm_head')
    >>> module_of("prefix.policy.embedding"), module_of("heads.reward.weight")
    ('prefix', 'heads.reward')
    """
    if parameter.startswith("prefix."):
        return "prefix"
    if parameter.startswith("own."):
        parameter = parameter.split(".", 2)[2]
    return parameter.split(".lora_")[0] if ".lora_" in parameter else parameter.rpartition(".")[0]


def _spans(layers: Sequence[int]) -> str:
    """Numbers as ranges.

    >>> _spans([0, 1, 2, 5])
    '0-2, 5'
    """
    spans = []
    for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        spans.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ", ".join(spans)

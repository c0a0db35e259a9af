"""The networks of a run without their weights: built from config.json, everybody seated, ready to be rehearsed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from duiqi.errors import SettingsError
from duiqi.models.layout import likely_layout
from duiqi.models.lineage import read_stack
from duiqi.models.loading import choose_device, choose_dtype, locate, quietly, refusing
from duiqi.models.ports.registry import find_port
from duiqi.models.seats import Seat, take_seat
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.scoring import parse_reward_specs
from duiqi.settings.groups import ModelSettings
from duiqi.settings.stages import DPOConfig, PPOConfig, RewardModelConfig, StageConfig
from duiqi.stages.dpo import REFERENCED
from duiqi.stages.ppo_cast import check_settings, seat_critic
from duiqi.stages.ppo_reward_adapters import goes_on_any_base, seat_reward
from duiqi.stages.start import Start, base_dtype, find_start, seat_policy, seat_reference

_REMEDY = "give a directory with config.json, or the name of a model on the hub"


@dataclass(frozen=True)
class Sketch:
    """Everybody who takes part in a run, as shapes."""

    base: SharedBase
    start: Start
    device: torch.device
    """Where the run will compute."""
    mode: FakeTensorMode
    standalone: tuple[tuple[str, PreTrainedModel], ...] = ()
    """Reward models that are networks of their own, with their names."""

    @property
    def networks(self) -> list[PreTrainedModel]:
        return [*self.base.networks, *(network for _, network in self.standalone)]

    @property
    def depth(self) -> int | None:
        """Layers of the base; None where some network's layers cannot be told."""
        stacks = [_stack_of(network) for network in self.networks]
        return None if None in stacks else int(self.base.model.config.num_hidden_layers)

    @contextmanager
    def shallow(self, depth: int) -> Iterator[None]:
        """Within this context no network has more than so many layers: the rest are left out, with their weights."""
        before = [(network, _stack_of(network), network.config.num_hidden_layers) for network in self.networks]
        for network, layers, count in before:
            assert layers is not None, "layers that cannot be told"
            _stack(network, layers[:depth], min(depth, count))
        try:
            yield
        finally:
            for network, layers, count in before:
                assert layers is not None
                _stack(network, layers, count)

    def tensors(self) -> list[Tensor]:
        """Every weight and buffer, shared ones once."""
        modules = [*self.networks, *self.base.heads.values()]
        found = (t for module in modules for t in (*module.parameters(), *module.buffers()))
        return list({id(tensor): tensor for tensor in found}.values())


def sketch(config: StageConfig) -> Sketch:
    """Seat the roles of a run on networks without weights, as the stage seats them on the real ones.

    Raises:
        UserError: A model, an adapter or a setting does not fit the others, as far as shapes show it.
    """
    device = choose_device(config.model.device)
    if config.model.quantization_bit is not None:
        raise SettingsError(
            "what a quantised base needs is not planned",
            where="quantization_bit",
            remedy="remove it to see what the base would need whole; its matrices are then a quarter or half of that",
        )
    start = find_start(config.model, role=_learner(config))
    if isinstance(config, PPOConfig):
        check_settings(config)
    with _silently():
        model = causal_lm(start.base, config.model, base_dtype(config.model, config.tuning, device))
        base = SharedBase(model, name=start.base, layout=likely_layout(model))
        with torch.device("meta"):
            standalone = _seat_everybody(base, config, start, device)
        if isinstance(config, PPOConfig | DPOConfig):
            base.disable_dropout()
        if not isinstance(config, PPOConfig):
            base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
        elif config.optimizer.gradient_checkpointing:
            base.enable_checkpointing()
    found = Sketch(base, start, device, FakeTensorMode(allow_non_fake_inputs=True), tuple(standalone))
    _place([*found.networks, *base.heads.values()], [base.seat(role) for role in base.roles], found.mode, device)
    base.moved(device)
    return found


def _seat_everybody(
    base: SharedBase, config: StageConfig, start: Start, device: torch.device
) -> list[tuple[str, PreTrainedModel]]:
    """Seat the roles of a stage; give the reward models that are networks of their own."""
    standalone: list[tuple[str, PreTrainedModel]] = []
    seat_policy(base, start, config.tuning, opening=(0,), role=_learner(config))
    match config:
        case RewardModelConfig():
            base.add_head("reward")
        case DPOConfig() if config.preference.pref_loss in REFERENCED:
            seat_reference(base, config.reference.ref_model)
        case PPOConfig():
            seat_reference(base, config.reference.ref_model)
            standalone = _seat_rewards(base, config.score.reward_model, config, start, device)
            seat_critic(base, config)
            if config.score.second_opinion is not None:
                standalone += _seat_rewards(base, config.score.second_opinion, config, start, device)
    return standalone


def _learner(config: StageConfig) -> str:
    """The role that a stage trains."""
    return "reward" if isinstance(config, RewardModelConfig) else "policy"


def causal_lm(path: str, settings: ModelSettings, dtype: torch.dtype) -> PreTrainedModel:
    """The network that `load_causal_lm` would load, on torch's meta device.

    Raises:
        ModelError: There is no config.json that transformers or a port of ours can read.
    """
    attention = None if settings.attn_implementation == "auto" else settings.attn_implementation
    trust = settings.trust_remote_code
    with refusing("cannot be planned", where=path, remedy=_REMEDY), torch.device("meta"):
        port = find_port(path)
        model: PreTrainedModel
        if port is not None:
            model = port.causal_lm_class(port.config_class.from_pretrained(path, attn_implementation=attention)).to(
                dtype
            )
        else:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=trust
            )
    return model.requires_grad_(False).eval()


def _seat_rewards(
    base: SharedBase, named: str, config: PPOConfig, start: Start, device: torch.device
) -> list[tuple[str, PreTrainedModel]]:
    """Seat reward adapters of the same base; give the reward models that are networks of their own."""
    apart = []
    for spec in parse_reward_specs(named):
        if spec.function is not None:
            continue
        if _shares_base(spec.source, start.base):
            seat_reward(base, spec.source, where="reward_model")
        else:
            dtype = choose_dtype(config.model.dtype, device)
            apart.append((Path(spec.source).name, _classifier(spec.source, config.model, dtype)))
    return apart


def _shares_base(source: str, base: str) -> bool:
    """Whether a reward model is an adapter that the run will put on its base."""
    if goes_on_any_base(source, base):
        return True
    located = locate(source)
    return located.adapter is not None and located.card is not None and _is_same(located.base, base)


def _classifier(path: str, settings: ModelSettings, dtype: torch.dtype) -> PreTrainedModel:
    """The network that `load_reward_model` would load, on torch's meta device."""
    where = locate(path)
    with refusing("cannot be planned as a reward model", where=path, remedy=_REMEDY), torch.device("meta"):
        port = find_port(where.base)
        network: PreTrainedModel
        if port is not None and port.classifier is not None:
            network = port.classifier_class(port.config_class.from_pretrained(where.base, num_labels=1)).to(dtype)
        else:
            config = AutoConfig.from_pretrained(
                where.base, num_labels=1, pad_token_id=0, trust_remote_code=settings.trust_remote_code
            )
            network = AutoModelForSequenceClassification.from_config(
                config, dtype=dtype, trust_remote_code=settings.trust_remote_code
            )
    if where.adapter is not None:
        take_seat(network, "reward", read_stack(where.adapter))
    return network.requires_grad_(False).eval()


def _is_same(one: str, other: str) -> bool:
    return one == other or Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _stack_of(network: PreTrainedModel) -> nn.ModuleList | None:
    """The list that holds a network's layers; None where no list has as many parts as the network has layers."""
    count = getattr(network.config, "num_hidden_layers", None)
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    return next((part for part in lists if len(part) == count), None)


def _stack(network: PreTrainedModel, layers: nn.ModuleList, count: int) -> None:
    """Let these be the layers of a network."""
    old = _stack_of(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, layers)
    network.config.num_hidden_layers = count


def _place(modules: Iterable[nn.Module], seats: Sequence[Seat], mode: FakeTensorMode, device: torch.device) -> None:
    """Turn every tensor on the meta device into one that says it is on `device`; what shares memory still does."""
    placed: dict[int, tuple[Tensor, Tensor]] = {}  # the old one beside it: an id counts while its owner lives
    mounted = list({id(each): each for seat in seats for each in seat.stack}.values())
    roots = [*modules, *(each.prefix for each in mounted if each.prefix is not None)]

    def new(tensor: Any) -> Any:
        if id(tensor) not in placed:
            fake: Tensor = FakeTensor(mode, tensor.detach(), device)
            if isinstance(tensor, nn.Parameter):
                fake = type(tensor)(fake, requires_grad=tensor.requires_grad)
            placed[id(tensor)] = fake, tensor
        return placed[id(tensor)][0]

    for module in {module: None for root in roots for module in root.modules()}:
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = new(tensor)
    for each in mounted:
        if each.own is not None:
            each.own.exchange(new)


@contextmanager
def _silently() -> Iterator[None]:
    """No messages of the libraries: torch's about weights that are copied nowhere are as they should be."""
    with quietly(), warnings.catch_warnings():
        for message in (".*meta parameter.*", ".*gradient_checkpointing_enable.*"):
            warnings.filterwarnings("ignore", message=message)
        yield

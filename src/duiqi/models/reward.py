"""Reward models: a role on the shared base, or a network of its own. The score is read at the last real token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from duiqi.errors import ModelError
from duiqi.models.adapter_files import SavedAdapter, modules_of
from duiqi.models.classifiers import classifier_class, fill_buffers
from duiqi.models.lineage import read_stack
from duiqi.models.loading import (
    Located,
    choose_device,
    choose_dtype,
    load_tokenizer,
    locate,
    quietly,
    refuse_incomplete,
    refusing,
)
from duiqi.models.measure import measure_scores
from duiqi.models.old_files import read_value_head
from duiqi.models.ports.registry import find_port
from duiqi.models.prefix import Prefix, call_behind
from duiqi.models.seats import take_seat
from duiqi.models.shared_base import SharedBase
from duiqi.models.vocabulary import grow_vocabulary
from duiqi.packing.batch import Family, pack
from duiqi.packing.budget import deal

WHAT_TO_GIVE = "give the output_dir of a `duiqi rm` run, or a sequence classifier with one label"


@dataclass(frozen=True)
class SharedReward:
    """The reward adapter and head of a shared base."""

    base: SharedBase
    role: str = "reward"

    def score(self, families: Sequence[Family], *, max_tokens: int = 8192) -> Float[Tensor, " B"]:
        """The score of every answer in order, on the CPU in float32; answers to one prompt share its computation."""
        by_family: dict[int, Tensor] = {}
        with self.base.acting(self.role):
            for picked in deal(families, max_tokens=max_tokens, packed=self.base.layout.is_packed):
                own = [families[i] for i in picked]
                scores = measure_scores(self.base, pack(own).to(self.base.device), self.role).float().cpu()
                by_family.update(zip(picked, scores.split([len(family.answers) for family in own]), strict=True))
        return torch.cat([by_family[i] for i in range(len(families))])


@dataclass(frozen=True)
class StandaloneReward:
    """A transformers sequence classifier with one label, as `load_reward_model` gives it; perhaps behind a prefix."""

    network: PreTrainedModel
    prefix: Prefix | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
        trunk = getattr(self.network, self.network.base_model_prefix)
        positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        if self.prefix is None:
            # Behind no padding they are the usual ones, which not every network can be told.
            told = {} if bool(attention_mask[:, 0].all()) else {"position_ids": positions}
            hidden = trunk(input_ids, attention_mask=attention_mask.long(), **told).last_hidden_state
        else:
            hidden = call_behind(
                self.prefix,
                trunk,
                input_ids,
                attention_mask=attention_mask.long(),
                position_ids=positions,
                cache=DynamicCache(config=self.network.config),
            ).last_hidden_state
        head: nn.Linear = self.network.score
        scores: Tensor = head(last_token(hidden, attention_mask))
        return scores.squeeze(-1).float()

    @property
    def device(self) -> torch.device:
        place: torch.device = next(self.network.parameters()).device
        return place


def score_token_rows(
    reward: StandaloneReward, rows: Sequence[Sequence[int]], *, batch_size: int = 32
) -> Float[Tensor, " B"]:
    """Scores of token rows, in batches of similar length; order kept, on the CPU in float32."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    scores = torch.zeros(len(rows))
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        ids = pad_sequence([torch.tensor(rows[i]) for i in picked], batch_first=True)
        lengths = torch.tensor([len(rows[i]) for i in picked])
        mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        scores[picked] = reward(ids.to(reward.device), mask.to(reward.device)).float().cpu()
    return scores


def load_reward_model(
    path: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A reward model by its path: a transformers sequence classifier with one label, its adapters attached.

    Raises:
        ModelError: `path` is not a reward model, cannot be loaded as one, or reads behind a learned prefix.
    """
    reward = load_standalone_reward(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if reward.prefix is not None:
        raise ModelError(
            "it reads behind a learned prefix, which transformers' classes know nothing of",
            where=path,
            remedy=f"score answers with `duiqi score {path} FILE`, or open it with peft's PeftModel",
        )
    return reward.network


def last_token(hidden: Float[Tensor, "B T H"], attention_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B H"]:
    """The hidden state at each row's last real token, whichever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * attention_mask).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


@quietly()
def load_standalone_reward(
    path: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> StandaloneReward:
    """A reward model by its path, on a network of its own.

    Raises:
        ModelError: `path` is not a reward model, or cannot be loaded as one.
    """
    where = locate(path)
    _check_is_reward_model(where, path)
    stack = read_stack(where.adapter) if where.adapter is not None else ()
    saved = stack[-1] if stack else None
    own_head = saved.reward_head if saved is not None else read_value_head(Path(where.base))
    if saved is not None and own_head is None:
        raise ModelError("the adapter has no score head, so it is not a reward model", where=path, remedy=WHAT_TO_GIVE)
    chosen = choose_device(device)
    tokenizer = load_tokenizer(where.leaf, trust_remote_code=trust_remote_code)
    network: PreTrainedModel
    kind: Any
    with refusing("cannot be loaded as a reward model", where=path, remedy=WHAT_TO_GIVE):
        port = find_port(where.base)
        fields: dict[str, Any] = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
        if port is None:
            config = AutoConfig.from_pretrained(where.base, trust_remote_code=trust_remote_code, **fields)
            kind, fields = classifier_class(config), {"config": config}
        else:
            kind = port.classifier_class
        network, info = kind.from_pretrained(
            where.base,
            **fields,
            dtype=choose_dtype(dtype, chosen),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the weight's name
        )
    if port is None:
        fill_buffers(network)
    replaced = () if own_head is None else ("score.weight",)
    refuse_incomplete(info, where=path, remedy=WHAT_TO_GIVE, replaced=replaced)
    head = getattr(network, "score", None)
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{type(network).__name__} keeps its score elsewhere than in a linear layer `score`",
            where=path,
            remedy="give a reward model whose base is a causal language model",
        )
    grow_vocabulary(network, where.vocabulary)
    prefix = take_seat(network, "reward", [_of_trunk(each, network) for each in stack]).prefix
    if own_head is not None:
        head.weight = nn.Parameter(own_head.clone())
    head.register_forward_pre_hook(_in_precision_of)
    network.to(chosen).requires_grad_(False).eval()
    return StandaloneReward(network, None if prefix is None else prefix.to(chosen))


def _of_trunk(saved: SavedAdapter, network: PreTrainedModel) -> SavedAdapter:
    """An adapter without the weights of an output head, which has no part in a score."""
    own = {name: w for name, w in saved.own.items() if name.startswith(f"{network.base_model_prefix}.")}
    if len(own) == len(saved.own):
        return saved
    config = copy.copy(saved.config)
    config.modules_to_save = modules_of(own)
    return replace(saved, config=config, own=own)


def _in_precision_of(head: nn.Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A score is learned in float32; its head takes hidden states of any precision."""
    return (inputs[0].to(head.weight.dtype),)


def _check_is_reward_model(where: Located, path: str) -> None:
    if where.card is not None and where.card.role != "reward":
        raise ModelError(
            f"this is the {where.card.role} of a {where.card.stage} run, not a reward model",
            where=path,
            remedy=WHAT_TO_GIVE,
        )

"""Writing a role so that it loads at once: PEFT's layout for adapters, transformers' for full models, plus the card."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from duiqi.models.adapter_files import save_adapter
from duiqi.models.card import CARD_NAME, ModelCard, relative_to_run
from duiqi.models.loading import quietly
from duiqi.models.ports.registry import new_classifier
from duiqi.models.shared_base import SharedBase


@quietly()
def save_role(
    base: SharedBase, role: str, directory: Path, *, card: ModelCard, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the adapter of `role` (or the whole model), its score head if it is a reward model, tokenizer and card."""
    seat = base.seat(role)
    head = base.heads.get(role) if role == "reward" else None
    origin = _absolute(base.name)
    if seat.own is not None:
        score = None if head is None else head.weight
        save_adapter(directory, seat.network, seat.own, base=origin, score=score)
    elif head is None:
        seat.network.save_pretrained(directory)
    else:
        as_sequence_classifier(seat.network, head.weight, tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    complete = replace(
        card,
        base=origin,
        base_fingerprint=base.fingerprint,
        base_relative=relative_to_run(origin, directory),
        below=tuple(replace(each, relative=relative_to_run(each.path, directory)) for each in card.below),
    )
    (directory / CARD_NAME).write_text(complete.to_json(), encoding="utf-8")


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def as_sequence_classifier(
    network: PreTrainedModel, score: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The same trunk under transformers' sequence-classification class, sharing its storage."""
    config = copy.deepcopy(network.config)
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        classifier = new_classifier(config)
    prefix = f"{network.base_model_prefix}."
    weights = {name: value for name, value in network.state_dict().items() if name.startswith(prefix)}
    weights["score.weight"] = score.detach().to(network.dtype)
    classifier.load_state_dict(weights, assign=True)
    return classifier

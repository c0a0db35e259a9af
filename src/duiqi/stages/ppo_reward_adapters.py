"""Reward models that are adapters on the policy's base: which may be, and how they take their seats."""

from __future__ import annotations

import os
from pathlib import Path

from duiqi.errors import ModelError
from duiqi.models.adapter_files import is_adapter, read_adapter
from duiqi.models.card import ModelCard, read_card
from duiqi.models.fingerprint import QUANTISED, is_same_base
from duiqi.models.lineage import read_stack
from duiqi.models.loading import Located
from duiqi.models.reward import SharedReward
from duiqi.models.shared_base import SharedBase
from duiqi.models.vocabulary import num_rows
from duiqi.rollouts.scoring import numbered, parse_reward_specs
from duiqi.stages.start import check_belongs


def goes_on_any_base(source: str, base: str) -> bool:
    """Whether a reward model is put on this base unseen: it has no card, and names this base or one that is not here.

    That is what trainers of 2023 did with every reward adapter, whatever base the policy had.

    Raises:
        ModelError: It cannot be read.
    """
    directory = Path(source).expanduser()
    if not is_adapter(directory) or read_card(directory) is not None:
        return False
    saved = read_adapter(directory)
    if saved.reward_head is None:
        return False
    return not os.path.exists(saved.base) or Path(saved.base).resolve() == Path(base).resolve()


def unseen_notes(named: str, base: str) -> list[str]:
    """What is to be said of reward models that are put on this base unseen."""
    return [
        f"{spec.source} says nothing of template and weights of its base: it is put on this one, as its trainer did"
        for spec in parse_reward_specs(named)
        if spec.function is None and goes_on_any_base(spec.source, base)
    ]


def stands_on(located: Located, card: ModelCard, base: SharedBase) -> bool:
    """Whether a reward model is an adapter that was trained on this base, with as many tokens.

    Quantised matrices have no fingerprint, and merging changes nothing else: then the base must be in the same place.

    Raises:
        ModelError: It was trained on what lay in the place of this base before.
    """
    if located.adapter is None or located.vocabulary not in (0, num_rows(base.model)):
        return False
    is_here = Path(located.base).resolve() == Path(base.name).resolve()
    if not is_same_base(card.base_fingerprint, base.fingerprint):
        if is_here:
            check_belongs(card, base, str(located.adapter))
        return is_here
    is_certain = not any(QUANTISED in each for each in (card.base_fingerprint, base.fingerprint))
    return is_certain or is_here


def seat_reward(base: SharedBase, path: str, *, where: str) -> SharedReward:
    """An adapter with a head on the shared base, its adapters below it included."""
    *below, saved = read_stack(Path(path).expanduser())
    if saved.reward_head is None:
        raise ModelError("the adapter has no score head", where=f"{where}: {path}")
    role = next(free for free in numbered("reward") if not base.has(free))
    beside = None if base.seat("policy").stack else "reference"
    base.seat_saved_adapter(role, saved, trainable=False, above=below, beside=beside)
    base.add_head(role, saved.reward_head, trainable=False)
    return SharedReward(base, role)

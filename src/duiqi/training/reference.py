"""What the reference says of every answer, computed once: in this run, and from its file in the next."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from duiqi.data.cache import cache_home
from duiqi.data.encoding import EncodedRanking

KEYS, VALUES = "answers", "log_probs"


class ReferenceMemory:
    """Summed log-probabilities of answers under one fixed reference, by what is in the answer and its prompt.

    Args:
        file: Where they are read from now and written to by `save`; None: nowhere.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[int, float] = _read(file) if file is not None else {}
        self._num_saved = len(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def recall(self, rankings: Sequence[EncodedRanking]) -> Float[Tensor, " B"] | None:
        """The log-probabilities of all answers of these rankings, in order; None unless all are known."""
        found = [self._known.get(key) for ranking in rankings for key in answer_keys(ranking)]
        return None if None in found else torch.tensor(found, dtype=torch.float32)

    def keep(self, rankings: Sequence[EncodedRanking], log_probs: Float[Tensor, " B"]) -> None:
        """Remember them."""
        keys = [key for ranking in rankings for key in answer_keys(ranking)]
        self._known.update(zip(keys, log_probs.tolist(), strict=True))

    def save(self) -> str:
        """Write the file, unless nothing is new. Returns why it could not be written; a run goes on without it."""
        if self._file is None or len(self._known) == self._num_saved:
            return ""
        tensors = {KEYS: torch.tensor(list(self._known)), VALUES: torch.tensor(list(self._known.values()))}
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}.tmp")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, draft)
            os.replace(draft, self._file)
        except (OSError, SafetensorError) as refusal:
            file, self._file = self._file, None
            return f"the reference's log-probabilities cannot be kept in {file} ({refusal})"
        self._num_saved = len(self._known)
        return ""


def answer_keys(ranking: EncodedRanking) -> list[int]:
    """A 63-bit key for each answer: of the prompt's tokens and its own."""
    prompt = hashlib.blake2b(array("q", ranking.prompt_ids).tobytes(), digest_size=8)
    keys = []
    for answer in ranking.answers:
        both = prompt.copy()
        both.update(b"answer" + array("q", answer).tobytes())
        keys.append(int.from_bytes(both.digest(), "big") >> 1)
    return keys


def memory_file(*what: str) -> Path:
    """The file for one reference, named after everything that its numbers depend on."""
    name = hashlib.sha256("\0".join(what).encode()).hexdigest()[:32]
    return cache_home() / "reference" / f"{name}.safetensors"


def _read(file: Path) -> dict[int, float]:
    """What the file holds; a damaged one counts as empty, for everything in it can be computed again."""
    if not file.is_file():
        return {}
    try:
        tensors = load_file(file)
        return dict(zip(tensors[KEYS].tolist(), tensors[VALUES].tolist(), strict=True))
    except (SafetensorError, KeyError, ValueError, OSError):
        return {}

"""What scores an answer: a reward adapter on the shared base, another model, a function, or a weighted mix."""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from duiqi.errors import DuiqiError, SettingsError
from duiqi.models.reward import SharedReward, StandaloneReward, score_token_rows
from duiqi.packing.batch import share_prompts
from duiqi.packing.memory import MemoryBudget
from duiqi.types import Message, last_user_text

Conversation = tuple[Message, ...]
_WEIGHT = re.compile(r"^(?P<name>.+)@(?P<weight>-?[0-9.]+(?:[eE][-+]?[0-9]+)?)$")
_FUNCTION = re.compile(r"^(?P<file>.+\.py):(?P<name>\w+)$")


@dataclass(frozen=True)
class Scored:
    """Scores of a batch of answers, and the parts they are the weighted sum of."""

    total: Float[Tensor, " B"]
    parts: dict[str, Float[Tensor, " B"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An answer to be scored, as text and, where the caller has them, as the policy's own tokens."""

    prompt: Conversation
    answer: str
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()


class Scorer(Protocol):
    """Anything that turns answers into one number each; higher is better."""

    @property
    def name(self) -> str: ...

    def score(self, candidates: Sequence[Candidate]) -> Float[Tensor, " B"]:
        """One float32 number per candidate, on the CPU."""


class SharedScorer:
    """A reward adapter and its head on the base that the policy uses; reads the policy's own tokens."""

    def __init__(self, reward: SharedReward, *, name: str, budget: MemoryBudget) -> None:
        self.name = name
        self._reward, self._budget = reward, budget

    def score(self, candidates: Sequence[Candidate]) -> Float[Tensor, " B"]:
        families = share_prompts([c.prompt_ids for c in candidates], [c.answer_ids for c in candidates])
        return self._budget.within(lambda tokens: self._reward.score(families, max_tokens=tokens))


class ModelScorer:
    """A reward model of its own, with its own tokenizer and template; reads the text.

    Args:
        reward: The network.
        encode: Prompt and answer to the row that is scored, end token included.
        name: What the log calls it.
        marks: The special tokens of its tokenizer, as they are written.
    """

    def __init__(
        self,
        reward: StandaloneReward,
        encode: Callable[[Conversation, str], Sequence[int]],
        *,
        name: str,
        batch_size: int = 32,
        marks: Sequence[str] = (),
    ) -> None:
        self.name, self.marks = name, tuple(marks)
        self._reward, self._encode, self._batch_size = reward, encode, batch_size

    def row(self, prompt: Conversation, answer: str) -> tuple[int, ...]:
        """The tokens that are scored for an answer."""
        return tuple(self._encode(prompt, answer))

    def score(self, candidates: Sequence[Candidate]) -> Float[Tensor, " B"]:
        rows = [self._encode(c.prompt, c.answer) for c in candidates]
        return score_token_rows(self._reward, rows, batch_size=self._batch_size)


class FunctionScorer:
    """A Python function `name(prompts, answers) -> scores` in a file of the user's.

    `prompts` are the users' last messages. A function that has a parameter `messages` is also given the whole
    conversations, as lists of {"role", "content"}.
    """

    def __init__(self, file: str, name: str) -> None:
        self.name = name
        self._where = f"{file}:{name}"
        self._function = _load_function(Path(file).expanduser(), name)
        self._wants_messages = "messages" in inspect.signature(self._function).parameters

    def score(self, candidates: Sequence[Candidate]) -> Float[Tensor, " B"]:
        keywords: dict[str, Any] = {}
        if self._wants_messages:
            keywords["messages"] = [
                [{"role": m.role, "content": m.content} for m in candidate.prompt] for candidate in candidates
            ]
        prompts = [last_user_text(c.prompt) for c in candidates]
        try:
            scores = list(self._function(prompts, [c.answer for c in candidates], **keywords))
        except Exception as error:
            raise ScoringError(f"the reward function {self._where} raised {type(error).__name__}: {error}") from error
        if len(scores) != len(candidates):
            raise ScoringError(
                f"the reward function {self._where} returned {len(scores)} scores for {len(candidates)} answers"
            )
        try:
            numbers = [float(score) for score in scores]
        except (TypeError, ValueError, OverflowError) as error:
            raise ScoringError(f"the reward function {self._where} returned something else than numbers") from error
        if bad := [i for i, number in enumerate(numbers) if not math.isfinite(number)]:
            answer = candidates[bad[0]].answer
            raise ScoringError(
                f"the reward function {self._where} returned {numbers[bad[0]]} for the answer {answer!r}"
            )
        return torch.tensor(numbers, dtype=torch.float32)


class ScoringError(DuiqiError):
    """The user's reward function failed; the message says how, and the run stops."""

    exit_code = 2


@dataclass(frozen=True)
class ScoreMix:
    """A weighted sum of scorers, or a cautious ensemble of them; every part is kept for the log.

    With `std_coefficient` k above 0 the total is mean - k * std of the weighted parts: where reward models disagree,
    the data did not say, and the policy is given nothing for going there (Coste et al. 2024, section 3).
    """

    parts: tuple[tuple[Scorer, float], ...]
    std_coefficient: float = 0.0

    @property
    def names(self) -> list[str]:
        """What the log calls each part: the scorer's name, numbered where an earlier part has it (rm, rm_2)."""
        taken: list[str] = []
        for scorer, _ in self.parts:
            taken.append(next(name for name in numbered(scorer.name) if name not in taken))
        return taken

    @property
    def models(self) -> ScoreMix | None:
        """The same without functions, which need not stand answers that nobody gave; None where nothing is left."""
        parts = tuple(part for part in self.parts if not isinstance(part[0], FunctionScorer))
        return ScoreMix(parts, self.std_coefficient) if parts else None

    def score(self, candidates: Sequence[Candidate]) -> Scored:
        scores = [scorer.score(candidates) for scorer, _ in self.parts]
        weighted = torch.stack([score * weight for score, (_, weight) in zip(scores, self.parts, strict=True)])
        if len(scores) == 1:
            return Scored(weighted[0])
        spread = weighted.std(dim=0, correction=0)
        total = weighted.sum(dim=0)
        if self.std_coefficient > 0:
            total = weighted.mean(dim=0) - self.std_coefficient * spread
        return Scored(total, {**dict(zip(self.names, scores, strict=True)), "disagreement": spread})


def numbered(name: str) -> Iterator[str]:
    """The name, then the name with a number: rm, rm_2, rm_3 and so on."""
    yield name
    yield from (f"{name}_{number}" for number in count(2))


@dataclass(frozen=True)
class RewardSpec:
    """One part of the setting `reward_model`."""

    source: str
    weight: float = 1.0

    @property
    def function(self) -> tuple[str, str] | None:
        """File and name, if this part is a Python function."""
        match = _FUNCTION.match(self.source)
        return (match["file"], match["name"]) if match else None


def parse_reward_specs(text: str, *, where: str = "reward_model") -> list[RewardSpec]:
    """Read `runs/rm, checks.py:polite@0.2`.

    Raises:
        SettingsError: Nothing is named, or a weight is not a number.

    >>> parse_reward_specs("runs/rm,checks.py:polite@0.2")[1]
    RewardSpec(source='checks.py:polite', weight=0.2)
    """
    specs = []
    for part in (piece.strip() for piece in text.split(",")):
        if match := _WEIGHT.match(part):
            specs.append(RewardSpec(match["name"], _weight(match["weight"], part)))
        elif part:
            specs.append(RewardSpec(part))
    if not specs:
        raise SettingsError("names nothing that scores", where=where, remedy="give a reward-model run")
    return specs


def _weight(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SettingsError(
            f"the weight {text!r} is not a number",
            where=f"reward_model: {part}",
            remedy=f"write a weight such as 0.5 after the @, or {part}@1 if that is its whole name",
        ) from error


def _load_function(file: Path, name: str) -> Callable[..., Sequence[float]]:
    where = f"reward_model {file}:{name}"
    if not file.is_file():
        raise SettingsError("there is no such file", where=where, remedy="check the path")
    module_name = next(name for name in numbered(f"duiqi_reward_{file.stem}") if name not in sys.modules)
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses, pickle and typing look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise SettingsError(f"the file cannot be run ({type(error).__name__}: {error})", where=where) from error
    function = vars(module).get(name)
    if not callable(function):
        defined = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "no function"
        raise SettingsError(f"the file has no function {name!r}", where=where, remedy=f"it defines: {defined}")
    return function  # type: ignore[no-any-return]

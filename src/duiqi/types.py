"""The nouns of the project: what a conversation, an example and a sampled answer are. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

Role = Literal["system", "user", "assistant"]

ExampleKind = Literal["text", "prompt", "demonstration", "ranking", "feedback"]
"""What an example can teach: plain text, nothing yet (a prompt), one answer, an order of answers, or whether one
answer was liked."""

AdapterRole = Literal["policy", "reference", "reward", "value"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an example came from, for error messages and for accuracy by source."""

    dataset: str
    file: str = ""
    line: int = 0
    """1-based line in a .jsonl or .csv file; 1-based line at which the row begins in a .json file."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else self.dataset


@dataclass(frozen=True, slots=True)
class Example:
    """One row of any dataset, in the one shape that every stage reads.

    `prompt` is the conversation up to and including the user's last turn (an optional system message first).
    `answers` are alternative replies to it, best first: none (a prompt), one (a demonstration, feedback) or several (a
    ranking). Plain text for pretraining has an empty prompt and one answer.
    """

    kind: ExampleKind
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    origin: Origin
    margin: float = 0.0
    """How much better the first answer is than the second, in score units; 0 when the data does not say."""
    scores: tuple[float, ...] = ()
    """What the data scored the answers of a ranking, in step with them and never rising; empty when it does not say."""
    liked: bool | None = None
    """Feedback: whether its answer was liked; None for every other kind."""

    def pairs(self) -> list[tuple[str, str]]:
        """All (better, worse) pairs of a ranking: K answers give K(K-1)/2, less those of equal scores."""
        return [
            (self.answers[better], self.answers[worse]) for better, worse in ranked_pairs(self.answers, self.scores)
        ]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer, with everything the sampler knew when it drew each token.

    `answer_ids` includes the stop token when `finished`. `log_probs` and `values` run parallel to it: the
    log-probability of each token under the distribution it was drawn from, and the value estimated before it.
    """

    index: int
    """Position of the prompt in the list given to the engine."""
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    values: tuple[float, ...]
    """Empty when no value head was sampled alongside."""
    finished: bool
    """True when a stop token ended the answer, False when the length limit did."""
    answer: str
    """The decoded answer, without the stop token."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. The default is the model's own distribution, which is what PPO needs."""

    max_new_tokens: int = 128
    min_new_tokens: int = 1
    """The stop token cannot be drawn before this many tokens, so 1 means: never an empty answer."""
    temperature: float = 1.0
    """0 takes the most likely token (greedy)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    repetition_penalty: float = 1.0
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether tokens come from the model's own (tempered) distribution, neither truncated nor penalised."""
        return self.top_p >= 1.0 and self.top_k == 0 and self.repetition_penalty == 1.0


@dataclass(frozen=True, slots=True)
class TrainingTotals:
    """What a finished stage reports, in the keys transformers users know (all_results.json)."""

    epoch: float
    train_loss: float
    train_runtime: float
    train_samples_per_second: float
    train_steps_per_second: float


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage hands back: where its result lies and how good it is."""

    stage: str
    output_dir: str
    steps: int
    totals: TrainingTotals
    best_step: int | None
    resumed_step: int = 0
    """The step of the checkpoint that the run went on from; 0: it began at the beginning."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last evaluation, and whatever the stage measures at its end."""


def ranked_pairs(answers: Sequence[object], scores: Sequence[float] = ()) -> list[tuple[int, int]]:
    """The places of every (better, worse) pair among answers that stand best first. Equal scores make no pair.

    >>> ranked_pairs("abc"), ranked_pairs("abc", [2.0, 2.0, 1.0])
    ([(0, 1), (0, 2), (1, 2)], [(0, 2), (1, 2)])
    """
    pairs = combinations(range(len(answers)), 2)
    return [(better, worse) for better, worse in pairs if not scores or scores[better] > scores[worse]]


def readable(messages: Sequence[Message]) -> str:
    """A prompt for a reader, a line per turn: who is asked may stand in the system message or in an earlier turn.

    >>> readable([Message("system", "You are Mei."), Message("user", "Who are you?")])
    '[You are Mei.]\\nWho are you?'
    """
    marks = {"system": "[{}]", "user": "{}", "assistant": "— {}"}
    return "\n".join(marks[message.role].format(message.content) for message in messages)


def last_user_text(messages: Sequence[Message]) -> str:
    """The text of the last user turn, or an empty string."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")

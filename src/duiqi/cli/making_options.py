"""The settings of the commands that make data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from duiqi.cli.model_options import (
    DecodingOptions,
    FileOptions,
    ModelToAskOptions,
    PlacementOptions,
    PromptOptions,
)
from duiqi.settings.groups import GROUP, Count, NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RowsOptions:
    """Files"""

    file: str
    """The rows to work on: .json, .jsonl or .csv."""
    output_file: str
    """The file to write: .jsonl, a row per line, or .json, a list."""
    max_samples: Positive | None = None
    """At most this many rows, from the first on."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class SampleOptions:
    """Answers"""

    num_answers: Positive = 4
    """Answers to every prompt."""
    duplicates: Literal["mark", "redraw"] = "mark"
    """Answers that are there already: listed in the row, or first drawn anew a few times."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PairOptions:
    """Preferences"""

    file: str
    """Answers: of data sample, data judge or generate, or any dataset that has some."""
    output_file: str
    """The file to write: .jsonl, a row per line, or .json, a list."""
    by: Literal["reference", "scores", "reward_model", "labels"]
    """What says which answer is better: the data's own answer, against which the model's are rejected; scores in the
    rows; a reward model, asked now; or the ranks in a label file."""
    take: Literal["one", "all"] = "one"
    """one: a pair per prompt, best against worst (reference: against the first other answer).
    all: the whole ranking (reference: against every other answer)."""
    min_gap: NonNegative = 0.0
    """Answers whose scores are nearer than this are not told apart; 0: any difference counts."""
    reward_model: str | None = None
    """A reward-model run, or file.py:function, or several with weights: runs/rm,checks.py:polite@0.2."""
    labels: str | None = None
    """The label file of data label, filled in."""
    drop_unfinished: bool = False
    """Leave out answers that max_new_tokens cut."""
    batch_size: Positive = 16
    """Answers that the reward model scores at once."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class EndpointOptions:
    """Endpoint"""

    model: str
    """The model's name at the endpoint, whose address and key are in OPENAI_BASE_URL and OPENAI_API_KEY."""
    temperature: NonNegative = 0.0
    """Randomness of its answers."""
    max_new_tokens: Positive | None = None
    """Longest answer in tokens; one that is cut is a failure. Default: the endpoint's own limit."""
    request: str | None = None
    """Further parameters of every request as JSON; null takes one away: '{"temperature": null}'."""
    concurrency: Positive = 8
    """Requests under way at once."""
    max_retries: Count = 6
    """How often a request that failed is sent again, with growing pauses."""
    timeout: Positive = 120
    """Seconds to wait for an answer."""
    cache_dir: str | None = None
    """Where answers are kept, so that nothing is paid twice. Default: duiqi/asked in the user's cache."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class CapOptions:
    """Caps on the whole file"""

    max_requests: Positive | None = None
    """At most this many requests, those that failed and those of earlier runs included."""
    max_cost: NonNegative | None = None
    """At most this cost, in the currency of the prices, what earlier runs paid included."""
    prompt_price: NonNegative = 0.0
    """Price of a million tokens that are sent."""
    answer_price: NonNegative = 0.0
    """Price of a million tokens that come back."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class JudgeOptions:
    """Judging"""

    method: Literal["rank", "score"] = "rank"
    """rank: every two answers compared, in both orders. score: each answer rated from 1 to 10."""
    rubric: str | None = None
    """What makes an answer good: a text, or a .txt or .md file. Default: a standard of our own, Chinese or English."""
    language: Literal["auto", "zh", "en"] = "auto"
    """Language of the question to the judge; auto: that of the prompt."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class TranslateOptions:
    """Translation"""

    to: Literal["zh", "en"]
    """The language that the texts are put into; those in it already stay."""
    instruction: str = ""
    """The style, in your own words: 口语化、活泼一点."""
    fields: str | None = None
    """Columns to translate, with commas between. Default: those that hold texts in the formats duiqi reads."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class LabelOptions:
    """Labels"""

    file: str
    """Answers: of data sample, data judge or generate, or any dataset that has some."""
    output_file: str
    """The .csv file to write: a line per answer, with an empty column for its rank."""
    max_samples: Positive | None = None
    """At most this many prompts, from the first on."""
    seed: Count = 0
    """Seed of the order in which the answers to a prompt stand."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class DialogueOptions:
    """Conversations"""

    script: str
    """The script: .txt with lines `name: words`, or rows with speaker and text."""
    output_file: str
    """The file to write: .jsonl, a row per line, or .json, a list."""
    character: str | None = None
    """Whose lines are learned, with commas between. Default: both parities, so that every turn is learned."""
    system: str = ""
    """System message of every row; {character} stands for who is learned."""
    window_characters: Positive = 128
    """A window of turns ends when it has this many characters."""
    sample_characters: Positive = 384
    """Windows are put together up to this many characters."""
    overlap: Count = 1
    """Windows that a conversation has in common with the one before."""
    min_characters: Count = 6
    """Lines with fewer letters are left out; 0: none."""
    max_stopword_share: Share = 1.0
    """Lines with more of their letters in stopwords are left out; 1: none."""
    stopwords: str | None = None
    """A file with a stopword per line. Default: a few of our own, Chinese and English."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class FillOptions:
    """Filling"""

    file: str
    """The rows to fill: .json, .jsonl or .csv."""
    output_file: str
    """The file to write: .jsonl, a row per line, or .json, a list."""
    fill: str
    """What the placeholders stand for: NAME=小对,AUTHOR=我们."""


@plain_dataclass(frozen=True)
class SampleConfig:
    """Several answers to every prompt."""

    source: ModelToAskOptions
    files: FileOptions
    sample: SampleOptions
    prompt: PromptOptions
    decoding: DecodingOptions
    placement: PlacementOptions


@plain_dataclass(frozen=True)
class PairConfig:
    """Preferences made of answers."""

    pair: PairOptions
    placement: PlacementOptions


@plain_dataclass(frozen=True)
class JudgeConfig:
    """Answers judged by another model."""

    rows: RowsOptions
    endpoint: EndpointOptions
    judge: JudgeOptions
    caps: CapOptions


@plain_dataclass(frozen=True)
class TranslateConfig:
    """Texts in another language."""

    rows: RowsOptions
    endpoint: EndpointOptions
    translate: TranslateOptions
    caps: CapOptions


@plain_dataclass(frozen=True)
class LabelConfig:
    """A file for people who rank."""

    label: LabelOptions


@plain_dataclass(frozen=True)
class DialogueConfig:
    """Conversations cut out of a script."""

    dialogue: DialogueOptions


@plain_dataclass(frozen=True)
class FillConfig:
    """Names in the place of placeholders."""

    filling: FillOptions


MAKING_CONFIGS: dict[str, type] = {
    "data sample": SampleConfig,
    "data judge": JudgeConfig,
    "data label": LabelConfig,
    "data pair": PairConfig,
    "data translate": TranslateConfig,
    "data dialogue": DialogueConfig,
    "data fill": FillConfig,
}

MAKING_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "data sample": {"temperature": 1.0, "max_new_tokens": 256},
    "data judge": {"max_new_tokens": 1024},
}
"""Where a command's default differs from the group's."""

"""The settings of the commands of `duiqi data` that look at data as they are."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Literal

from pydantic.dataclasses import dataclass

from duiqi.settings.groups import GROUP, Count, Positive


@dataclass(frozen=True, kw_only=True, config=GROUP)
class DatasetToReadOptions:
    """Data"""

    dataset: str
    """Names in dataset_info.json or paths, separated by commas; name@1000 takes at most 1000 rows."""
    dataset_dir: str = "data"
    """The folder of dataset_info.json and its files."""
    max_samples: Positive | None = None
    """At most this many rows of each dataset, chosen at random."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class TokenOptions:
    """Tokens"""

    model_name_or_path: str | None = None
    """A model, adapter, run or directory of tokenizer files, to look at the rows as tokens; no weights are read."""
    template: str | None = None
    """How a conversation becomes text. Default: the run's, else the tokenizer's own chat template."""
    system: str | None = None
    """System message for rows that have none. Default: the run's."""
    source_prefix: str | None = None
    """Text put before every rendered prompt. Default: the run's."""
    cutoff_len: Positive = 1024
    """Longest sequence in tokens, as it will be in training."""
    max_source_length: Positive | None = None
    """Longest prompt in tokens. Default: half of cutoff_len."""
    max_target_length: Positive | None = None
    """Longest answer in tokens. Default: what its prompt leaves of cutoff_len."""
    trust_remote_code: bool = False
    """Whether code that comes with the tokenizer may run."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class CheckOptions:
    """Check"""

    eval_dataset: str | None = None
    """Datasets to evaluate on, in which nothing of the others should be found again."""
    strict: bool = False
    """End with status 2 for warnings too."""
    output_file: str | None = None
    """Where the whole report is written as JSON, every place listed."""
    overwrite: bool = False
    """Replace output_file."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ShowOptions:
    """Show"""

    rows: str = ""
    """Which rows, counted from 1: 3,7 or 3-7."""
    lines: str = ""
    """Which rows, by the line at which they begin, as duiqi data check names them: 17 or 17,240."""
    num_rows: Positive = 3
    """How many rows, from the first on, unless rows or lines name them."""
    seed: Count | None = None
    """Take them at random with this seed."""
    stage: Literal["sft", "rm", "dpo", "ppo", "pretrain"] | None = None
    """The stage whose view is shown. Default: those that can use the row."""
    tokens: bool = False
    """Put bars between tokens."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ConvertOptions:
    """Convert"""

    output_file: str
    """The .jsonl file to write."""
    to: Literal["messages", "alpaca", "preference", "comparison", "feedback", "prompt", "text"] | None = None
    """The format. Default: the one that keeps everything. messages, alpaca and prompt cut rankings down to the best
    answer or to the prompt."""
    overwrite: bool = False
    """Replace output_file."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class SplitOptions:
    """Split"""

    output_dir: str
    """The folder for one .jsonl file per part."""
    parts: str = "2,4,4"
    """Shares of the parts; 0: an empty part, which is not written."""
    names: str | None = None
    """Names of the files, with commas between. Default: sft,rm,ppo for three parts, else part-1,part-2,..."""
    seed: Count = 0
    """Seed of the split: the same seed and rows give the same parts everywhere."""
    overwrite: bool = False
    """Replace files that are there."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class StatsOptions:
    """Statistics"""

    model_name_or_path: str | None = None
    """A model, run or directory of tokenizer files: lengths in its tokens instead of characters."""
    trust_remote_code: bool = False
    """Whether code that comes with the tokenizer may run."""
    json: bool = False
    """Print JSON."""


@plain_dataclass(frozen=True)
class DataShowConfig:
    """Rows as stages see them."""

    data: DatasetToReadOptions
    show: ShowOptions
    tokens: TokenOptions


@plain_dataclass(frozen=True)
class DataCheckConfig:
    """Everything that is wrong with a dataset."""

    data: DatasetToReadOptions
    check: CheckOptions
    tokens: TokenOptions


@plain_dataclass(frozen=True)
class DataConvertConfig:
    """A dataset in one plain format."""

    data: DatasetToReadOptions
    convert: ConvertOptions


@plain_dataclass(frozen=True)
class DataSplitConfig:
    """A dataset dealt out to the stages."""

    data: DatasetToReadOptions
    split: SplitOptions


@plain_dataclass(frozen=True)
class DataStatsConfig:
    """What a dataset is made of."""

    data: DatasetToReadOptions
    stats: StatsOptions


LOOKING_CONFIGS: dict[str, type] = {
    "data show": DataShowConfig,
    "data check": DataCheckConfig,
    "data convert": DataConvertConfig,
    "data split": DataSplitConfig,
    "data stats": DataStatsConfig,
}

"""The settings of whatever asks a model about the rows of a file, shared by commands."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic.dataclasses import dataclass

from duiqi.settings.groups import GROUP, Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ModelToAskOptions:
    """Model"""

    model: str
    """A run, an adapter, a model directory or a hub name."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class FileOptions:
    """Files"""

    file: str
    """The rows to work on: .json, .jsonl or .csv, or a name in dataset_info.json."""
    output_file: str
    """Where the result is written, one JSON line per row, in the order of the rows."""
    dataset_dir: str = "."
    """The folder of dataset_info.json and its files, where the rows are named."""
    max_samples: Positive | None = None
    """At most this many rows, from the first on."""
    batch_size: Positive = 16
    """Rows computed at once."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PromptOptions:
    """Prompt"""

    template: str | None = None
    """How a conversation becomes text. Default: the template the model was trained with."""
    system: str | None = None
    """System message. Default: the one the model was trained with."""
    source_prefix: str | None = None
    """Text put before every rendered prompt. Default: the one the model was trained with."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class DecodingOptions:
    """Sampling"""

    max_new_tokens: Positive = 128
    """Longest answer in tokens."""
    min_new_tokens: Count = 1
    """No end token before this many tokens; 1: never an empty answer."""
    temperature: NonNegative = 0.0
    """Randomness of the answers; 0: always the most likely token, 1: the model's own distribution."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the smallest set of tokens with this probability."""
    top_k: Count = 0
    """Sample from the k most likely tokens; 0: from all."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """Above 1 makes tokens already there less likely."""
    seed: Count = 0
    """Seed of the sampling."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PlacementOptions:
    """Placement"""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights. auto: bfloat16 on a GPU, else float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

"""Which network of `ports` a model directory belongs to, from its config.json alone, and which tokenizer.

It is asked before transformers reads the files: their `auto_map` names code, which transformers would want to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from duiqi.models import classifiers
from duiqi.models.ports.baichuan_config import has_norm_head, position_embedding_of

_HOME = "duiqi.models.ports"


@dataclass(frozen=True, slots=True)
class Port:
    """A network of ours; its classes are imported when they are asked for."""

    module: str
    config: str
    causal_lm: str
    classifier: str
    """A class with a head `score`."""

    @property
    def config_class(self) -> Any:
        return _named(f"{self.module}:{self.config}")

    @property
    def causal_lm_class(self) -> Any:
        return _named(f"{self.module}:{self.causal_lm}")

    @property
    def classifier_class(self) -> Any:
        return _named(f"{self.module}:{self.classifier}")


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"{_HOME}.{module}"), name)


def model_name(config: Mapping[str, Any]) -> str | None:
    """The released model that a config.json describes, by the keys in it; None for any other.

    >>> model_name({"model_type": "baichuan", "model_max_length": 4096, "vocab_size": 125696})
    'Baichuan2-13B'
    """
    model_type = config.get("model_type")
    if model_type == "chatglm":
        if config.get("padded_vocab_size") is not None:
            return "ChatGLM2-6B"
        return "ChatGLM-6B" if _CHATGLM_KEYS & config.keys() else None
    if model_type == "baichuan":
        generation = "Baichuan2" if has_norm_head(config) else "Baichuan"
        return f"{generation}-7B" if position_embedding_of(config) == "rope" else f"{generation}-13B"
    return "InternLM" if model_type == "internlm" else None


_CHATGLM_KEYS = {"position_encoding_2d", "inner_hidden_size", "max_sequence_length", "gmask_token_id"}
"""What the first ChatGLM-6B says of itself and no later one."""

_BAICHUAN = Port("baichuan", "BaichuanConfig", "BaichuanForCausalLM", "BaichuanForSequenceClassification")
PORTS = {
    "ChatGLM-6B": Port(
        "chatglm", "ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMForSequenceClassification"
    ),
    "ChatGLM2-6B": Port(
        "chatglm2", "ChatGLM2Config", "ChatGLM2ForConditionalGeneration", "ChatGLM2ForSequenceClassification"
    ),
    "Baichuan-7B": _BAICHUAN,
    "Baichuan-13B": _BAICHUAN,
    "Baichuan2-7B": _BAICHUAN,
    "Baichuan2-13B": _BAICHUAN,
    "InternLM": Port("internlm", "InternLMConfig", "InternLMForCausalLM", "InternLMForSequenceClassification"),
}
"""Networks by the model they were released with. ChatGLM3-6B is the network of ChatGLM2-6B."""

TOKENIZERS = {
    "baichuantokenizer": "baichuan_tokenizer:load",
    "chatglmtokenizer": "chatglm_tokenizer:load",
    "chatglm2tokenizer": "chatglm_tokenizer:load",
}
"""Functions that load a tokenizer from its path, by the `tokenizer_class` in tokenizer_config.json in small letters.
All releases of ChatGLM say ChatGLMTokenizer; which one it is, the function finds out."""


def port_of(config: Mapping[str, Any]) -> Port | None:
    """The port for a config.json; None: transformers knows the model, or nobody does.

    Raises:
        ValueError: A key by which it is told has no meaning.
    """
    name = model_name(config)
    return None if name is None else PORTS[name]


def find_port(path: str) -> Port | None:
    """The port for a model directory or a model on the hub.

    Raises:
        OSError: There is no config.json.
        ValueError: A key by which the model is told has no meaning.
    """
    config, _ = PreTrainedConfig.get_config_dict(path)
    return port_of(config)


def find_tokenizer(path: str) -> Callable[[str], PreTrainedTokenizerBase] | None:
    """The function that loads the tokenizer of this directory or model on the hub; None: transformers' own does."""
    named = str(get_tokenizer_config(path).get("tokenizer_class", ""))
    place = TOKENIZERS.get(named.lower())
    loader: Callable[[str], PreTrainedTokenizerBase] | None = None if place is None else _named(place)
    return loader


def new_classifier(config: PreTrainedConfig) -> PreTrainedModel:
    """A sequence classifier of this configuration, of ours or transformers', with random weights."""
    port = port_of(config.to_dict())
    if port is None:
        return classifiers.new_classifier(config)
    return port.classifier_class(config)

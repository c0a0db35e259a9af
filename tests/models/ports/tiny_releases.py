"""The seven models as they were released, but tiny: config.json with `auto_map`, weights, a SentencePiece model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.ports.baichuan_by_formula import KINDS as BAICHUAN_KINDS
from tests.models.ports.baichuan_by_formula import tiny_model
from tests.models.ports.chatglm_oracle import randomised
from transformers import PreTrainedModel

from duiqi.models.ports.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from duiqi.models.ports.chatglm2 import ChatGLM2Config, ChatGLM2ForConditionalGeneration

sentencepiece = pytest.importorskip("sentencepiece")

SENTENCES = [
    "你好，今天天气怎么样？",
    "今天天气很好。我们去公园吧。",
    "问：一加一等于几？答：二。",
    "Hello, how are you today? I am well, thank you.",
    "def f(x): return x + 1",
    "[Round 1] [Round 2] [Round 0]",
] * 4
FIRST_SPECIAL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
BLANKS = ["<n>", "<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 81))]
TURNS = ["<reserved_102>", "<reserved_103>", "<reserved_106>", "<reserved_107>"]


def train(path: Path, *, symbols: Sequence[str] = (), control: Sequence[str] = (), **changes: Any) -> Path:
    """A SentencePiece model of few pieces and all bytes; `symbols` are found in text, `control` are not."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(path.with_suffix("")),
        **{
            "vocab_size": 600,
            "model_type": "bpe",
            "byte_fallback": True,
            "hard_vocab_limit": False,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "user_defined_symbols": list(symbols),
            "control_symbols": list(control),
            "unk_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "pad_id": -1,
            "minloglevel": 2,
            **changes,
        },
    )
    return path


def train_first(directory: Path) -> Path:
    """A vocabulary as that of ChatGLM-6B."""
    return train(directory / "ice_text.model", symbols=[*BLANKS, *FIRST_SPECIAL], pad_id=3)


def train_second(directory: Path) -> Path:
    """A vocabulary as that of ChatGLM2-6B and ChatGLM3-6B."""
    return train(directory / "tokenizer.model")


def train_baichuan(directory: Path) -> Path:
    """A vocabulary as those of the Baichuan models, with the tokens of both that begin turns."""
    symbols = ["\n", "\t"]
    return train(directory / "tokenizer.model", symbols=symbols, control=TURNS, add_dummy_prefix=False)


@dataclass(frozen=True)
class Release:
    """One of the seven models."""

    template: str
    is_packed: bool
    write: Callable[[Path], None]
    """Fills a directory."""


CHATGLM_TOKENIZER = {
    "do_lower_case": False,
    "remove_space": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
CHATGLM_MODEL = {
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
}
BAICHUAN_TOKENIZER = {
    "add_bos_token": False,
    "add_eos_token": False,
    "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<unk>",
    "unk_token": "<unk>",
    "tokenizer_class": "BaichuanTokenizer",
}
BAICHUAN_MODEL = {
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    }
}


def _chatglm(directory: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(train_first(directory)))
    special = {"bos": "<sop>", "eos": "<eop>", "mask": "[MASK]", "gmask": "[gMASK]", "pad": "<pad>"}
    ids = {f"{name}_token_id": pieces.piece_to_id(piece) for name, piece in special.items()}
    config = ChatGLMConfig(
        vocab_size=pieces.get_piece_size() + 5,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        inner_hidden_size=24,
        **ids,
    )
    _write_model(directory, randomised(ChatGLMForConditionalGeneration(config)), CHATGLM_MODEL)
    _write_tokenizer(directory, {**CHATGLM_TOKENIZER, "num_image_tokens": 0, "gmask_token": "[gMASK]"})


def _chatglm2(directory: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(train_second(directory)))
    config = ChatGLM2Config(
        padded_vocab_size=pieces.get_piece_size() + 16,
        hidden_size=12,
        num_layers=2,
        num_attention_heads=4,
        multi_query_group_num=2,
        kv_channels=8,
        ffn_hidden_size=10,
    )
    _write_model(directory, randomised(ChatGLM2ForConditionalGeneration(config)), CHATGLM_MODEL)
    _write_tokenizer(directory, CHATGLM_TOKENIZER)


def _baichuan(kind: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(train_baichuan(directory)))
        spelling = "BaiChuanForCausalLM" if kind == "Baichuan-7B" else "BaichuanForCausalLM"
        model = tiny_model(kind, vocab_size=pieces.get_piece_size() + 3)
        _write_model(directory, model, {**BAICHUAN_MODEL, "architectures": [spelling]})
        _write_tokenizer(directory, BAICHUAN_TOKENIZER)

    return write


def _write_model(directory: Path, model: torch.nn.Module, released: dict[str, Any]) -> None:
    assert isinstance(model, PreTrainedModel)
    model.float().save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **released}), encoding="utf-8")


def _write_tokenizer(directory: Path, config: dict[str, Any]) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


RELEASES = {
    "ChatGLM-6B": Release("chatglm", False, _chatglm),
    "ChatGLM2-6B": Release("chatglm2", True, _chatglm2),
    "ChatGLM3-6B": Release("chatglm3", True, _chatglm2),
    **{
        kind: Release(
            "baichuan2" if "Baichuan2" in kind else "baichuan",
            shape["position_embedding"] == "rope",
            _baichuan(kind),
        )
        for kind, shape in BAICHUAN_KINDS.items()
    },
}

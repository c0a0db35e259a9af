"""Tokenizers come from their directory alone, and what they lack is found, said, and never guessed in silence."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tests.conftest import Workshop
from tests.data.tiny_tokenizers import CHATML, ENDLESS, build_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    CTRLTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import duiqi
from duiqi.data.encoding import encode_conversation, encode_prompt
from duiqi.data.templates import get_template
from duiqi.errors import ModelError
from duiqi.models.loading import load_causal_lm, load_tokenizer
from duiqi.models.tokenizers import refuse_larger_vocabulary
from duiqi.types import Example, Message, Origin

Load = Callable[[Path], tuple[PreTrainedTokenizerBase, list[str]]]


@pytest.fixture
def load() -> Load:
    """Load a tokenizer and keep what is said of it."""

    def load(directory: Path) -> tuple[PreTrainedTokenizerBase, list[str]]:
        said: list[str] = []
        return load_tokenizer(str(directory), say=said.append), said

    return load


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach the network; each fails. Variables that would forbid them are taken away."""
    attempts: list[object] = []

    def refuse(*address: object, **_: object) -> NoReturn:
        attempts.append(address)
        raise OSError("no network in this test")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def written(directory: Path, *, config: dict[str, Any] | None = None, **tokenizer: Any) -> Path:
    """A tiny tokenizer's files; `config` changes tokenizer_config.json, and None there takes a field away."""
    build_tokenizer(**tokenizer).save_pretrained(directory)
    change(directory / "tokenizer_config.json", **(config or {}))
    return directory


def change(file: Path, **fields: Any) -> None:
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    kept = {name: value for name, value in {**found, **fields}.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def test_a_whole_tokenizer_is_loaded_without_a_word(tmp_path: Path, load: Load) -> None:
    tokenizer, said = load(written(tmp_path))
    assert (tokenizer.eos_token, tokenizer.pad_token, said) == ("</s>", "<pad>", [])


# -- from the directory alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elsewhere",
    [
        {},
        {"name_or_path": "nobody/no-such-model", "_name_or_path": "nobody/no-such-model"},
        {"tokenizer_file": "/nowhere/tokenizer.json", "vocab_file": "/nowhere/tokenizer.model"},
        {"special_tokens_map_file": "/nowhere/special_tokens_map.json"},
    ],
)
def test_a_directory_needs_no_network_and_no_other_place(
    tmp_path: Path, load: Load, no_network: list[object], elsewhere: dict[str, Any]
) -> None:
    change(tmp_path / "config.json", model_type="llama", _name_or_path="nobody/no-such-model")
    tokenizer, _ = load(written(tmp_path, config=elsewhere))
    assert tokenizer.decode(tokenizer("Hello 你好")["input_ids"]) == "Hello 你好"
    assert no_network == []


def test_a_whole_stage_needs_no_network(workshop: Workshop, tmp_path: Path, no_network: list[object]) -> None:
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", max_steps=1))
    duiqi.load_model(str(tmp_path / "sft"))
    assert no_network == []


def test_code_of_another_place_is_not_fetched_where_tokenizer_json_is_enough(
    tmp_path: Path, load: Load, no_network: list[object]
) -> None:
    code = {"AutoTokenizer": ["nobody/no-such-model--tokenization_own.OwnTokenizer", None]}
    written(tmp_path, config={"auto_map": code, "tokenizer_class": "OwnTokenizer"})
    tokenizer, said = load(tmp_path)
    assert tokenizer.decode(tokenizer("Hello 你好")["input_ids"]) == "Hello 你好"
    assert [finding for finding in said if "own code is not run" in finding]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert no_network == []


def test_code_that_is_needed_is_asked_for(tmp_path: Path, load: Load) -> None:
    code = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    change(tmp_path / "tokenizer_config.json", auto_map=code, tokenizer_class="OwnTokenizer")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="set trust_remote_code: true"):
        load(tmp_path)


# -- slow or fast ------------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_bytes_has_no_files_to_need(tmp_path: Path, load: Load) -> None:
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    tokenizer, said = load(tmp_path)
    assert (tokenizer.is_fast, tokenizer.eos_token, said) == (False, "</s>", [])
    assert tokenizer.decode(tokenizer("你好", add_special_tokens=False)["input_ids"]) == "你好"


def test_a_slow_tokenizer_of_python_is_loaded_and_completed(tmp_path: Path, load: Load) -> None:
    """CTRL's: vocab.json and merges.txt, read by Python; no end token, no padding token."""
    pieces = ["<unk>", "</s>", "h@@", "i", "hi"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i</w>\n")
    CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    tokenizer, said = load(tmp_path)
    assert tokenizer("hi")["input_ids"] == [4]
    assert (tokenizer.is_fast, tokenizer.eos_token, tokenizer.pad_token) == (False, "</s>", "<unk>")
    assert len(said) == 2


def test_a_sentencepiece_model_alone_is_read_or_its_package_named(tmp_path: Path, load: Load) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = ["你好，世界", "hello  world", "今天天气很好。"] * 20
    with (tmp_path / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=300, byte_fallback=True,
            character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
    change(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", eos_token="</s>", unk_token="<unk>")
    change(tmp_path / "config.json", model_type="llama")
    try:
        import google.protobuf  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match=r"pip install 'duiqi\[legacy\]'"):
            load(tmp_path)
        return
    tokenizer, said = load(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer("hello world 你好", add_special_tokens=False)["input_ids"] == processor.encode("hello world 你好")
    assert tokenizer.pad_token == "<unk>"
    assert len(said) == 1


def test_a_directory_without_vocabulary_is_refused_and_not_filled_with_three_tokens(tmp_path: Path, load: Load) -> None:
    change(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", eos_token="</s>")
    change(tmp_path / "config.json", model_type="llama")
    with pytest.raises(ModelError, match="tokenizer"):
        load(tmp_path)


# -- end and padding ---------------------------------------------------------------------------------------------------


def test_a_missing_end_is_taken_from_the_models_configuration(tmp_path: Path, load: Load) -> None:
    written(tmp_path, config={"eos_token": None})
    change(tmp_path / "generation_config.json", eos_token_id=[4, 2])
    tokenizer, said = load(tmp_path)
    assert tokenizer.eos_token == "<|im_end|>"
    assert said == ["the tokenizer names no end token: answers end with <|im_end|>, as its generation_config.json says"]


def test_a_missing_end_is_taken_from_the_chat_template(tmp_path: Path, load: Load) -> None:
    tokenizer, said = load(written(tmp_path, chat_template=CHATML, config={"eos_token": None}))
    assert tokenizer.eos_token == "<|im_end|>"
    assert said[0].endswith("as its chat template does")


def test_a_missing_end_is_the_usual_one_and_that_is_said(tmp_path: Path, load: Load) -> None:
    tokenizer, said = load(written(tmp_path, config={"eos_token": None}))
    assert tokenizer.eos_token == "</s>"
    assert said[0].endswith("which usually ends a text")


def test_without_any_end_the_tokenizer_is_refused(tmp_path: Path, load: Load) -> None:
    write_words(tmp_path, unk_token="<unk>")
    with pytest.raises(ModelError, match="no end token"):
        load(tmp_path)


def write_words(directory: Path, **special: str) -> None:
    """A tokenizer of two words and the special tokens named."""
    words = {word: number for number, word in enumerate([*special.values(), "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


@pytest.mark.parametrize("stated", [None, "</s>"])
def test_padding_is_never_the_end_where_there_is_another_token(tmp_path: Path, load: Load, stated: str | None) -> None:
    tokenizer, said = load(written(tmp_path, config={"pad_token": stated}))
    assert tokenizer.pad_token == "<pad>"
    assert "<pad> is padded with" in said[0]


def test_padding_with_the_end_for_want_of_another_is_said(tmp_path: Path, load: Load) -> None:
    write_words(tmp_path, eos_token="</s>")
    tokenizer, said = load(tmp_path)
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert "</s> is padded with" in said[0]
    assert "would read a reward model's score before the end" in said[1]


def test_what_was_mended_is_in_the_events_of_a_run(workshop: Workshop, tmp_path: Path) -> None:
    base = Path(shutil.copytree(workshop.base, tmp_path / "base"))
    change(base / "tokenizer_config.json", pad_token=None)
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", model_name_or_path=str(base), max_steps=1))
    events = [json.loads(line) for line in (tmp_path / "sft" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    assert warnings == ["the tokenizer names no padding token: <|pad|> is padded with"]
    assert load_tokenizer(str(tmp_path / "sft")).pad_token == "<|pad|>"


# -- an end that the template never writes ----------------------------------------------------------------------------


def example(answer: str) -> Example:
    return Example(kind="demonstration", prompt=(Message("user", "你好"),), answers=(answer,), origin=Origin("test"))


def test_the_templates_end_is_learned_and_both_stop(tmp_path: Path, load: Load) -> None:
    tokenizer, _ = load(written(tmp_path, chat_template=CHATML))
    template = get_template(None, tokenizer)
    encoded = encode_conversation(template, tokenizer, example=example("很好"))
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[-1]) == "<|im_end|>"
    assert encoded.answer_mask[-1]
    assert template.stop_tokens == ("<|im_end|>", "</s>")


def test_a_template_without_an_end_gets_the_tokenizers(tmp_path: Path, load: Load) -> None:
    tokenizer, _ = load(written(tmp_path, chat_template=ENDLESS))
    template = get_template(None, tokenizer)
    encoded = encode_conversation(template, tokenizer, example=example("很好"))
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[-1]) == "</s>"
    assert template.stop_tokens == ("</s>",)


def test_a_loaded_run_stops_generating_where_its_template_ends(workshop: Workshop, tmp_path: Path) -> None:
    base = Path(shutil.copytree(workshop.base, tmp_path / "base"))
    change(base / "tokenizer_config.json", eos_token="<|pad|>", pad_token=None)
    text = (base / "chat_template.jinja").read_text(encoding="utf-8")
    (base / "chat_template.jinja").write_text(text.replace("eos_token", "'<|end|>'"), encoding="utf-8")
    run = tmp_path / "sft"
    duiqi.run("sft", **workshop.settings("sft", run, model_name_or_path=str(base), max_steps=1))
    tokenizer = load_tokenizer(str(run))
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|pad|>"])
    assert duiqi.load_model(str(run)).generation_config.eos_token_id == ends
    prompt = encode_prompt(get_template(None, tokenizer), tokenizer, messages=[Message("user", "你好")])
    assert not set(ends) & set(prompt[-1:])


# -- rows of the embedding ---------------------------------------------------------------------------------------------


def test_more_tokens_than_rows_are_refused_before_the_model_is_loaded(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(workshop.base, tmp_path / "base"))
    tokenizer = load_tokenizer(str(base))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<one more>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    monkeypatch.setattr("duiqi.stages.materials.load_causal_lm", load_causal_lm_is_not_called)
    expected = rf"has {rows + 1} tokens, but the embedding only {rows} rows \(none for <one more>\)"
    with pytest.raises(ModelError, match=expected) as refused:
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", model_name_or_path=str(base)))
    assert "resize_vocab" in str(refused.value)


def load_causal_lm_is_not_called(*_: object, **__: object) -> NoReturn:
    raise AssertionError(f"{load_causal_lm.__name__} was called")


def test_more_rows_than_tokens_are_usual(workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(workshop.base)
    LlamaConfig(vocab_size=len(tokenizer) + 12).save_pretrained(tmp_path)
    assert list(refuse_larger_vocabulary(tokenizer, str(tmp_path))) == []


def test_a_token_that_transformers_adds_by_itself_is_said(workshop: Workshop, tmp_path: Path) -> None:
    """Beside a Qwen2, its class of tokenizers reads any tokenizer.json, and adds the token that Qwen2's have."""
    base = Path(shutil.copytree(workshop.base, tmp_path / "base"))
    change(base / "config.json", model_type="qwen2")
    said = list(refuse_larger_vocabulary(load_tokenizer(str(base)), str(base)))
    assert said == ["Qwen2Tokenizer knows <|endoftext|>, for which the embedding has no row: no text may contain it"]

"""The Baichuan tokenizer on a small SentencePiece model made in the manner of the released one."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from tests.models.ports.tiny_releases import train, train_baichuan

from duiqi.data.encoding import encode_conversation, encode_prompt
from duiqi.data.templates import get_template
from duiqi.errors import ModelError, TemplateError
from duiqi.models.loading import load_tokenizer
from duiqi.models.ports import baichuan_tokenizer
from duiqi.models.ports.baichuan_tokenizer import BaichuanTokenizer
from duiqi.types import Example, Message, Origin

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = [
    "你好，世界",
    "hello  world",
    "今天天气很好。",
    "def f(x):\n    return x",
    "问：你是谁？答：我是助手。",
    "12345 67890",
] * 20
USER, ASSISTANT = "<reserved_106>", "<reserved_107>"


def special(content: str) -> dict[str, str | bool]:
    """As released files write it."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    return {"__type": "AddedToken", "content": content, **flags}


TOKENIZER_CONFIG = {
    "add_bos_token": False,
    "add_eos_token": False,
    "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
    "bos_token": special("<s>"),
    "eos_token": special("</s>"),
    "pad_token": special("<unk>"),
    "unk_token": special("<unk>"),
    "clean_up_tokenization_spaces": False,
    "model_max_length": 4096,
    "sp_model_kwargs": {},
    "tokenizer_class": "BaichuanTokenizer",
}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as those of Baichuan2-Chat: tokenizer.model, its configuration, and who speaks by which token."""
    directory = tmp_path_factory.mktemp("tokenizer")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=350,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["\n", "\t"],
        control_symbols=[USER, ASSISTANT],
        character_coverage=1.0,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    piece_to_id = processor(directory).piece_to_id
    turns = {"user_token_id": piece_to_id(USER), "assistant_token_id": piece_to_id(ASSISTANT)}
    (directory / "generation_config.json").write_text(json.dumps(turns))
    return directory


def processor(directory: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


@pytest.mark.parametrize("text", ["你好，世界\n  hello 123", "  two  spaces ", "龘 is not in it", "", "a\tb"])
def test_ids_are_those_of_sentencepiece_and_decode_to_the_text(released: Path, text: str) -> None:
    tokenizer = load_tokenizer(str(released))
    assert isinstance(tokenizer, BaichuanTokenizer)
    ids = tokenizer(text)["input_ids"]
    assert ids == processor(released).encode(text)
    assert tokenizer.decode(ids) == text


def test_the_file_decides_whether_a_text_begins_and_ends_with_a_token(released: Path) -> None:
    plain = processor(released).encode("你好")
    for add_bos, add_eos in ((False, False), (True, False), (False, True), (True, True)):
        tokenizer = BaichuanTokenizer.from_pretrained(str(released), add_bos_token=add_bos, add_eos_token=add_eos)
        assert tokenizer("你好")["input_ids"] == [1] * add_bos + plain + [2] * add_eos
        assert tokenizer("你好", add_special_tokens=False)["input_ids"] == plain


def test_special_tokens_have_the_released_numbers(released: Path) -> None:
    tokenizer = load_tokenizer(str(released))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert len(tokenizer) == 350


def test_a_chat_begins_every_turn_with_its_token_and_nothing_else(released: Path) -> None:
    tokenizer, sp = load_tokenizer(str(released)), processor(released)
    user, assistant = sp.piece_to_id(USER), sp.piece_to_id(ASSISTANT)
    chat = [("system", "今天"), ("user", " 你好\n"), ("assistant", "hello"), ("user", "世界")]
    messages = [{"role": role, "content": text} for role, text in chat]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = [*sp.encode("今天"), user, *sp.encode(" 你好\n"), assistant, *sp.encode("hello"), user]
    assert ids == [*expected, *sp.encode("世界"), assistant]
    for name in (None, "baichuan2"):
        template = get_template(name, tokenizer)
        segments = template.prompt_segments([Message(role, text) for role, text in chat])
        assert [t for s in segments for t in tokenizer(s.text, add_special_tokens=False)["input_ids"]] == ids
        assert template.stop_token_ids == (2,)
        assert template.bos_token_ids == ()
        assert template.answer_segment([Message("user", "你好")], "世界").text == "世界"


def test_a_base_model_has_no_chat_template(released: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((released / name).read_bytes())
    assert load_tokenizer(str(tmp_path)).chat_template is None


def test_a_base_model_finds_the_tokens_of_turns_whole(released: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((released / name).read_bytes())
    base, chats = load_tokenizer(str(tmp_path)), load_tokenizer(str(released))
    turns = [Message("user", "你好"), Message("assistant", "hello"), Message("user", "世界")]
    expected = encode_prompt(get_template(None, chats), chats, messages=turns)
    assert encode_prompt(get_template("baichuan2", base), base, messages=turns) == expected
    assert base.chat_template is None


def test_what_a_model_draws_beyond_the_vocabulary_is_nothing(released: Path) -> None:
    tokenizer = load_tokenizer(str(released))
    ids = tokenizer("你好")["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "你好"


@pytest.mark.parametrize(("own", "other", "first"), [("baichuan", "baichuan2", 102), ("baichuan2", "baichuan", 106)])
def test_a_template_is_refused_where_its_token_has_another_meaning(
    own: str, other: str, first: int, tmp_path: Path
) -> None:
    fillers = [f"<reserved_{number}>" for number in range(first - 192, first + 6)]  # number `first` has the id 195
    train(tmp_path / "tokenizer.model", control=fillers)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.convert_tokens_to_ids(f"<reserved_{first}>") == 195
    assert get_template(own, tokenizer).name == own
    with pytest.raises(TemplateError, match=f"token 195, .* is <reserved_{first}> in this vocabulary") as caught:
        get_template(other, tokenizer)
    assert caught.value.remedy == f"set template: {own}"


@pytest.mark.parametrize("name", ["baichuan", "baichuan2"])
def test_an_earlier_answer_has_no_end_token_and_the_last_one_has(name: str, tmp_path: Path) -> None:
    train_baichuan(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    template = get_template(name, tokenizer := load_tokenizer(str(tmp_path)))
    chat = (Message("user", "你好"), Message("assistant", "hello"), Message("user", "世界"))
    example = Example("demonstration", chat, ("今天",), Origin("rows"))
    sequence = encode_conversation(template, tokenizer, example=example, train_on="all")
    assert sequence.input_ids.count(tokenizer.eos_token_id) == 1
    assert sequence.input_ids[-1] == tokenizer.eos_token_id
    assert sum(sequence.answer_mask) == len(tokenizer("今天")["input_ids"]) + 1


def test_a_saved_tokenizer_is_the_same_when_it_is_loaded(released: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(released))
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    text = f"你好{USER}hello\n"
    assert isinstance(again, BaichuanTokenizer)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.chat_template, len(again)) == (tokenizer.chat_template, len(tokenizer))
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_without_sentencepiece_its_installation_is_named(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baichuan_tokenizer, "is_sentencepiece_available", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'duiqi\[legacy\]'"):
        load_tokenizer(str(released))


@pytest.mark.skipif("BAICHUAN2_TOKENIZER" not in os.environ, reason="needs the released tokenizer's directory")
def test_the_released_tokenizer_gives_the_ids_that_are_known_of_it() -> None:
    tokenizer = load_tokenizer(os.environ["BAICHUAN2_TOKENIZER"])
    ids = tokenizer("你好，世界\n  hello 123")["input_ids"]
    assert ids == [16829, 65, 2089, 5, 1373, 46955, 92311, 92336, 92338, 92354]
    assert tokenizer.convert_ids_to_tokens([195, 196]) == [USER, ASSISTANT]

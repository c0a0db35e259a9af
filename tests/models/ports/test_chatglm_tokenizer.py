"""The tokenizers of the three ChatGLMs, on small SentencePiece models trained here; and prompts of the templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models.ports.tiny_releases import BLANKS, CHATGLM_TOKENIZER, train_first, train_second
from transformers import PreTrainedTokenizerBase

from duiqi.data.encoding import encode_answer, encode_conversation, encode_prompt
from duiqi.data.templates import get_template
from duiqi.errors import ModelError, TemplateError
from duiqi.models.loading import load_tokenizer
from duiqi.models.ports import chatglm_tokenizer
from duiqi.models.ports.chatglm_tokenizer import ChatGLM2Tokenizer, ChatGLMTokenizer, load
from duiqi.types import Example, Message, Origin

SINGLE = [Message("user", "你好")]
MULTI = [Message("user", "你好"), Message("assistant", "很好。"), Message("user", "今天 how are\nyou")]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> ChatGLMTokenizer:
    return ChatGLMTokenizer(str(train_first(tmp_path_factory.mktemp("chatglm"))))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> ChatGLM2Tokenizer:
    return ChatGLM2Tokenizer(str(train_second(tmp_path_factory.mktemp("chatglm2"))))


def ids_of(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> list[int]:
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    return ids


# -- ChatGLM-6B --------------------------------------------------------------------------------------------------------


def test_the_first_puts_its_special_tokens_behind_the_prompt(first: ChatGLMTokenizer) -> None:
    text, answer = first.pieces.encode("你好"), first.pieces.encode("很好。")
    gmask, sop, eop = ids_of(first, "[gMASK]", "<sop>", "<eop>")
    assert first("你好")["input_ids"] == [*text, gmask, sop]
    assert first("你好", "很好。")["input_ids"] == [*text, gmask, sop, *answer, eop]
    assert first.pieces.id_to_piece(text[0]).startswith("▁")
    assert (first.pad_token_id, first.bos_token_id, first.eos_token_id) == (3, sop, eop)
    assert first.vocab_size == first.pieces.get_piece_size() == len(first)


def test_white_space_has_tokens_of_its_own(first: ChatGLMTokenizer) -> None:
    text = "a\n\tb  c" + " " * 83 + "d e" + " " * 81 + "f"
    tokens = first.tokenize(text)
    spaces = [token for token in tokens if token in BLANKS]
    assert spaces == ["<n>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<|blank_3|>", "<|blank_80|>"]
    ids = first(text, add_special_tokens=False)["input_ids"]
    assert ids == first.convert_tokens_to_ids(tokens)
    assert first.decode(ids) == text


def test_padding_is_on_the_left_and_decodes_to_nothing(first: ChatGLMTokenizer) -> None:
    batch = first(["你好", "你好，今天天气怎么样？"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert batch["input_ids"][0][0] == first.pad_token_id
    assert first.decode(batch["input_ids"][0]) == "你好[gMASK]<sop>"
    assert first.decode(batch["input_ids"][0], skip_special_tokens=True) == "你好"


def test_image_tokens_shift_every_id(first: ChatGLMTokenizer) -> None:
    old = ChatGLMTokenizer(first.vocab_file, num_image_tokens=20000)
    ids = first("你好，world", "好")["input_ids"]
    assert old("你好，world", "好")["input_ids"] == [index + 20000 for index in ids]
    assert old.decode([index + 20000 for index in ids], skip_special_tokens=True) == first.decode(
        ids, skip_special_tokens=True
    )
    assert old.pad_token_id == 20003


def test_what_a_model_draws_beyond_the_vocabulary_is_nothing(first: ChatGLMTokenizer) -> None:
    assert first.decode([first.vocab_size + 100]) == ""


# -- ChatGLM2-6B and ChatGLM3-6B ---------------------------------------------------------------------------------------


def test_the_second_puts_its_special_tokens_before_the_prompt(second: ChatGLM2Tokenizer) -> None:
    size = second.pieces.get_piece_size()
    text, answer = second.pieces.encode("你好"), second.pieces.encode("很好。")
    assert second("你好")["input_ids"] == [size + 1, size + 3, *text]
    assert second("你好", "很好。")["input_ids"] == [size + 1, size + 3, *text, *answer, 2]
    assert (second.pad_token_id, second.eos_token_id, second.get_command("<bos>")) == (0, 2, 1)
    names = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
    assert [second.get_command(name) for name in names] == list(range(size, size + 9))
    assert ids_of(second, *names) == list(range(size, size + 9))
    assert len(second) == second.vocab_size == size + 9


def test_special_tokens_decode_to_nothing(second: ChatGLM2Tokenizer) -> None:
    ids = second("你好，world", "好")["input_ids"]
    assert (
        second.decode(ids, skip_special_tokens=False)
        == second.decode(ids, skip_special_tokens=True)
        == "你好，world 好"
    )


def test_text_that_spells_a_role_is_no_role(second: ChatGLM2Tokenizer) -> None:
    spelled = second("说 <|user|> 就是", add_special_tokens=False)["input_ids"]
    assert max(spelled) < second.pieces.get_piece_size()
    assert second.decode(spelled) == "说 <|user|> 就是"
    assert second("<|user|>", add_special_tokens=False)["input_ids"] == [second.get_command("<|user|>")]
    assert second("[gMASK]sop", add_special_tokens=False)["input_ids"] == ids_of(second, "[gMASK]", "sop")


def test_added_tokens_are_found_in_text(second: ChatGLM2Tokenizer) -> None:
    own = ChatGLM2Tokenizer(second.vocab_file)
    own.add_tokens(["<新>"])
    expected = [*second.pieces.encode("你"), second.vocab_size, *second.pieces.encode("好")]
    assert own("你<新>好", add_special_tokens=False)["input_ids"] == expected


def test_a_chat_is_encoded_turn_by_turn_each_part_on_its_own(second: ChatGLM2Tokenizer) -> None:
    line = second.pieces.encode("\n")
    roles = {name: second.get_command(f"<|{name}|>") for name in ("system", "user", "assistant", "observation")}
    start = ids_of(second, "[gMASK]", "sop")
    assert second.pieces.id_to_piece(line) == ["▁", "<0x0A>"]
    chat = [{"role": "system", "content": "工具"}, {"role": "user", "content": "你好"}]
    tools = [{"name": "f"}]
    described = second.pieces.encode("工具\n" + json.dumps(tools, indent=4, ensure_ascii=False))
    hello = second.pieces.encode("你好")
    assert second.encode_chat(chat, tools=tools) == [
        *start, roles["system"], *line, *described, roles["user"], *line, *hello, roles["assistant"]
    ]  # fmt: skip
    named = {"role": "assistant", "content": "你好", "metadata": "f"}
    assert second.encode_chat([named]) == [
        *start, roles["assistant"], *second.pieces.encode("f\n"), *hello, roles["assistant"]
    ]  # fmt: skip


# -- files -------------------------------------------------------------------------------------------------------------


def test_saved_tokenizers_load_as_what_they_are(
    tmp_path: Path, first: ChatGLMTokenizer, second: ChatGLM2Tokenizer
) -> None:
    for name, tokenizer in (("first", first), ("second", second)):
        tokenizer.save_pretrained(tmp_path / name)
        again = load(str(tmp_path / name))
        assert type(again) is type(tokenizer)
        text = "你好  a\nb"
        assert again(text, "好")["input_ids"] == tokenizer(text, "好")["input_ids"]
        assert again.all_special_tokens == tokenizer.all_special_tokens
        assert again.padding_side == "left"
        assert len(again) == len(tokenizer)


def test_the_tokenizer_configuration_of_2023_loads(tmp_path: Path, first: ChatGLMTokenizer) -> None:
    fields = {
        "name_or_path": "THUDM/chatglm-6b",
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "num_image_tokens": 0,
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    (tmp_path / "ice_text.model").write_bytes(Path(first.vocab_file).read_bytes())
    assert load(str(tmp_path))("你好")["input_ids"] == first("你好")["input_ids"]
    with pytest.raises(ValueError, match="not implemented"):
        ChatGLMTokenizer(first.vocab_file, do_lower_case=True)


def released(directory: Path, tokenizer: ChatGLMTokenizer | ChatGLM2Tokenizer, **config: object) -> Path:
    """The tokenizer's files as a release of 2023 has them."""
    name = tokenizer.vocab_files_names["vocab_file"]
    (directory / name).write_bytes(Path(tokenizer.vocab_file).read_bytes())
    config = {**CHATGLM_TOKENIZER, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("something was asked on the terminal")

    monkeypatch.setattr("builtins.input", refuse)


@pytest.mark.parametrize("trust", [False, True])
def test_both_are_found_by_the_name_they_share_and_again_where_they_were_saved(
    tmp_path: Path, first: ChatGLMTokenizer, second: ChatGLM2Tokenizer, trust: bool
) -> None:
    for place, tokenizer in (("first", first), ("second", second)):
        (tmp_path / place).mkdir()
        found = load_tokenizer(str(released(tmp_path / place, tokenizer)), trust_remote_code=trust)
        assert type(found) is type(tokenizer)
        assert found("你好")["input_ids"] == tokenizer("你好")["input_ids"]
        found.save_pretrained(tmp_path / f"{place} again")
        again = load_tokenizer(str(tmp_path / f"{place} again"))
        assert type(again) is type(tokenizer)
        assert again("你好")["input_ids"] == tokenizer("你好")["input_ids"]
        saved = json.loads((tmp_path / f"{place} again" / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert "auto_map" not in saved


def test_a_release_that_lists_some_special_tokens_has_them_all(tmp_path: Path, second: ChatGLM2Tokenizer) -> None:
    size = second.pieces.get_piece_size()
    added = {str(size + place): {"content": name, "special": True} for place, name in ((1, "[gMASK]"), (6, "<|user|>"))}
    listed = {"additional_special_tokens": ["[gMASK]", "<|user|>"], "added_tokens_decoder": added}
    tokenizer = load_tokenizer(str(released(tmp_path, second, chat_template="{{ messages }}", **listed)))
    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    assert [tokenizer(role, add_special_tokens=False)["input_ids"] for role in roles] == [
        [size + 5 + place] for place in range(4)
    ]
    assert len(tokenizer) == len(second)
    template = get_template("chatglm3", tokenizer)
    chat = [{"role": message.role, "content": message.content} for message in MULTI]
    assert encode_prompt(template, tokenizer, messages=MULTI) == second.encode_chat(chat)


def test_a_chat_template_beside_it_is_not_taken_for_text(tmp_path: Path, second: ChatGLM2Tokenizer) -> None:
    released(tmp_path, second, chat_template="[gMASK]sop<|user|>\n {{ messages[0]['content'] }}<|assistant|>")
    with pytest.raises(TemplateError, match="no chat template"):
        get_template(None, load_tokenizer(str(tmp_path)))


@pytest.mark.parametrize("shift", [0, 20000])
def test_a_tokenizer_that_does_not_count_image_tokens_asks_the_model_beside_it(
    tmp_path: Path, first: ChatGLMTokenizer, shift: int
) -> None:
    released(tmp_path, first)
    config = {"model_type": "chatglm", "bos_token_id": first.bos_token_id + shift, "position_encoding_2d": True}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("你好")["input_ids"] == [index + shift for index in first("你好")["input_ids"]]
    tokenizer.save_pretrained(tmp_path / "run")
    assert load_tokenizer(str(tmp_path / "run"))("你好")["input_ids"] == tokenizer("你好")["input_ids"]


def test_without_sentencepiece_its_installation_is_named(
    tmp_path: Path, second: ChatGLM2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chatglm_tokenizer, "is_sentencepiece_available", lambda: False)
    with pytest.raises(ModelError, match=r"is read by SentencePiece: pip install 'duiqi\[legacy\]'"):
        load_tokenizer(str(released(tmp_path, second)))


# -- templates ---------------------------------------------------------------------------------------------------------


def test_prompts_of_the_first_end_with_what_opens_an_answer(first: ChatGLMTokenizer) -> None:
    template = get_template("chatglm", first)
    opening = ids_of(first, "[gMASK]", "<sop>")
    assert encode_prompt(template, first, messages=SINGLE) == [*first.pieces.encode("你好"), *opening]
    rounds = "[Round 0]<n>问：你好<n>答：很好。<n>[Round 1]<n>问：今天 how are<n>you<n>答："
    assert encode_prompt(template, first, messages=MULTI) == [*first.pieces.encode(rounds), *opening]
    answer, _ = encode_answer(template, first, messages=SINGLE, answer="很好。")
    assert answer == [*first.pieces.encode("很好。"), first.eos_token_id]
    example = Example("demonstration", tuple(MULTI), ("二。",), Origin("rows"))
    sequence = encode_conversation(template, first, example=example)
    assert sequence.input_ids[sequence.prompt_length - 2 : sequence.prompt_length] == opening
    assert sequence.answer_mask.index(True) == sequence.prompt_length
    short = encode_prompt(template, first, messages=[Message("user", "今天天气" * 20)], max_prompt_tokens=12)
    assert short[-2:] == opening
    assert len(short) <= 12


def test_prompts_of_the_second_begin_with_its_special_tokens(second: ChatGLM2Tokenizer) -> None:
    template = get_template("chatglm2", second)
    start = ids_of(second, "[gMASK]", "sop")
    text = "[Round 1]\n\n问：你好\n\n答："
    assert encode_prompt(template, second, messages=SINGLE) == [*start, *second.pieces.encode(text)]
    rounds = "[Round 1]\n\n问：你好\n\n答：很好。\n\n[Round 2]\n\n问：今天 how are\nyou\n\n答："
    assert encode_prompt(template, second, messages=MULTI) == [*start, *second.pieces.encode(rounds)]
    answer, _ = encode_answer(template, second, messages=SINGLE, answer="很好。")
    assert answer == [*second.pieces.encode("很好。"), 2]


@pytest.mark.parametrize("messages", [SINGLE, MULTI, [Message("system", "<|user|> 好"), *MULTI]])
def test_prompts_of_the_third_are_its_chat(second: ChatGLM2Tokenizer, messages: list[Message]) -> None:
    template = get_template("chatglm3", second)
    chat = [{"role": message.role, "content": message.content} for message in messages]
    assert encode_prompt(template, second, messages=messages) == second.encode_chat(chat)
    answer, _ = encode_answer(template, second, messages=messages, answer="很好。")
    turn = second.encode_turn("assistant", "很好。")
    assert answer == [*turn[1:], 2]
    drawn = second.decode(answer[:-1])
    assert encode_answer(template, second, messages=messages, answer=drawn)[0] == answer
    stops = [second.get_command(name) for name in ("<eos>", "<|user|>", "<|observation|>")]
    assert list(template.stop_token_ids) == stops

"""Golden strings of the named templates; the tokenizer's own template against what transformers renders."""

from __future__ import annotations

import itertools

import pytest
from tiny_tokenizers import CHAT_TEMPLATES, REWRITING, build_tokenizer
from transformers import PreTrainedTokenizerFast

from duiqi.data.named_templates import TEMPLATES, Segment
from duiqi.data.templates import from_dict, get_template
from duiqi.errors import TemplateError
from duiqi.types import Message

SYSTEM = Message("system", "S")
SINGLE = [Message("user", "q1")]
MULTI = [Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2")]

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
CLA2 = "You are a helpful assistant. 你是一个乐于助人的助手。"
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

GOLDEN = {
    "zh_qa": ("问：q1\n答：", "问：q1\n答：a1\n\n问：q2\n答：", "S\n\n问：q1\n答："),
    "qa": (
        "Question: q1\n\nAnswer: ",
        "Question: q1\n\nAnswer: a1\n\nQuestion: q2\n\nAnswer: ",
        "S\n\nQuestion: q1\n\nAnswer: ",
    ),
    "human_assistant": (
        "Human: q1\n\nAssistant: ",
        "Human: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: ",
        "S\n\nHuman: q1\n\nAssistant: ",
    ),
    "alpaca": (
        ALPACA + "\n\n### Instruction:\nq1\n\n### Response:\n",
        ALPACA + "\n\n### Instruction:\nq1\n\n### Response:\na1\n\n### Instruction:\nq2\n\n### Response:\n",
        "S\n\n### Instruction:\nq1\n\n### Response:\n",
    ),
    "chatglm": ("q1", "[Round 0]\n问：q1\n答：a1\n[Round 1]\n问：q2\n答：", "S\n[Round 0]\n问：q1\n答："),
    "chatglm2": (
        "[Round 1]\n\n问：q1\n\n答：",
        "[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：q2\n\n答：",
        "S\n\n[Round 1]\n\n问：q1\n\n答：",
    ),
    "chatglm3": (
        "<|user|>\n q1<|assistant|>",
        "<|user|>\n q1<|assistant|>\n a1<|user|>\n q2<|assistant|>",
        "<|system|>\n S<|user|>\n q1<|assistant|>",
    ),
    "llama2_zh": (
        f"[INST] <<SYS>>\n{CLA2}\n<</SYS>>\n\nq1 [/INST]",
        f"[INST] <<SYS>>\n{CLA2}\n<</SYS>>\n\nq1 [/INST]a1[INST] q2 [/INST]",
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nq1 [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen": (
        QWEN + "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
        QWEN + "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
    ),
    "baichuan": (
        "<reserved_102>q1<reserved_103>",
        "<reserved_102>q1<reserved_103>a1<reserved_102>q2<reserved_103>",
        "S<reserved_102>q1<reserved_103>",
    ),
    "baichuan2": (
        "<reserved_106>q1<reserved_107>",
        "<reserved_106>q1<reserved_107>a1<reserved_106>q2<reserved_107>",
        "S<reserved_106>q1<reserved_107>",
    ),
    "raw": ("q1", "q1a1\nq2", "S\nq1"),
}
"""The text of one turn, of two turns, and of one turn behind a system message. Stop tokens are not text."""


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def test_every_named_template_has_golden_strings() -> None:
    assert set(GOLDEN) == set(TEMPLATES)
    assert len(TEMPLATES) == 13


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates_render_their_golden_strings(plain_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    template = get_template(name, plain_tokenizer)
    rendered = [text_of(template.prompt_segments(messages)) for messages in (SINGLE, MULTI, [SYSTEM, *SINGLE])]
    assert rendered == list(GOLDEN[name])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_setting_equals_a_system_message_and_the_prefix_comes_first(
    plain_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    template = get_template(name, plain_tokenizer, system="S", source_prefix="前缀")
    bare = get_template(name, plain_tokenizer)
    assert text_of(template.prompt_segments(MULTI)) == "前缀" + text_of(bare.prompt_segments([SYSTEM, *MULTI]))
    other = [Message("system", "T"), *MULTI]
    assert text_of(template.prompt_segments(other)) == "前缀" + text_of(bare.prompt_segments(other))


def test_braces_in_a_question_are_left_alone(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    segments = get_template("zh_qa", plain_tokenizer).prompt_segments([Message("user", "{x} {round}")])
    assert text_of(segments) == "问：{x} {round}\n答："


def test_earlier_answers_are_learned_unless_the_template_writes_them_without_an_end(
    plain_tokenizer: PreTrainedTokenizerFast,
) -> None:
    last_only = {name for name in TEMPLATES if not get_template(name, plain_tokenizer).learns_history}
    assert last_only == {"chatglm", "chatglm2", "chatglm3", "baichuan", "baichuan2"}
    for name in TEMPLATES:
        learned = [s.text for s in get_template(name, plain_tokenizer).prompt_segments(MULTI) if s.learned]
        assert learned == ([] if name in last_only else ["a1"])


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        (name, messages)
        for name, messages in itertools.product(CHAT_TEMPLATES, [SINGLE, MULTI, [SYSTEM, *MULTI]])
        if not (name == "stripping" and messages[0] == SYSTEM)  # it refuses system messages
    ],
)
def test_a_chat_template_renders_as_transformers_renders_it(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast], name: str, messages: list[Message]
) -> None:
    tokenizer = chat_tokenizers[name]
    template = get_template(None, tokenizer)
    expected = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    written_by_template = template.stop_tokens[0] if name != "endless" else ""
    rendered = "".join(s.text + (written_by_template if s.learned else "") for s in template.prompt_segments(messages))
    assert ("<s>" if template.bos_token_ids else "") + rendered == expected


@pytest.mark.parametrize(
    ("name", "stops", "answer", "learns_history"),
    [
        ("chatml", ("<|im_end|>", "</s>"), " a ", True),
        ("stripping", ("</s>",), " a ", True),
        ("rewriting", ("<|im_end|>", "</s>"), "<think>\n\n</think>\n\n a ", False),
        ("endless", ("</s>",), " a ", True),
    ],
)
def test_what_a_chat_template_writes_around_an_answer_is_found(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast],
    name: str,
    stops: tuple[str, ...],
    answer: str,
    learns_history: bool,
) -> None:
    template = get_template(None, chat_tokenizers[name])
    assert template.stop_tokens == stops
    assert template.stop_token_ids == tuple(chat_tokenizers[name].convert_tokens_to_ids(list(stops)))
    assert template.answer_segment(SINGLE, " a ") == Segment(answer, learned=True)
    assert template.learns_history is learns_history


def test_an_answer_that_contains_the_end_token_is_kept_whole(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    template = get_template(None, chat_tokenizers["chatml"])
    assert template.answer_segment(SINGLE, "a<|im_end|>b").text == "a<|im_end|>b"


def test_a_refusal_by_the_chat_template_is_passed_on(chat_tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    template = get_template(None, chat_tokenizers["stripping"], system="S")
    with pytest.raises(TemplateError, match="refuses the conversation: no system message, please"):
        template.prompt_segments(SINGLE)


def test_without_a_name_and_a_chat_template_the_names_are_listed(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="the tokenizer has no chat template") as caught:
        get_template(None, plain_tokenizer)
    assert all(name in (caught.value.remedy or "") for name in TEMPLATES)


def test_an_unknown_name_is_refused_with_near_ones(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="unknown template 'zh-qa'; known are tokenizer, zh_qa") as caught:
        get_template("zh-qa", plain_tokenizer)
    assert "zh_qa" in (caught.value.remedy or "")


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused() -> None:
    tokenizer = build_tokenizer(special_tokens=["<pad>", "<s>", "</s>"])
    with pytest.raises(TemplateError, match=r"no token <\|im_start\|>, which the template chatml needs"):
        get_template("chatml", tokenizer)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="the tokenizer has no end token"):
        get_template("zh_qa", tokenizer)


def test_a_prompt_that_ends_with_an_answer_is_refused(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="must end with the user's turn"):
        get_template("zh_qa", plain_tokenizer).prompt_segments(MULTI[:2])


@pytest.mark.parametrize("name", [*TEMPLATES, "tokenizer"])
def test_a_template_survives_its_trip_through_json(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer = chat_tokenizers["chatml"]
    template = get_template(name, tokenizer, system="S", source_prefix="P")
    again = from_dict(template.to_dict(), tokenizer)
    assert again.difference(template) == ""
    assert again.fingerprint() == template.fingerprint()
    assert again.prompt_segments(MULTI) == template.prompt_segments(MULTI)


def test_what_differs_is_said_in_a_sentence(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    ours = get_template("zh_qa", plain_tokenizer, source_prefix="P")
    theirs = get_template("qa", plain_tokenizer)
    assert ours.difference(theirs) == "the templates differ in name ('zh_qa' and 'qa'), source_prefix ('P' and '')"
    assert ours.fingerprint() != theirs.fingerprint()


def test_a_changed_chat_template_is_refused(chat_tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    saved = get_template(None, chat_tokenizers["chatml"]).to_dict()
    changed = build_tokenizer(chat_template=REWRITING)
    assert get_template(None, changed).difference(get_template(None, chat_tokenizers["chatml"])) == (
        "the templates differ in the text of the chat template"
    )
    with pytest.raises(TemplateError, match="has changed since this model was trained"):
        from_dict(saved, changed)

"""Token ids: the same in every stage, within budgets, with the stop token learned and everything cut counted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHAT_TEMPLATES, build_tokenizer
from transformers import PreTrainedTokenizerFast

from duiqi.data.encoded import encode_demonstrations, encode_prompts, encode_rankings, pack_text
from duiqi.data.encoding import (
    describe_first,
    encode_answer,
    encode_conversation,
    encode_prompt,
    encode_ranking,
    fit_prompt,
    learned_spans,
    token_budget,
)
from duiqi.data.named_templates import TEMPLATES
from duiqi.data.templates import get_template
from duiqi.errors import DataError, SettingsError
from duiqi.types import Example, Message, Origin

SINGLE = (Message("user", "今天天气怎么样？"),)
MULTI = (Message("user", "Hello"), Message("assistant", "你好！"), *SINGLE)
ORIGIN = Origin("set")
TOKENIZER = build_tokenizer(adds_bos=True)
ZH_QA = get_template("zh_qa", TOKENIZER)

EVERY_TEMPLATE = [*TEMPLATES, *(f"chat:{name}" for name in CHAT_TEMPLATES)]
FRAMES = [("", ""), ("Be kind.", ""), ("", "前缀"), ("Be kind.", "前缀")]


def demonstration(prompt: Sequence[Message] = SINGLE, answer: str = "很好。") -> Example:
    return Example("demonstration", tuple(prompt), (answer,), ORIGIN)


def ranking(*answers: str) -> Example:
    return Example("ranking", SINGLE, answers, ORIGIN)


@pytest.mark.parametrize(
    ("name", "frame", "messages"),
    [
        (name, frame, messages)
        for name, frame, messages in itertools.product(EVERY_TEMPLATE, FRAMES, [SINGLE, MULTI])
        if not (name == "chat:stripping" and frame[0])  # it refuses system messages
    ],
)
def test_a_prompt_has_the_same_ids_in_every_stage(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast],
    name: str,
    frame: tuple[str, str],
    messages: tuple[Message, ...],
) -> None:
    system, source_prefix = frame
    tokenizer = chat_tokenizers[name.removeprefix("chat:")] if name.startswith("chat:") else TOKENIZER
    template = get_template(
        None if name.startswith("chat:") else name, tokenizer, system=system, source_prefix=source_prefix
    )
    stop = template.stop_token_ids[0]
    prompt_ids = encode_prompt(template, tokenizer, messages=messages)
    for train_on in ("all", "last"):
        sft = encode_conversation(template, tokenizer, example=demonstration(messages), train_on=train_on)
        assert sft.input_ids[: sft.prompt_length] == prompt_ids
        assert sft.answer_mask[sft.prompt_length :] == [True] * (len(sft.input_ids) - sft.prompt_length)
        assert sft.input_ids[-1] == stop
    pair = encode_ranking(template, tokenizer, example=Example("ranking", messages, ("很好。", "bad"), ORIGIN))
    assert pair.prompt_ids == prompt_ids
    assert pair.sequence(0).input_ids == sft.input_ids
    assert prompt_ids.count(tokenizer.bos_token_id) == len(template.bos_token_ids) <= 1

    # Chat goes on after the answer: what was said stays as it was, where the template allows it.
    if template.learns_history:
        goes_on = [*messages, Message("assistant", "很好。"), Message("user", "再见")]
        assert encode_prompt(template, tokenizer, messages=goes_on)[: len(sft.input_ids)] == sft.input_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_comes_first_where_the_tokenizer_adds_it_and_nowhere_else(
    plain_tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    with_bos = encode_prompt(get_template(name, TOKENIZER, source_prefix="P"), TOKENIZER, messages=MULTI)
    without = encode_prompt(get_template(name, plain_tokenizer, source_prefix="P"), plain_tokenizer, messages=MULTI)
    assert with_bos == [TOKENIZER.bos_token_id, *without]
    assert TOKENIZER.bos_token_id not in without


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_single_turn_has_the_ids_of_apply_chat_template(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer = chat_tokenizers[name]
    conversation = [{"role": "user", "content": SINGLE[0].content}]
    expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(get_template(None, tokenizer), tokenizer, messages=SINGLE) == expected


def test_the_learned_tokens_of_chatml_are_those_its_generation_marks_name(
    chat_tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = chat_tokenizers["chatml"]
    conversation = [{"role": m.role, "content": m.content} for m in (*MULTI, Message("assistant", "很好。"))]
    marked = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    encoded = encode_conversation(
        get_template(None, tokenizer), tokenizer, example=demonstration(MULTI), train_on="all"
    )
    length = len(encoded.input_ids)  # theirs ends with a line break more
    assert marked["input_ids"][:length] == encoded.input_ids
    assert marked["assistant_masks"][:length] == [int(learned) for learned in encoded.answer_mask]


def test_every_answer_is_learned_with_its_stop_token_or_the_last_one_alone() -> None:
    every = encode_conversation(ZH_QA, TOKENIZER, example=demonstration(MULTI), train_on="all")
    assert describe_first(every, TOKENIZER) == (
        "<s>问：Hello\n答：⟦你好！</s>⟧\n\n问：今天天气怎么样？\n答：⟦很好。</s>⟧"
    )
    last = encode_conversation(ZH_QA, TOKENIZER, example=demonstration(MULTI), train_on="last")
    assert last.input_ids == every.input_ids
    assert learned_spans(last, TOKENIZER)[-1] == ("很好。</s>", True)
    assert len(learned_spans(last, TOKENIZER)) == 2


def test_a_long_prompt_loses_its_oldest_turns_first() -> None:
    system = Message("system", "S")
    short = encode_prompt(ZH_QA, TOKENIZER, messages=[system, *SINGLE])
    fitted = fit_prompt(ZH_QA, TOKENIZER, messages=[system, *MULTI], max_prompt_tokens=len(short) + 3)
    assert fitted.input_ids == short
    assert fitted.truncated


def test_a_long_question_loses_its_head_and_nothing_of_the_frame() -> None:
    messages = [Message("system", "S"), Message("user", "很" * 50 + "end")]
    fitted = fit_prompt(ZH_QA, TOKENIZER, messages=messages, max_prompt_tokens=25)
    text = TOKENIZER.decode(fitted.input_ids)
    assert len(fitted.input_ids) <= 25
    assert text.startswith("<s>S\n\n问：很")
    assert text.endswith("end\n答：")
    assert "\ufffd" not in text


def test_a_budget_below_the_frame_is_refused() -> None:
    with pytest.raises(DataError, match=r"max_source_length: template and system message take \d+ tokens of .* 4"):
        fit_prompt(ZH_QA, TOKENIZER, messages=SINGLE, max_prompt_tokens=4)


def test_a_long_answer_is_cut_between_characters_and_still_ends() -> None:
    answer = "猫" * 20  # three tokens each
    ids, cut = encode_answer(ZH_QA, TOKENIZER, messages=SINGLE, answer=answer, max_answer_tokens=12)
    assert cut
    assert TOKENIZER.decode(ids) == "猫猫猫</s>"
    whole, cut = encode_answer(ZH_QA, TOKENIZER, messages=SINGLE, answer=answer, max_answer_tokens=61)
    assert not cut
    assert TOKENIZER.decode(whole) == answer + "</s>"


TEXT = st.text(alphabet="ab 你好猫\n", min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, TEXT, st.integers(20, 60), st.integers(4, 40))
def test_within_any_budget_bos_frame_and_stop_stay(
    old: str, question: str, answer: str, max_prompt: int, max_answer: int
) -> None:
    messages = [Message("user", old), Message("assistant", old), Message("user", question)]
    budget = token_budget(max_prompt + max_answer, max_prompt_tokens=max_prompt, max_answer_tokens=max_answer)
    encoded = encode_conversation(
        ZH_QA, TOKENIZER, example=demonstration(messages, answer), budget=budget, train_on="all"
    )
    assert encoded.prompt_length <= max_prompt
    assert len(encoded.input_ids) - encoded.prompt_length <= max_answer
    assert encoded.input_ids[0] == TOKENIZER.bos_token_id
    assert encoded.input_ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(encoded.input_ids[: encoded.prompt_length]).endswith("\n答：")
    assert not any(encoded.answer_mask[:1])


def test_budgets_follow_from_the_three_settings() -> None:
    assert token_budget(100).prompt == 50
    assert token_budget(100).answer_room(10) == 90
    assert token_budget(100, max_answer_tokens=20).answer_room(10) == 20
    assert token_budget(100, max_prompt_tokens=90, max_answer_tokens=20).answer_room(90) == 10
    with pytest.raises(SettingsError, match="leave no room for an answer"):
        token_budget(100, max_prompt_tokens=99)


def test_what_happened_to_demonstrations_is_counted_and_said() -> None:
    examples = [demonstration(), demonstration(), demonstration(MULTI), demonstration(answer="猫" * 50)]
    room = len(encode_prompt(ZH_QA, TOKENIZER, messages=SINGLE))
    budget = token_budget(60, max_prompt_tokens=room, max_answer_tokens=20)
    data = encode_demonstrations(ZH_QA, TOKENIZER, examples=examples, budget=budget)
    report = data.report
    assert (report.rows, report.truncated_prompts, report.truncated_answers, report.duplicates) == (4, 1, 1, 2)
    assert report.tokens == sum(len(item.input_ids) for item in data.items)
    assert report.lines()[1:] == [
        "prompts cut at their beginning to fit: 1",
        "answers cut at their end to fit (they keep their stop token): 1",
        "rows that repeat an earlier row (kept): 2",
    ]


def test_rankings_that_are_equal_once_cut_are_dropped_counted_and_placed() -> None:
    same_head = "猫" * 10
    examples = [ranking(same_head + "a", same_head + "b"), ranking("a", "b", "b"), ranking("c", "d")]
    data = encode_rankings(
        ZH_QA, TOKENIZER, examples=examples, budget=token_budget(60, max_prompt_tokens=40, max_answer_tokens=10)
    )
    assert data.examples == examples[1:]
    assert [len(item.answers) for item in data.items] == [2, 2]
    assert (len(data.report.identical_rankings), data.report.repeated_answers) == (1, 1)
    with pytest.raises(DataError, match="the same once they are cut"):
        encode_rankings(
            ZH_QA, TOKENIZER, examples=examples[:1], budget=token_budget(60, max_prompt_tokens=40, max_answer_tokens=10)
        )


def test_scores_stay_with_their_answers_and_ties_that_are_left_are_dropped() -> None:
    def scored(answers: tuple[str, ...], scores: tuple[float, ...]) -> Example:
        return Example("ranking", SINGLE, answers, ORIGIN, scores=scores)

    examples = [scored(("a", "a", "b", "c"), (4.0, 3.0, 2.0, 2.0)), scored(("猫" * 9, "b", "猫" * 8), (1.0, 1.0, 0.0))]
    budget = token_budget(60, max_prompt_tokens=40, max_answer_tokens=10)  # of the second row, a tie is left
    data = encode_rankings(ZH_QA, TOKENIZER, examples=examples, budget=budget)
    (item,) = data.items
    assert (item.scores, item.pairs) == ((4.0, 2.0, 2.0), [(0, 1), (0, 2)])
    assert data.report.identical_rankings == (ORIGIN,)


def test_prompts_are_encoded_as_one_by_one() -> None:
    examples = [demonstration(), demonstration(MULTI)]
    data = encode_prompts(ZH_QA, TOKENIZER, examples=examples, max_prompt_tokens=100)
    assert [item.input_ids for item in data.items] == [
        encode_prompt(ZH_QA, TOKENIZER, messages=example.prompt) for example in examples
    ]


def test_text_is_packed_into_blocks_with_an_end_after_each_document(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = pack_text(["你好", "Hello"], plain_tokenizer, block_size=4)
    stream = [token for block in blocks for token in block.input_ids]
    assert plain_tokenizer.decode(stream) == "你好</s>Hello</s>"
    assert [len(block.input_ids) for block in blocks[:-1]] == [4] * (len(blocks) - 1)
    assert all(all(block.answer_mask) for block in blocks)
    with_bos = [token for block in pack_text(["你好", "Hello"], TOKENIZER, block_size=4) for token in block.input_ids]
    assert TOKENIZER.decode(with_bos) == "<s>你好</s><s>Hello</s>"


def test_a_last_block_of_one_token_is_left_out(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    num_tokens = len(plain_tokenizer("你好")["input_ids"]) + 1
    blocks = pack_text(["你好"], plain_tokenizer, block_size=num_tokens - 1)
    assert [len(block.input_ids) for block in blocks] == [num_tokens - 1]
    assert len(pack_text([], plain_tokenizer, block_size=4)) == 0


def test_half_a_character_is_refused_with_its_row() -> None:
    from duiqi.data.encoded import encode_demonstrations
    from duiqi.data.templates import get_template
    from duiqi.errors import DataError
    from duiqi.types import Example, Message, Origin

    tokenizer = build_tokenizer()
    rows = [
        Example("demonstration", (Message("user", "q"),), (answer,), Origin("set", "rows.jsonl", line))
        for line, answer in ((3, "a"), (4, "cut \ud83d"))
    ]
    with pytest.raises(DataError, match=r"rows\.jsonl:4: found half a character"):
        encode_demonstrations(get_template("zh_qa", tokenizer), tokenizer, examples=rows, budget=token_budget(64))

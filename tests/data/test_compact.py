"""Rows in flat arrays are the rows that were put in, and rows encoded together those encoded one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHAT_TEMPLATES, build_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from duiqi.data.compact import RankingWriter, Repetitions, SequenceWriter
from duiqi.data.encoded import ROWS_AT_ONCE, encode_demonstrations, encode_rankings, pack_text
from duiqi.data.encoding import EncodedRanking, EncodedSequence, TokenBudget, fit_prompt, token_budget
from duiqi.data.named_templates import TEMPLATES
from duiqi.data.templates import Template, get_template
from duiqi.types import Example, Message, Origin

FAST = build_tokenizer(adds_bos=True)
CHATTING = {name: build_tokenizer(chat_template=text, adds_bos=True) for name, text in CHAT_TEMPLATES.items()}
EVERY_TEMPLATE = [
    *((get_template(name, FAST), FAST) for name in TEMPLATES),
    *((get_template(None, tokenizer), tokenizer) for tokenizer in CHATTING.values()),
]
TEXT = st.text(alphabet="ab 你好猫\n<|im_end|>", min_size=1, max_size=40).filter(lambda text: text.strip() != "")
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5)


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python: a token for every character."""

    def __init__(self) -> None:
        self._known = {character: number for number, character in enumerate("<abcdefgh你好 \n问答：")}
        super().__init__(eos_token="</s>", unk_token="<", pad_token="<")

    @property
    def vocab_size(self) -> int:
        return len(self._known)

    def get_vocab(self) -> dict[str, int]:
        return self._known | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._known.get(token, 0)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self._known)[index]


def conversation(turns: Sequence[str], *, answers: Sequence[str]) -> Example:
    roles = itertools.cycle(("user", "assistant"))
    prompt = tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))  # type: ignore[arg-type]
    return Example("ranking", prompt, tuple(answers), Origin("set"), margin=0.5)


def one_by_one(
    template: Template, tokenizer: PreTrainedTokenizerFast, example: Example
) -> tuple[list[int], list[bool]]:
    """Ids and mask of a demonstration from single calls of the tokenizer, without any budget."""

    def ids_of(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    stop = template.stop_token_ids[0]
    ids = list(template.bos_token_ids)
    mask = [False] * len(ids)
    for segment in template.prompt_segments(example.prompt):
        own = ids_of(segment.text) + ([stop] if segment.learned else [])
        ids, mask = ids + own, mask + [segment.learned] * len(own)
    answer = [*ids_of(template.answer_segment(example.prompt, example.answers[0]).text), stop]
    frame = list(template.opening_token_ids)
    return ids + frame + answer, mask + [False] * len(frame) + [True] * len(answer)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(TEXT, min_size=1, max_size=5), TEXT), min_size=1, max_size=4))
def test_rows_encoded_together_are_those_encoded_segment_by_segment(rows: list[tuple[list[str], str]]) -> None:
    examples = [conversation(turns if len(turns) % 2 else turns[:-1], answers=[answer]) for turns, answer in rows]
    budget = TokenBudget(total=10_000, prompt=5_000)
    for template, tokenizer in EVERY_TEMPLATE:
        found = encode_demonstrations(template, tokenizer, examples=examples, budget=budget, train_on="all").items
        assert [(item.input_ids, item.answer_mask) for item in found] == [
            one_by_one(template, tokenizer, example) for example in examples
        ]


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, min_size=3, max_size=3), TEXT, TEXT, st.integers(150, 180), st.integers(12, 30))
def test_a_row_is_cut_the_same_whoever_stands_beside_it(
    turns: list[str], better: str, worse: str, max_prompt: int, max_answer: int
) -> None:
    example = conversation([text * 8 for text in turns], answers=[better * 3, worse * 3])
    budget = token_budget(max_prompt + 30, max_prompt_tokens=max_prompt, max_answer_tokens=max_answer)
    beside = [conversation(["abc"], answers=["a", "b"]), example, conversation(["好"], answers=["好", "你"])]
    for template, tokenizer in EVERY_TEMPLATE:
        items = encode_demonstrations(template, tokenizer, examples=beside, budget=budget).items
        alone = encode_demonstrations(template, tokenizer, examples=[example], budget=budget).items[0]
        assert items[1] == alone
        prompt = fit_prompt(template, tokenizer, messages=example.prompt, max_prompt_tokens=max_prompt)
        assert alone.input_ids[: alone.prompt_length] == prompt.input_ids


def test_a_ranking_has_the_ids_of_its_answers_as_demonstrations() -> None:
    example, budget = conversation(["a", "好", "b"], answers=["你好", "cab", "猫"]), token_budget(600)
    for template, tokenizer in EVERY_TEMPLATE:
        (ranking,) = encode_rankings(template, tokenizer, examples=[example], budget=budget).items
        alone = [replace(example, answers=(answer,)) for answer in example.answers]
        rows = encode_demonstrations(template, tokenizer, examples=alone, budget=budget).items
        assert [ranking.sequence(i).input_ids for i in range(3)] == [row.input_ids for row in rows]


def test_a_tokenizer_written_in_python_gives_its_own_ids() -> None:
    tokenizer = Letters()
    template = get_template("zh_qa", tokenizer)
    examples = [conversation(["你好"], answers=["abc"]), conversation(["h"], answers=["好 "])]
    items = encode_demonstrations(template, tokenizer, examples=examples, budget=token_budget(40)).items
    assert [tokenizer.decode(item.input_ids) for item in items] == ["问：你好\n答：abc</s>", "问：h\n答：好 </s>"]


def test_more_rows_than_are_tokenised_together_keep_their_order() -> None:
    words = Tokenizer(models.WordLevel({"<": 0, **{str(n): n for n in range(1, 5000)}}, unk_token="<"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="4999", pad_token="<")
    template = get_template("raw", tokenizer)
    examples = [conversation([str(n)], answers=["1"]) for n in range(1, ROWS_AT_ONCE + 500)]
    items = encode_demonstrations(template, tokenizer, examples=examples, budget=token_budget(40)).items
    assert [item.input_ids[0] for item in items] == list(range(1, ROWS_AT_ONCE + 500))
    stream = [token for block in pack_text(["7"] * 3000, tokenizer, block_size=100) for token in block.input_ids]
    assert stream == [7, 4999] * 3000


@given(st.lists(st.tuples(TOKENS, TOKENS, st.booleans(), st.booleans())))
def test_sequences_come_back_as_they_were_put_in(rows: list[tuple[list[int], list[int], bool, bool]]) -> None:
    sequences = [
        EncodedSequence(prompt + answer, [False] * len(prompt) + [True] * len(answer), len(prompt), cut, shortened)
        for prompt, answer, cut, shortened in rows
    ]
    writer = SequenceWriter()
    for sequence in sequences:
        writer.add(sequence)
    assert list(writer.rows()) == sequences
    assert writer.rows()[-1:] == sequences[-1:]
    with pytest.raises(IndexError):
        writer.rows()[len(rows)]


@given(st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=2, max_size=4), st.floats(-9, 9), st.text(max_size=3))))
def test_rankings_come_back_as_they_were_put_in(rows: list[tuple[list[int], list[list[int]], float, str]]) -> None:
    rankings = [
        EncodedRanking(
            prompt,
            answers,
            bool(number % 2),
            number,
            number + 1,
            margin=margin,
            source=source,
            scores=tuple(margin - place for place in range(len(answers))) if number % 3 else (),
        )
        for number, (prompt, answers, margin, source) in enumerate(rows)
    ]
    writer = RankingWriter()
    for ranking in rankings:
        writer.add(ranking)
    assert list(writer.rows()) == rankings


def test_repetitions_are_counted_and_borders_between_parts_matter() -> None:
    seen = Repetitions()
    for parts in (([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3]), ([1, 2, 3],)):
        seen.look_at(*parts)
    assert seen.count == 1


def test_a_row_knows_its_margin_and_where_it_comes_from() -> None:
    example = replace(conversation(["你好"], answers=["a", "b"]), origin=Origin("pairs_zh"))
    template = get_template("zh_qa", FAST)
    (item,) = encode_rankings(template, FAST, examples=[example], budget=token_budget(100)).items
    assert (item.margin, item.source) == (0.5, "pairs_zh")

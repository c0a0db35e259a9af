"""Golden token ids and masks of every named template, in Chinese and English, of one turn and of several.

`goldens/templates.json` holds them as they were when each template's text was checked by hand. The tokenizer has a
token for every byte, so an id that differs is a byte that differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import pytest
from tiny_tokenizers import build_letter_tokenizer
from transformers import PreTrainedTokenizerFast

from duiqi.data.encoding import describe_first, encode_conversation
from duiqi.data.named_templates import TEMPLATES
from duiqi.data.templates import get_template
from duiqi.types import Example, Message, Origin


class Golden(TypedDict):
    """What a conversation becomes."""

    text: str
    """Decoded, the learned parts between ⟦ and ⟧."""
    ids: list[int]
    stretches: list[int]
    """How many tokens are not learned, then learned, and so on by turns."""


FILE = Path(__file__).parent / "goldens" / "templates.json"
GOLDENS: dict[str, dict[str, Golden]] = json.loads(FILE.read_text(encoding="utf-8"))
ORIGIN = Origin("goldens")


def conversation(*said: str) -> Example:
    *prompt, answer = said
    roles = ("user", "assistant")
    turns = [Message(roles[place % 2], text) for place, text in enumerate(prompt)]  # type: ignore[arg-type]
    return Example("demonstration", tuple(turns), (answer,), ORIGIN)


CONVERSATIONS = {
    "zh single": conversation("你好", "好"),
    "zh multi": conversation("你好", "好", "再见", "走好"),
    "en single": conversation("hi", "hello"),
    "en multi": conversation("hi", "hello", "bye", "see you"),
}
ENDS = {"chatml": "<|im_end|>", "qwen": "<|im_end|>"}
"""What ends an answer where it is not </s>."""


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    return build_letter_tokenizer(adds_bos=True)


def encoded(name: str, which: str, tokenizer: PreTrainedTokenizerFast) -> Golden:
    template = get_template(name, tokenizer)
    sequence = encode_conversation(template, tokenizer, example=CONVERSATIONS[which], train_on="all")
    stretches, learned = [0], False
    for is_learned in sequence.answer_mask:
        if is_learned != learned:
            stretches.append(0)
            learned = is_learned
        stretches[-1] += 1
    return {"text": describe_first(sequence, tokenizer), "ids": sequence.input_ids, "stretches": stretches}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("which", CONVERSATIONS)
def test_ids_and_masks_are_the_golden_ones(letters: PreTrainedTokenizerFast, name: str, which: str) -> None:
    assert encoded(name, which, letters) == GOLDENS[name][which]


def test_there_is_a_golden_for_every_template_and_conversation() -> None:
    assert set(GOLDENS) == set(TEMPLATES)
    assert all(set(own) == set(CONVERSATIONS) for own in GOLDENS.values())
    assert sum(map(len, GOLDENS.values())) == 52


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("which", CONVERSATIONS)
def test_a_golden_is_the_bytes_of_its_text_and_learns_answers_with_their_end(
    letters: PreTrainedTokenizerFast, name: str, which: str
) -> None:
    golden = GOLDENS[name][which]
    marked = golden["text"]
    assert letters(marked.replace("⟦", "").replace("⟧", ""), add_special_tokens=False)["input_ids"] == golden["ids"]
    end, answers = ENDS.get(name, "</s>"), [turn.content for turn in CONVERSATIONS[which].prompt[1::2]]
    said = [*answers, CONVERSATIONS[which].answers[0]]
    if not get_template(name, letters).learns_history:
        said = said[-1:]
    lead = "\n " if name == "chatglm3" else ""  # ChatGLM3 has a line of metadata before every text
    learned = [stretch.partition("⟧")[0] for stretch in marked.split("⟦")[1:]]
    assert learned == [f"{lead}{answer}{end}" for answer in said]
    assert marked.startswith("<s>")
    assert golden["stretches"][1::2] == [len(letters(text, add_special_tokens=False)["input_ids"]) for text in learned]

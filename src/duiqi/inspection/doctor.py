"""The questions whose answers decide whether training can work at all: one conversation is enough to ask them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from duiqi.data.encoding import encode_conversation, encode_prompt, encode_ranking
from duiqi.data.templates import PROBE, TOKENIZER_TEMPLATE, Template
from duiqi.errors import DataError, DuiqiError, TemplateError
from duiqi.inspection.findings import Answer
from duiqi.inspection.lens import Lens
from duiqi.models.tokenizers import refuse_larger_vocabulary
from duiqi.types import Example, Message, Origin

_ANGLE_MARKER = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜\s]+｜>|<(?:start|end)_of_turn>|<reserved_\d+>")
_CHAT_NAME = re.compile(r"chat|instruct|[-_]it\b|assistant|[-_](?:sft|dpo|rlhf|ppo)\b|vicuna|alpaca", re.IGNORECASE)
_TURNS = (Message("user", "你好"), Message("assistant", "好的 yes"), Message("user", "再见 bye"))
_ROW = Example("ranking", _TURNS, ("a fine answer 好", "another 坏"), Origin("probe"))


Verdict = tuple[bool, str]
"""Whether all is well, and what was found."""


def _end_not_learned(lens: Lens, template: Template) -> Verdict:
    sequence = encode_conversation(template, lens.tokenizer, example=_ROW)
    stop, last = template.stop_tokens[0], sequence.input_ids[-1]
    if last is None or last == lens.tokenizer.unk_token_id:
        return False, f"{stop} is no token of this tokenizer"
    if last != template.stop_token_ids[0] or not sequence.answer_mask[-1]:
        return False, f"the last learned token is {lens.tokenizer.convert_ids_to_tokens(last)}, not {stop}"
    return True, f"an answer ends with {stop} (token {last}), and it is learned"


def _end_is_padding(lens: Lens, template: Template) -> Verdict:
    stop, padding = template.stop_token_ids[0], lens.tokenizer.pad_token_id
    if stop == padding:
        return False, f"{template.stop_tokens[0]} ends answers and is padded with"
    return True, f"{lens.tokenizer.pad_token} is padded with"


def _double_bos(lens: Lens, template: Template) -> Verdict:
    ids, bos = encode_prompt(template, lens.tokenizer, messages=_TURNS), lens.tokenizer.bos_token_id
    count = next((place for place, token in enumerate(ids) if token != bos), len(ids))
    if bos is not None and count > 1:
        return False, f"a sequence begins with {count} {lens.tokenizer.bos_token}"
    begins = f"a sequence begins with one {lens.tokenizer.bos_token}" if count == 1 and bos is not None else ""
    return True, begins or "a sequence begins without a BOS token"


def _no_bos(lens: Lens, template: Template) -> Verdict:
    bos, plain = lens.tokenizer.bos_token_id, lens.tokenizer("a")["input_ids"]
    begins = encode_prompt(template, lens.tokenizer, messages=_TURNS)[:1]
    if bos is not None and plain[:1] == [bos] and begins != [bos]:
        return False, f"the tokenizer puts {lens.tokenizer.bos_token} before a text, the template does not"
    return True, "as the tokenizer begins a text"


def _no_answer_opening(lens: Lens, template: Template) -> Verdict:
    """What the template writes between the prompt and the text of an answer, a policy would have to write itself."""
    opening = template.answer_segment(_TURNS, PROBE).text.partition(PROBE)[0]
    if opening.strip():
        return False, f"{opening!r} stands between a prompt and its answer"
    ids = encode_prompt(template, lens.tokenizer, messages=_TURNS)
    return True, f"a prompt of PPO ends with {lens.tokenizer.decode(ids[-4:])!r}"


def _prompts_differ(lens: Lens, template: Template) -> Verdict:
    prompt = encode_prompt(template, lens.tokenizer, messages=_ROW.prompt)
    sequence = encode_conversation(template, lens.tokenizer, example=_ROW)
    ranking = encode_ranking(template, lens.tokenizer, example=_ROW)
    if not (prompt == sequence.input_ids[: sequence.prompt_length] == ranking.prompt_ids):
        return False, "the stages write the same prompt differently"
    parts = [
        f"{name} {text!r}" for name, text in (("system", template.system), ("prefix", template.source_prefix)) if text
    ]
    return True, f"the same tokens in every stage and in chat{', with ' + ', '.join(parts) if parts else ''}"


def _split_marker(lens: Lens, template: Template) -> Verdict:
    text = "".join(segment.text for segment in template.prompt_segments(_TURNS)) + template.stop_tokens[0]
    markers = list(dict.fromkeys(_ANGLE_MARKER.findall(text)))
    split = [mark for mark in markers if len(lens.tokenizer(mark, add_special_tokens=False)["input_ids"]) > 1]
    if split:
        return False, f"{', '.join(split)}: {'is' if len(split) == 1 else 'are'} cut into several tokens"
    return True, f"{', '.join(markers)}: one token each" if markers else "the template writes none"


def _unknown_in_template(lens: Lens, template: Template) -> Verdict:
    unknown, ids = lens.tokenizer.unk_token_id, []
    for segment in template.prompt_segments([Message("user", "a")]):
        ids += lens.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
    if unknown is not None and unknown in ids:
        return False, f"some of what the template {template.name} writes becomes {lens.tokenizer.unk_token}"
    return True, "the tokenizer knows all that the template writes"


def _history_not_learned(lens: Lens, template: Template) -> Verdict:  # noqa: ARG001 (every question is asked of both)
    if template.learns_history:
        return True, "every answer of a conversation can be learned"
    return False, f"the template {template.name} writes earlier answers unlike the last one"


def _other_template(lens: Lens, template: Template) -> Verdict:
    if lens.difference:
        return False, f"{lens.name} was trained with another one: {lens.difference}"
    return True, f"{template.name}, as in training" if lens.is_run else f"{template.name}; nothing was trained yet"


def _base_with_chat_template(lens: Lens, template: Template) -> Verdict:
    name = Path(lens.base).name
    if lens.is_run or template.name != TOKENIZER_TEMPLATE or _CHAT_NAME.search(name):
        return (
            True,
            f"{name} is written to in {'its own way' if template.name == TOKENIZER_TEMPLATE else template.name}",
        )
    return False, f"{name} does not call itself a chat model, and its tokenizer has a chat template"


def _chat_without_its_template(lens: Lens, template: Template) -> Verdict:
    has_own = bool(lens.tokenizer.chat_template) and _CHAT_NAME.search(Path(lens.base).name)
    if has_own and not lens.is_run and template.name != TOKENIZER_TEMPLATE:
        return False, f"{Path(lens.base).name} has learned its own chat template, and {template.name} is asked for"
    return True, f"the template is {template.name}"


def _other_stop(lens: Lens, template: Template) -> Verdict:
    file = Path(lens.base) / "generation_config.json"
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    except (ValueError, AttributeError):
        return False, f"{file} cannot be read"
    ends = named if isinstance(named, list) else [named]
    if named is None or template.stop_token_ids[0] in ends:
        return (
            True,
            f"other tools stop at {template.stop_tokens[0]} too" if named is not None else "nothing says otherwise",
        )
    written = ", ".join(str(lens.tokenizer.convert_ids_to_tokens(number)) for number in ends)
    return False, f"generation_config.json stops at {written}, answers end with {template.stop_tokens[0]}"


def _no_row_for_token(lens: Lens, _template: Template) -> Verdict:
    if not (Path(lens.base) / "config.json").is_file():
        return True, "there is no config.json to compare with"
    try:
        beyond = list(refuse_larger_vocabulary(lens.tokenizer, lens.base))
    except DuiqiError as error:
        return False, str(error).partition("\n")[0]
    return True, beyond[0] if beyond else "every token has a row in the embedding"


def examine(lens: Lens) -> dict[str, Answer]:
    """The answer to every question, by the kind of finding that a bad one is."""
    if lens.template is None:
        return {"no_template": Answer("is there a template?", False, lens.refusal)}
    found = {}
    for kind, (asks, find) in QUESTIONS.items():
        try:
            is_fine, text = find(lens, lens.template)
        except (TemplateError, DataError) as error:
            is_fine, text = False, error.problem
        found[kind] = Answer(asks, is_fine, text)
    return found


QUESTIONS: dict[str, tuple[str, Callable[[Lens, Template], Verdict]]] = {
    "end_not_learned": ("is the end of an answer learned?", _end_not_learned),
    "end_is_padding": ("is padding another token than the end?", _end_is_padding),
    "double_bos": ("does a sequence begin once?", _double_bos),
    "no_bos": ("does it begin as the base is used to?", _no_bos),
    "no_answer_opening": ("does a prompt of PPO open the answer?", _no_answer_opening),
    "prompts_differ": ("is a prompt the same in every stage?", _prompts_differ),
    "other_template": ("is it the template of the run?", _other_template),
    "split_marker": ("are the template's marks whole tokens?", _split_marker),
    "unknown_in_template": ("does the tokenizer know the template?", _unknown_in_template),
    "history_not_learned": ("are earlier answers learned too?", _history_not_learned),
    "base_with_chat_template": ("has a base model a chat template?", _base_with_chat_template),
    "chat_without_its_template": ("is a chat model written to as it learned?", _chat_without_its_template),
    "other_stop": ("do other tools stop where answers end?", _other_stop),
    "no_row_for_token": ("has every token a row in the embedding?", _no_row_for_token),
}
"""By the kind of finding that a bad answer is."""

"""How a conversation becomes text: named templates for base models, and the tokenizer's own chat template.

A template renders segments, and `encoding` tokenises them one by one, so a prompt has the same token ids whether it is
trained on, scored, sampled from or chatted with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from duiqi.data.named_templates import TEMPLATES, Segment, refuse_other_vocabulary
from duiqi.errors import TemplateError, did_you_mean
from duiqi.guards.limits import at_most, within_memory
from duiqi.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GMASK_TOKEN = "[gMASK]"
"""What GLM's tokenizers put where text is to be continued: before a prompt, or (ChatGLM-6B) behind it."""
TOKENIZER_TEMPLATE = "tokenizer"
"""The name of the tokenizer's own chat template."""
RENDERING_SECONDS, RENDERING_BYTES, RENDERED_LENGTH = 10.0, 2**30, 2**24
"""What a chat template may take to write one conversation, and how many characters it may write."""
RENDERINGS_KEPT = 64
"""What a chat template wrote last: taking a row apart asks for the same beginnings again and again."""
PROBE = "probe"
"""An answer given to a chat template to see what it writes after it."""


DESCRIBED = ("name", "system", "source_prefix", "style_sha256")
"""What duiqi.json must tell of a template."""


class _Frame(TypedDict):
    stop_tokens: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    bos_token_ids: tuple[int, ...]
    opening_token_ids: tuple[int, ...]


class Style(Protocol):
    """What distinguishes one template from another: how turns are written down."""

    @property
    def learns_history(self) -> bool:
        """Whether the earlier answers of a prompt stand as they were given, so that they can be learned too."""

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """A conversation that ends with the user, up to where the answer begins."""

    def answer(self, messages: Sequence[Message], text: str) -> Segment:
        """The answer to a prompt, which the stop token follows."""

    def identity(self) -> str:
        """The text that makes this style what it is."""


@dataclass(frozen=True, slots=True)
class Template:
    """A style, what the user put around it, and the tokens of one tokenizer that frame it."""

    name: str
    style: Style
    system: str
    """System message for conversations that have none."""
    source_prefix: str
    """Text before every rendered prompt."""
    stop_tokens: tuple[str, ...]
    """What ends an answer. The first one is learned; generation stops at any of them."""
    stop_token_ids: tuple[int, ...] = field(compare=False)
    bos_token_ids: tuple[int, ...] = field(compare=False)
    """The ids that begin every sequence, or nothing."""
    opening_token_ids: tuple[int, ...] = field(default=(), compare=False)
    """The ids that open every answer and are not part of it: `[gMASK] <sop>` for ChatGLM-6B, mostly nothing."""

    @property
    def learns_history(self) -> bool:
        """Whether every answer of a conversation can be learned; otherwise only the last one.

        False for templates that write earlier turns unlike the last one, or do not end them with a stop token.
        """
        return self.style.learns_history

    def prompt_segments(self, messages: Sequence[Message]) -> list[Segment]:
        """A conversation that ends with the user, up to where the answer begins."""
        if not messages or messages[-1].role != "user":
            raise TemplateError("a prompt must end with the user's turn", where=f"template: {self.name}")
        first, *others = self.style.prompt(self._with_system(messages))
        return [Segment(self.source_prefix + first.text, first.learned), *others]

    def answer_segment(self, messages: Sequence[Message], text: str) -> Segment:
        """The answer to the prompt `messages`."""
        return self.style.answer(self._with_system(messages), text)

    def to_dict(self) -> dict[str, str | list[str]]:
        """What duiqi.json keeps, to be read back by `from_dict` and compared by `difference`."""
        return {
            "name": self.name,
            "system": self.system,
            "source_prefix": self.source_prefix,
            "stop_tokens": list(self.stop_tokens),
            "style_sha256": hashlib.sha256(self.style.identity().encode()).hexdigest(),
        }

    def fingerprint(self) -> str:
        """The same for two templates exactly when they render the same text."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def difference(self, other: Template) -> str:
        """What differs between two templates, as a sentence; empty when nothing does."""
        ours, theirs = self.to_dict(), other.to_dict()
        differing = [key for key in ours if ours[key] != theirs[key]]
        if "name" in differing:
            differing.remove("style_sha256")
        parts = [
            "the text of the chat template" if key == "style_sha256" else f"{key} ({ours[key]!r} and {theirs[key]!r})"
            for key in differing
        ]
        return f"the templates differ in {', '.join(parts)}" if parts else ""

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self.system or messages[0].role == "system":
            return messages
        return [Message("system", self.system), *messages]


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """A tokenizer's own chat template, taken apart by comparing what it renders with and without an answer."""

    source: str
    """The Jinja text of the chat template."""
    render: Callable[[Sequence[Message], bool], str] = field(repr=False, compare=False)
    """(messages, whether an answer is to follow) -> text, without a leading BOS token."""
    ending: str
    """What the template writes between an answer and the token that ends it, for instance a space."""
    stop_text: str
    """The special token with which the template ends an answer; empty when it writes none."""

    @property
    def learns_history(self) -> bool:
        return len(self.prompt([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])) > 1

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """Turn by turn where the template leaves earlier turns as they were; otherwise as one text."""
        segments, done = [], ""
        whole = self.render(messages, True)
        for position, message in enumerate(messages):
            if message.role != "assistant":
                continue
            opening = self.render(messages[:position], True)
            answer = self.answer(messages[:position], message.content)
            after_answer = opening + answer.text + self.stop_text
            if not opening.startswith(done) or not whole.startswith(after_answer):
                return [Segment(whole, learned=False)]
            segments += [Segment(opening[len(done) :], learned=False), answer]
            done = after_answer
        return [*segments, Segment(whole[len(done) :], learned=False)]

    def answer(self, messages: Sequence[Message], text: str) -> Segment:
        """What the template adds for an answer, up to its end token: some templates put a header before the text."""
        opening = self.render(messages, True)
        full = self.render([*messages, Message("assistant", text)], False)
        if full.startswith(opening):
            for written in (text, text.strip()):  # many templates strip what they are given
                start = full.rfind(written + self.ending + self.stop_text, len(opening))
                if start >= 0:
                    return Segment(full[len(opening) : start] + written + self.ending, learned=True)
        return Segment(text + self.ending, learned=True)

    def identity(self) -> str:
        return self.source


def get_template(
    name: str | None, tokenizer: PreTrainedTokenizerBase, *, system: str = "", source_prefix: str = ""
) -> Template:
    """The named template, or the tokenizer's own chat template when `name` is None or "tokenizer".

    A named template begins with the tokenizer's BOS token where the tokenizer adds one by itself, and stands between
    the special tokens that a GLM's tokenizer adds; a chat template begins as it renders, as in
    `tokenizer.apply_chat_template`.

    Raises:
        TemplateError: The name is unknown, the tokenizer has no chat template, or it lacks tokens the template needs.
    """
    if name is None or name == TOKENIZER_TEMPLATE:
        return _tokenizer_template(tokenizer, system=system, source_prefix=source_prefix)
    if name not in TEMPLATES:
        raise TemplateError(
            f"unknown template {name!r}; known are {', '.join([TOKENIZER_TEMPLATE, *TEMPLATES])}",
            where="template",
            remedy=did_you_mean(name, TEMPLATES) or "choose one of these",
        )
    style = TEMPLATES[name]
    refuse_other_vocabulary(name, tokenizer)
    return Template(
        name=name,
        style=style,
        system=system,
        source_prefix=source_prefix,
        **_frame(tokenizer, stops=style.stops, around=_added_around(tokenizer)),
    )


def from_dict(data: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `Template.to_dict` described, on a tokenizer.

    Raises:
        TemplateError: The template of that name now renders another text than the one described, or none is described.
    """
    if odd := [key for key in DESCRIBED if not isinstance(data.get(key), str)]:
        raise TemplateError(
            f"the template's {odd[0]} is not told",
            where="duiqi.json",
            remedy="copy the file again from the run that wrote it",
        )
    template = get_template(data["name"], tokenizer, system=data["system"], source_prefix=data["source_prefix"])
    if template.to_dict()["style_sha256"] != data["style_sha256"]:
        raise TemplateError(
            f"the template {data['name']} has changed since this model was trained",
            where="duiqi.json",
            remedy="use the tokenizer files saved with the model, or train it again",
        )
    return template


def _tokenizer_template(tokenizer: PreTrainedTokenizerBase, *, system: str, source_prefix: str) -> Template:
    if not tokenizer.chat_template:
        raise TemplateError(
            "the tokenizer has no chat template",
            where="template",
            remedy=f"name one of {', '.join(TEMPLATES)}",
        )
    bos_token = tokenizer.bos_token or ""

    def render_with_bos(messages: Sequence[Message], expects_answer: bool) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        return render_chat(tokenizer, conversation, expects_answer=expects_answer)

    @lru_cache(maxsize=RENDERINGS_KEPT)
    def render_once(messages: tuple[Message, ...], expects_answer: bool) -> str:
        return render_with_bos(messages, expects_answer).removeprefix(bos_token)

    def render(messages: Sequence[Message], expects_answer: bool) -> str:
        return render_once(tuple(messages), expects_answer)

    tail = render([Message("user", "a"), Message("assistant", PROBE)], False).rpartition(PROBE)[2]
    ending, stop_text = _split_at_special_token(tail, tokenizer)
    begins = bool(bos_token) and render_with_bos([Message("user", "a")], True).startswith(bos_token)
    return Template(
        name=TOKENIZER_TEMPLATE,
        style=ChatStyle(str(tokenizer.get_chat_template()), render, ending, stop_text),
        system=system,
        source_prefix=source_prefix,
        **_frame(tokenizer, stops=(stop_text,), around=((tokenizer.bos_token_id,) if begins else (), ())),
    )


def render_chat(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Mapping[str, str]], *, expects_answer: bool
) -> str:
    """What the tokenizer's chat template writes.

    The template may come from anywhere: transformers renders it in Jinja's immutable sandbox, where it can reach
    nothing but the conversation, and here it gets limited time and memory.

    Raises:
        TemplateError: It refuses the conversation, fails, or takes or writes too much.
    """
    try:
        with at_most(RENDERING_SECONDS), within_memory(RENDERING_BYTES):
            text = tokenizer.apply_chat_template(
                list(conversation), tokenize=False, add_generation_prompt=expects_answer
            )
    except Exception as error:  # a template is a program: it can raise whatever Python does
        raise TemplateError(
            f"the chat template refuses the conversation: {str(error) or type(error).__name__}", where="template"
        ) from error
    if not isinstance(text, str) or len(text) > RENDERED_LENGTH:
        raise TemplateError(f"the chat template writes more than {RENDERED_LENGTH:,} characters", where="template")
    return text


def _split_at_special_token(tail: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What precedes the first special token in `tail`, and that token; nothing and nothing where there is none."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    places = [(tail.find(token), -len(token), token) for token in {*added, *tokenizer.all_special_tokens}]
    found = min(((place, length, token) for place, length, token in places if place >= 0), default=None)
    return (tail[: found[0]], found[2]) if found else ("", "")


_Around = tuple[tuple[int, ...], tuple[int, ...]]


def _frame(tokenizer: PreTrainedTokenizerBase, *, stops: Sequence[str], around: _Around) -> _Frame:
    """The tokens around a rendered conversation, those that end an answer, and the tokenizer's own end."""
    known = tuple(dict.fromkeys(token for token in (*stops, tokenizer.eos_token) if token))
    if not known:
        raise TemplateError(
            "the tokenizer has no end token (eos_token), so no answer could end",
            where="tokenizer",
            remedy="set eos_token in tokenizer_config.json",
        )
    return {
        "stop_tokens": known,
        "stop_token_ids": tuple(tokenizer.convert_tokens_to_ids(list(known))),
        "bos_token_ids": around[0],
        "opening_token_ids": around[1],
    }


def _added_around(tokenizer: PreTrainedTokenizerBase) -> _Around:
    """What the tokenizer adds before a prompt (BOS, or a GLM's special tokens) and, a GLM's alone, behind it."""
    whole = tokenizer("a")["input_ids"]
    if tokenizer.convert_tokens_to_ids(GMASK_TOKEN) in (None, tokenizer.unk_token_id):
        begins = tokenizer.bos_token_id is not None and whole[:1] == [tokenizer.bos_token_id]
        return (tokenizer.bos_token_id,) if begins else (), ()
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:start]), tuple(whole[start + len(bare) :])

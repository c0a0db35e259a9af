"""How a conversation becomes text: named templates for base models, and the tokenizer's own chat template.

A template renders segments, and `encoding` tokenises them one by one, so a prompt has the same token ids whether it is
trained on, scored, sampled from or chatted with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import jinja2

from duiqi.errors import TemplateError, did_you_mean
from duiqi.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GMASK_TOKEN = "[gMASK]"
"""What GLM's tokenizers put where text is to be continued: before a prompt, or (ChatGLM-6B) behind it."""
TOKENIZER_TEMPLATE = "tokenizer"
"""The name of the tokenizer's own chat template."""
PROBE = "probe"
"""An answer given to a chat template to see what it writes after it."""


class _Frame(TypedDict):
    stop_tokens: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    bos_token_ids: tuple[int, ...]
    opening_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text that is tokenised on its own."""

    text: str
    learned: bool
    """An answer: the template's stop token follows it, and both can be learned."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedStyle:
    """A template for base models, written as Python format strings with {system}, {content} and {round}."""

    first: str
    """The first turn of the user in a conversation with a system message."""
    turn: str
    """Every other turn of the user, up to where the answer begins."""
    between: str
    """What stands between an answer and the next turn."""
    first_round: int = 0
    only_turn: str | None = None
    """A conversation of a single turn, where that is written differently."""
    default_system: str = ""
    stops_history: bool = True
    """Whether the stop token ends the earlier answers too, not the last one alone."""
    needs: tuple[str, ...] = ()
    """Tokens that the tokenizer must know as one; the last one ends an answer. Nothing: the tokenizer's own end."""

    @property
    def learns_history(self) -> bool:
        return self.stops_history and self.only_turn is None

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends an answer, where it is not the tokenizer's own end."""
        return self.needs[-1:]

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        system = messages[0].content if messages[0].role == "system" else self.default_system
        turns = [message for message in messages if message.role != "system"]
        if len(turns) == 1 and self.only_turn is not None and not system:
            return [Segment(self.only_turn.format(content=turns[0].content), learned=False)]
        segments, text = [], ""
        for position in range(0, len(turns), 2):
            frame = self.first if position == 0 and system else self.turn
            text += frame.format(system=system, content=turns[position].content, round=self.first_round + position // 2)
            if position + 1 < len(turns):
                answer = turns[position + 1].content
                if self.learns_history:
                    segments += [Segment(text, learned=False), Segment(answer, learned=True)]
                    text = self.between
                else:
                    text += answer + self.between
        return [*segments, Segment(text, learned=False)]

    def answer(self, _messages: Sequence[Message], text: str) -> Segment:
        return Segment(text, learned=True)

    def identity(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStyle:
    """Turns that begin with a special token for who speaks, each in a segment of its own (ChatGLM3).

    A tokenizer may so read special tokens in segments that are nothing else, and leave what users write as text.
    """

    needs: tuple[str, ...] = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "</s>")
    stops: tuple[str, ...] = ("</s>", "<|user|>", "<|observation|>")
    before_text: str = "\n "
    """Behind the role stands a line of metadata, which is empty. ChatGLM3 encodes what follows on its own, which puts a
    space before it."""
    learns_history: bool = False
    """Earlier answers are ended by the next role, not by the stop token."""

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        segments = [Segment("", learned=False)]
        for message in messages:
            segments.append(Segment(f"<|{message.role}|>", learned=False))
            segments.append(Segment(self._led(message.content), learned=False))
        return [*segments, Segment("<|assistant|>", learned=False)]

    def answer(self, _messages: Sequence[Message], text: str) -> Segment:
        return Segment(self._led(text), learned=True)

    def _led(self, text: str) -> str:
        """An answer that was drawn has its empty line already."""
        return text if text.startswith(self.before_text) else self.before_text + text

    def identity(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


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
    for token in style.needs:
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise TemplateError(
                f"the tokenizer has no token {token}, which the template {name} needs",
                where="template",
                remedy="choose a template without special tokens, for example zh_qa, qa or human_assistant",
            )
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
        TemplateError: The template of that name now renders another text than the one described.
    """
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
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=expects_answer)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refuses the conversation: {error}", where="template") from error
        return str(text)

    def render(messages: Sequence[Message], expects_answer: bool) -> str:
        return render_with_bos(messages, expects_answer).removeprefix(bos_token)

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


ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
CHATML = NamedStyle(
    first="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
    turn="<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
    between="\n",
    needs=("<|im_start|>", "<|im_end|>"),
)
BAICHUAN2 = NamedStyle(
    first="{system}<reserved_106>{content}<reserved_107>",
    turn="<reserved_106>{content}<reserved_107>",
    between="",
    stops_history=False,
    needs=("<reserved_106>", "<reserved_107>", "</s>"),
)
TEMPLATES: dict[str, NamedStyle | RoleStyle] = {
    "zh_qa": NamedStyle(first="{system}\n\n问：{content}\n答：", turn="问：{content}\n答：", between="\n\n"),
    "qa": NamedStyle(
        first="{system}\n\nQuestion: {content}\n\nAnswer: ",
        turn="Question: {content}\n\nAnswer: ",
        between="\n\n",
    ),
    "human_assistant": NamedStyle(
        first="{system}\n\nHuman: {content}\n\nAssistant: ",
        turn="Human: {content}\n\nAssistant: ",
        between="\n\n",
    ),
    "alpaca": NamedStyle(
        first="{system}\n\n### Instruction:\n{content}\n\n### Response:\n",
        turn="### Instruction:\n{content}\n\n### Response:\n",
        between="\n\n",
        default_system=ALPACA_SYSTEM,
    ),
    "chatglm": NamedStyle(
        first="{system}\n[Round {round}]\n问：{content}\n答：",
        turn="[Round {round}]\n问：{content}\n答：",
        between="\n",
        only_turn="{content}",
        stops_history=False,
    ),
    "chatglm2": NamedStyle(
        first="{system}\n\n[Round {round}]\n\n问：{content}\n\n答：",
        turn="[Round {round}]\n\n问：{content}\n\n答：",
        between="\n\n",
        first_round=1,
        stops_history=False,
    ),
    "chatglm3": RoleStyle(),
    "llama2_zh": NamedStyle(
        first="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{content} [/INST]",
        turn="[INST] {content} [/INST]",
        between="",
        default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    ),
    "chatml": CHATML,
    "qwen": replace(CHATML, default_system="You are a helpful assistant."),
    "baichuan": replace(  # the same two numbers, 195 and 196, in another vocabulary
        BAICHUAN2,
        first="{system}<reserved_102>{content}<reserved_103>",
        turn="<reserved_102>{content}<reserved_103>",
        needs=("<reserved_102>", "<reserved_103>", "</s>"),
    ),
    "baichuan2": BAICHUAN2,
    "raw": NamedStyle(first="{system}\n{content}", turn="{content}", between="\n"),
}

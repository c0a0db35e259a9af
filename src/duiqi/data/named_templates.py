"""The named templates, for base models that have none of their own: how each writes down turns, and what it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from duiqi.errors import TemplateError
from duiqi.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text that is tokenised on its own."""

    text: str
    learned: bool
    """An answer: the template's stop token follows it, and both can be learned."""


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
OTHER_BAICHUAN = {"baichuan": "baichuan2", "baichuan2": "baichuan"}
BAICHUAN_USER_ID = 195
"""What begins a user's turn in both vocabularies, each of which has a name of its own for it."""


def refuse_other_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template whose tokens the tokenizer does not have, or has with other meanings.

    The vocabularies of Baichuan-13B and Baichuan2 have each other's tokens; which begin a turn, their ids tell.

    Raises:
        TemplateError: The tokenizer lacks a token, or the id that begins a user's turn is the other template's token.
    """
    for token in TEMPLATES[name].needs:
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise TemplateError(
                f"the tokenizer has no token {token}, which the template {name} needs",
                where="template",
                remedy="choose a template without special tokens, for example zh_qa, qa or human_assistant",
            )
    own, other = TEMPLATES[name], TEMPLATES.get(OTHER_BAICHUAN.get(name, ""))
    if other is None or tokenizer.convert_tokens_to_ids(own.needs[0]) == BAICHUAN_USER_ID:
        return
    if tokenizer.convert_tokens_to_ids(other.needs[0]) == BAICHUAN_USER_ID:
        raise TemplateError(
            f"token {BAICHUAN_USER_ID}, which begins a user's turn, is {other.needs[0]} in this vocabulary, "
            f"and {own.needs[0]} in that of the template {name}",
            where="template",
            remedy=f"set template: {OTHER_BAICHUAN[name]}",
        )

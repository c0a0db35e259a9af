"""The tokenizer of the Baichuan models: SentencePiece pieces as they are, and the two tokens that begin turns.

Released chat models name these two by id (`user_token_id`, `assistant_token_id` in generation_config.json; 195 and 196
in both vocabularies), because their names differ: <reserved_102> and <reserved_103> in Baichuan-13B, <reserved_106> and
<reserved_107> in Baichuan2, where <reserved_102> is another token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend
from transformers.utils import is_sentencepiece_available

from duiqi.models.ports.files import optional_file

CHAT_TEMPLATE = (
    "{{%- for message in messages %}}"
    "{{%- if message['role'] == 'user' %}}{{{{- {user} }}}}"
    "{{%- elif message['role'] == 'assistant' %}}{{{{- {assistant} }}}}{{%- endif %}}"
    "{{{{- message['content'] }}}}"
    "{{%- if message['role'] == 'assistant' and loop.last %}}{{{{- eos_token }}}}{{%- endif %}}"
    "{{%- endfor %}}"
    "{{%- if add_generation_prompt %}}{{{{- {assistant} }}}}{{%- endif %}}"
)
"""The system's text, then every turn behind its token; earlier answers have no end, the last one has."""


TURN_TOKENS = ("<reserved_102>", "<reserved_103>", "<reserved_106>", "<reserved_107>")
"""What begins turns in the one vocabulary or the other."""

_PATTERNS = {(False, False): "none", (True, False): "bos", (False, True): "eos", (True, True): "bos_eos"}
"""What transformers calls adding the first, the last, or both tokens."""


class BaichuanTokenizer(SentencePieceBackend):  # type: ignore[misc]  # transformers is untyped for us
    """Reads `tokenizer.model` with SentencePiece, whose settings (spaces, digits, bytes) are in the file.

    Args:
        vocab_file: Path of `tokenizer.model`.
        add_bos_token: Begin with the token of the beginning. The released files all say no; where none does, yes.
        add_eos_token: End with the token of the end.
        special_tokens_pattern: Both in one word, as they are saved: transformers leaves the two out of what it writes.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    chat_template: str | None

    def __init__(
        self,
        vocab_file: str | None = None,
        *,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        special_tokens_pattern: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        **kwargs: Any,
    ) -> None:
        kwargs.pop("auto_map", None)  # code that is not run here
        pattern = special_tokens_pattern or _PATTERNS[add_bos_token, add_eos_token]
        kwargs["legacy"] = True  # text is encoded as it is, with or without a leading space as the file says
        super().__init__(
            vocab_file=vocab_file,
            special_tokens_pattern=pattern,
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            **kwargs,
        )
        self.init_kwargs["special_tokens_pattern"] = pattern

    def find_whole(self, names: Iterable[str]) -> None:
        """Let these pieces be found whole in text."""
        self.add_tokens([AddedToken(name, normalized=False, special=True) for name in names], special_tokens=True)

    def mark_turns(self, user: int, assistant: int) -> None:
        """Let these two tokens be found whole in text, and chat templates be theirs."""
        names = self.convert_ids_to_tokens([user, assistant])
        self.find_whole(names)
        if not self.chat_template:
            quoted = [json.dumps(name, ensure_ascii=False) for name in names]
            self.chat_template = CHAT_TEMPLATE.format(user=quoted[0], assistant=quoted[1])

    def _convert_id_to_token(self, index: int) -> str:
        """The piece; nothing for an id of the model's that the vocabulary does not have."""
        return str(self.sp_model.id_to_piece(index)) if 0 <= index < self.vocab_size else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces, bytes put together to characters; special tokens stand as they are written."""
        text, pieces = "", list[str]()
        special = self.added_tokens_encoder
        for token in tokens:
            if token in special:
                text += self.sp_model.decode(pieces) + token
                pieces = []
            else:
                pieces.append(token)
        return text + str(self.sp_model.decode(pieces))


def load(path: str) -> BaichuanTokenizer:
    """The tokenizer in a directory or on the hub; that of a chat model knows which tokens begin turns.

    With a base model, which may be trained to chat, all tokens that could begin turns are found whole.

    Raises:
        ImportError: SentencePiece is not installed.
    """
    if not is_sentencepiece_available():
        raise ImportError("tokenizer.model is read by SentencePiece: pip install 'duiqi[legacy]'")
    tokenizer = BaichuanTokenizer.from_pretrained(path)
    assert isinstance(tokenizer, BaichuanTokenizer)
    if (turns := _turn_tokens(path)) is not None:
        tokenizer.mark_turns(*turns)
    else:
        pieces = tokenizer.sp_model
        tokenizer.find_whole(name for name in TURN_TOKENS if pieces.piece_to_id(name) != pieces.unk_id())
    return tokenizer


def _turn_tokens(path: str) -> tuple[int, int] | None:
    """Ids of the tokens that begin a turn of the user and an answer; None: not a chat model's directory."""
    file = optional_file(path, "generation_config.json")
    if file is None:
        return None
    with open(file, encoding="utf-8") as opened:
        given = json.load(opened)
    user, assistant = given.get("user_token_id"), given.get("assistant_token_id")
    return (user, assistant) if isinstance(user, int) and isinstance(assistant, int) else None

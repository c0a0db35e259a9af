"""The SentencePiece tokenizers of ChatGLM-6B (ice_text.model) and of ChatGLM2-6B and ChatGLM3-6B (tokenizer.model)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from transformers import AddedToken, PreTrainedTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import is_sentencepiece_available

from duiqi.models.ports.files import optional_file

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""ChatGLM3's; ChatGLM2 has embeddings at their ids too, and never learned them."""


class _SentencePieceTokenizer(PreTrainedTokenizer):  # type: ignore[misc]  # transformers is untyped for us
    """What both have in common.

    Special tokens are read where a text is nothing but special tokens, as templates write them. Spelled inside other
    text they are what SentencePiece makes of them: text in ChatGLM2 and 3, where nobody can so speak in another's role.
    """

    vocab_files_names: ClassVar[dict[str, str]]
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # code that is not run here
        self.vocab_file = vocab_file
        self.pieces = _read_pieces(vocab_file)  # before transformers' own preparations, which ask for the vocabulary
        super().__init__(vocab_file=vocab_file, **kwargs)

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        added: dict[str, int] = self.added_tokens_encoder
        return self._own_vocab() | added

    def _own_vocab(self) -> dict[str, int]:
        raise NotImplementedError

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """The tokens of a text: pieces, or the special tokens that it consists of."""
        specials = "|".join(map(re.escape, sorted(self.all_special_tokens, key=len, reverse=True)))
        if re.fullmatch(f"(?:{specials})+", text):
            return re.findall(specials, text)
        added = [token for token, index in self._added_tokens_encoder.items() if index >= self.vocab_size]
        parts = re.split(f"({'|'.join(map(re.escape, added))})", text) if added else [text]
        return [token for part in parts for token in ([part] if part in added else self._tokenize(part))]

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        pieces: list[str] = self.pieces.encode(text, out_type=str)
        return pieces

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        special = set(self.all_special_tokens)
        return "".join(
            self._spell(list(run)) if is_special else str(self.pieces.decode_pieces(list(run)))
            for is_special, run in groupby(tokens, key=special.__contains__)
        )

    def _spell(self, special_tokens: list[str]) -> str:
        raise NotImplementedError

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the SentencePiece model."""
        name = self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        if not target.exists() or not target.samefile(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _read_pieces(vocab_file: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(vocab_file))


class ChatGLMTokenizer(_SentencePieceTokenizer):
    """ChatGLM-6B's: `text [gMASK] <sop>`, and for a pair `text [gMASK] <sop> answer <eop>`.

    Args:
        num_image_tokens: Added to every id; 20000 in checkpoints from before 6 April 2023.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "ice_text.model"}

    def __init__(
        self,
        vocab_file: str,
        *,
        num_image_tokens: int = 0,
        do_lower_case: bool = False,
        remove_space: bool = False,
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        end_token: str = "</s>",
        mask_token: str = "[MASK]",
        gmask_token: str = "[gMASK]",
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        **kwargs: Any,
    ) -> None:
        if do_lower_case or remove_space:
            raise ValueError("do_lower_case and remove_space are off in every released ChatGLM, and not implemented")
        self.num_image_tokens = num_image_tokens
        super().__init__(
            vocab_file,
            num_image_tokens=num_image_tokens,
            bos_token=bos_token,
            eos_token=eos_token,
            end_token=end_token,
            mask_token=mask_token,
            gmask_token=gmask_token,
            pad_token=pad_token,
            unk_token=unk_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Ids of image tokens and pieces; the model's embedding has more rows."""
        return self.num_image_tokens + int(self.pieces.get_piece_size())

    def _own_vocab(self) -> dict[str, int]:
        size = self.pieces.get_piece_size()
        return {self.pieces.id_to_piece(index): index + self.num_image_tokens for index in range(size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(" {2,80}", lambda run: f"<|blank_{len(run[0])}|>", text)
        return super()._tokenize(text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; padding is dropped."""
        text = super().convert_tokens_to_string([token for token in tokens if token != self.pad_token])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda blank: " " * int(blank[1]), text)

    def _spell(self, special_tokens: list[str]) -> str:
        return "".join(special_tokens)

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.pieces.piece_to_id(token)) + self.num_image_tokens

    def _convert_id_to_token(self, index: int) -> str:
        place = index - self.num_image_tokens
        return str(self.pieces.id_to_piece(place)) if 0 <= place < self.pieces.get_piece_size() else ""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A prompt, or a prompt with its answer."""
        gmask, sop, eop = self.convert_tokens_to_ids([self.gmask_token, self.bos_token, self.eos_token])
        return [*token_ids_0, gmask, sop] + ([] if token_ids_1 is None else [*token_ids_1, eop])


class ChatGLM2Tokenizer(_SentencePieceTokenizer):
    """ChatGLM2-6B's and ChatGLM3-6B's: `[gMASK] sop text`, and for a pair `[gMASK] sop text answer </s>`.

    Special tokens other than `</s>` are no pieces; their ids follow those of the pieces.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    numbered: ClassVar[tuple[str, ...]] = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *ROLE_TOKENS)

    def __init__(
        self,
        vocab_file: str,
        *,
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        pad_token: str = "<unk>",
        extra_special_tokens: Sequence[str | AddedToken] = (),
        **kwargs: Any,
    ) -> None:
        others = [token for token in extra_special_tokens if str(token) not in self.numbered]
        super().__init__(
            vocab_file,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            extra_special_tokens=[*self.numbered, *others],
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Ids of pieces and special tokens; the model's embedding has more rows."""
        return int(self.pieces.get_piece_size()) + len(self.numbered)

    def get_command(self, token: str) -> int:
        """The id of a special token by its original name; those of SentencePiece are <bos>, <eos>, <pad>, <unk>.

        Raises:
            KeyError: There is no such token.
        """
        own = {
            "<bos>": self.pieces.bos_id(),
            "<eos>": self.pieces.eos_id(),
            "<pad>": self.pieces.unk_id(),
            "<unk>": self.pieces.unk_id(),
        }
        return int((own | self._numbers())[token])

    def _numbers(self) -> dict[str, int]:
        return {token: self.pieces.get_piece_size() + offset for offset, token in enumerate(self.numbered)}

    def _own_vocab(self) -> dict[str, int]:
        size = self.pieces.get_piece_size()
        return {self.pieces.id_to_piece(index): index for index in range(size)} | self._numbers()

    def _convert_token_to_id(self, token: str) -> int:
        if token in ("<bos>", "<eos>", "<pad>", *self.numbered):
            return self.get_command(token)
        return int(self.pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        place = index - self.pieces.get_piece_size()
        if place < 0:
            return str(self.pieces.id_to_piece(index))
        return self.numbered[place] if place < len(self.numbered) else ""

    def _spell(self, special_tokens: list[str]) -> str:
        del special_tokens  # they are decoded to nothing, as they always were
        return ""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A prompt, or a prompt with its answer."""
        ids = [self.get_command("[gMASK]"), self.get_command("sop"), *token_ids_0]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.get_command("<eos>")]

    def encode_turn(self, role: str, content: str, *, metadata: str = "") -> list[int]:
        """One turn as ChatGLM3 reads it: the role, a line of metadata, the content, each encoded on its own."""
        parts = (f"{metadata}\n", content)
        return [self.get_command(f"<|{role}|>"), *(index for part in parts for index in self.pieces.encode(part))]

    def encode_chat(
        self, turns: Sequence[Mapping[str, str]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """ChatGLM3's prompt for turns with `role`, `content` and perhaps `metadata`, up to where the answer begins.

        Args:
            tools: Described to the model behind the content of every system turn.
        """
        ids = [self.get_command("[gMASK]"), self.get_command("sop")]
        for turn in turns:
            content = turn["content"]
            if turn["role"] == "system" and tools:
                content += "\n" + json.dumps(list(tools), indent=4, ensure_ascii=False)
            ids += self.encode_turn(turn["role"], content, metadata=turn.get("metadata", ""))
        return [*ids, self.get_command("<|assistant|>")]


def load(path: str) -> ChatGLMTokenizer | ChatGLM2Tokenizer:
    """The tokenizer in a directory or on the hub; all three releases call it ChatGLMTokenizer.

    A chat template that lies beside it is left out. Its text would be read as text, special tokens and all: the
    templates chatglm2 and chatglm3 write them apart from what users write.

    Raises:
        ImportError: SentencePiece is not installed.
    """
    if not is_sentencepiece_available():
        raise ImportError("this tokenizer is read by SentencePiece: pip install 'duiqi[legacy]'")
    first = optional_file(path, ChatGLMTokenizer.vocab_files_names["vocab_file"])
    if first is None:
        tokenizer = ChatGLM2Tokenizer.from_pretrained(path)
    else:
        tokenizer = ChatGLMTokenizer.from_pretrained(path, **_image_tokens(path, first))
    assert isinstance(tokenizer, ChatGLMTokenizer | ChatGLM2Tokenizer)
    tokenizer.chat_template = None
    return tokenizer


def _image_tokens(path: str, vocab_file: str) -> dict[str, int]:
    """How many ids stand before those of ChatGLM-6B's pieces, where only the model's config.json tells.

    Tokenizers from before 6 April 2023 say nothing; the model beside them has `<sop>` 20000 ids later.
    """
    config_file = optional_file(path, "config.json")
    if "num_image_tokens" in get_tokenizer_config(path) or config_file is None:
        return {}
    sop = json.loads(Path(config_file).read_text(encoding="utf-8")).get("bos_token_id")
    return {} if sop is None else {"num_image_tokens": sop - _read_pieces(vocab_file).piece_to_id("<sop>")}

"""What a tokenizer lacks, and what stands in for it: an end token, a padding token that is not the end, rows of the
embedding for all its tokens. Whatever is chosen here is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from duiqi.errors import ModelError

END_TOKENS = ("</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<eos>")
"""What usually ends a text, where a tokenizer does not say which of its tokens does."""
PADDING_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>")
"""What is usually padded with; the last one where another token ends an answer."""
_UNUSED = re.compile(r"reserved|unused|extra", re.IGNORECASE)


def settle(tokenizer: PreTrainedTokenizerBase, path: str) -> Iterator[str]:
    """Give a tokenizer the end and padding tokens that it lacks; yields what was done, in plain sentences.

    Raises:
        ModelError: It has no vocabulary, or nothing in it could end an answer.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if vocabulary.keys() <= set(tokenizer.all_special_tokens):
        raise ModelError(
            "the tokenizer has no vocabulary, only special tokens: files are missing",
            where=path,
            remedy="copy tokenizer.json (or tokenizer.model, vocab.json and merges.txt) of the base model there",
        )
    if tokenizer.eos_token_id is None:
        token, source = _find_end(tokenizer, vocabulary, path)
        tokenizer.eos_token = token
        yield f"the tokenizer names no end token: answers end with {token}, {source}"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _find_padding(tokenizer, vocabulary) or tokenizer.eos_token
        yield f"the tokenizer names no padding token: {tokenizer.pad_token} is padded with"
    elif tokenizer.pad_token_id == tokenizer.eos_token_id and (other := _find_padding(tokenizer, vocabulary)):
        tokenizer.pad_token = other
        yield f"the tokenizer's padding token is its end token {tokenizer.eos_token}: {other} is padded with instead"
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield (
            f"the end token {tokenizer.eos_token} is padded with too, for there is no other: duiqi tells them apart, "
            "but transformers' own classifiers would read a reward model's score before the end"
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Every special token as it is written."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _find_end(tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int], path: str) -> tuple[str, str]:
    """The token that ends a text, and how it is known."""
    for name in ("generation_config.json", "config.json"):
        for number in _end_ids(Path(path) / name):
            token = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
            if token is not None:
                return str(token), f"as its {name} says"
    template = str(tokenizer.chat_template or "")
    usual = [token for token in END_TOKENS if token in vocabulary]
    if written := [token for token in usual if token in template]:
        return written[0], "as its chat template does"
    if usual:
        return usual[0], "which usually ends a text"
    raise ModelError(
        "the tokenizer has no end token (eos_token), so answers could never end",
        where=path,
        remedy="set eos_token in its tokenizer_config.json",
    )


def _end_ids(file: Path) -> list[int]:
    """`eos_token_id` of a JSON file, one number or several; nothing where there is none."""
    if not file.is_file():
        return []
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return []  # a broken config.json is refused where the model is loaded
    found: Any = fields.get("eos_token_id") if isinstance(fields, dict) else None
    return [number for number in (found if isinstance(found, list) else [found]) if isinstance(number, int)]


def _find_padding(tokenizer: PreTrainedTokenizerBase, vocabulary: Iterable[str]) -> str | None:
    """A token that never stands in a text: one that is meant for padding, the unknown one, or one without a use."""
    known = set(vocabulary)
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    unused = [token for token in special if _UNUSED.search(token)]
    for token in (*PADDING_TOKENS, tokenizer.unk_token, *unused):
        if token in known and token != tokenizer.eos_token:
            return str(token)
    return None


def refuse_larger_vocabulary(tokenizer: PreTrainedTokenizerBase, base: str) -> Iterator[str]:
    """Refuse a tokenizer with more tokens than its model's embedding has rows, before the model is loaded.

    A token that transformers' class of this name adds by itself, and the tokenizer's file does not have, is not
    refused; it is yielded in a plain sentence.

    Args:
        base: Directory or hub name of the model.

    Raises:
        ModelError: A token has no row.
    """
    config, _ = PreTrainedConfig.get_config_dict(base)
    text = config.get("text_config") or {}
    rows = config.get("padded_vocab_size") or config.get("vocab_size") or text.get("vocab_size")
    if not isinstance(rows, int):
        return
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    file = Path(base) / "tokenizer.json"
    stated = file.read_text(encoding="utf-8") if file.is_file() else None
    own = [pair for pair in beyond if stated is None or json.dumps(pair[1], ensure_ascii=False) in stated]
    if own:
        raise ModelError(
            f"the tokenizer has {own[-1][0] + 1} tokens, but the embedding only {rows} rows (none for {own[0][1]})",
            where=base,
            remedy="set resize_vocab: true to give every token a row, or use the tokenizer that the base came with",
        )
    if beyond:
        names = ", ".join(token for _, token in beyond)
        yield f"{type(tokenizer).__name__} knows {names}, for which the embedding has no row: no text may contain it"

"""The tokenizer of the built-in world: byte-level BPE with role marks, in the files transformers reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from duiqi.playground.template import CHAT_TEMPLATE, END, PADDING, ROLE_MARKS

HAN_CHARACTER = Regex(r"[\u4e00-\u9fff]")
"""Every Chinese character is a token of its own, so a name is read the same way wherever it stands."""


def train_tokenizer(texts: Iterable[str], directory: Path, *, vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a tokenizer and save it; `directory` then loads with AutoTokenizer.

    Every special token is one id: <|end|> ends each assistant turn and each document, <|pad|> is another, nothing
    marks the beginning. Any text at all can be encoded, for bytes are tokens of last resort.

    Args:
        texts: What to train on.
        directory: Where the files go; made when missing.
        vocab_size: The most tokens, special ones and 256 bytes included.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(HAN_CHARACTER, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PADDING, END, *ROLE_MARKS.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=list(ROLE_MARKS.values()),
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return tokenizer

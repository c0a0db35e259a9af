"""A byte-level tokenizer with faults to order."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace(
    "message['role'] + '\n' +",
    "message['role'] + '\n' + ('<think>\n\n</think>\n\n' if message['role'] == 'assistant' and loop.last else '') +",
)
TWICE_BEGUN = "{{ bos_token + bos_token }}" + CHATML
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def build(
    *,
    chat_template: str | None = CHATML,
    marks: bool = True,
    adds_bos: bool = False,
    has_padding: bool = True,
    words: tuple[str, ...] = (),
    lowers: bool = False,
) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens.

    Args:
        marks: Whether <|im_start|> is one token.
        has_padding: Whether there is a token to pad with besides the one that ends answers.
        lowers: Whether capitals become small letters.
        words: Without any, every byte is known; else these letters alone, and <unk> for the others.
    """
    spare = ["<pad>", "<unk>"] if has_padding else []
    special = ["<s>", "</s>", "<|im_end|>", *(["<|im_start|>"] if marks else []), *spare]
    vocabulary = {token: number for number, token in enumerate([*special, *(words or ALPHABET)])}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>" if has_padding else None))
    if not words:
        bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bare.decoder = decoders.ByteLevel()
    if lowers:
        bare.normalizer = normalizers.Lowercase()
    bare.add_special_tokens([AddedToken(token, special=True) for token in special])
    if adds_bos:
        bare.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"pad_token": "<pad>", "unk_token": "<unk>"} if has_padding else {"pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="<|im_end|>", **named)
    tokenizer.chat_template = chat_template
    return tokenizer

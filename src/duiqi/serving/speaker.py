"""A model ready to answer: weights, tokenizer, and the template it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from duiqi.data.encoding import encode_prompt
from duiqi.data.templates import Template, from_dict, get_template
from duiqi.models.lineage import read_stack
from duiqi.models.loading import (
    choose_device,
    choose_dtype,
    load_causal_lm,
    load_tokenizer,
    locate,
    refuse_other_base,
    refuse_reward_model,
)
from duiqi.models.shared_base import SharedBase
from duiqi.models.vocabulary import grow_vocabulary
from duiqi.rollouts.decoder import Decoder
from duiqi.types import Message


@dataclass(frozen=True)
class Speaker:
    """Everything needed to turn a conversation into an answer."""

    base: SharedBase
    tokenizer: PreTrainedTokenizerBase
    template: Template
    decoder: Decoder = field(repr=False)

    def prompt_ids(self, messages: Sequence[Message], *, max_prompt_tokens: int | None = None) -> list[int]:
        """The tokens of a conversation, the same as in training."""
        return encode_prompt(self.template, self.tokenizer, messages=messages, max_prompt_tokens=max_prompt_tokens)


def open_speaker(
    path: str,
    *,
    template: str | None = None,
    system: str | None = None,
    source_prefix: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
) -> Speaker:
    """Open a model, adapter or run; what it was trained with is the default for everything not given.

    Raises:
        ModelError: Nothing loadable is at `path`, it is a reward model, or its base has changed.
        TemplateError: No template is known for it.
    """
    where = locate(path)
    refuse_reward_model(where, path)
    tokenizer = load_tokenizer(where.leaf)
    chosen = choose_device(device)
    model = load_causal_lm(where.base, device=chosen, dtype=choose_dtype(dtype, chosen))
    refuse_other_base(where, path, model=model)
    grow_vocabulary(model, where.vocabulary)
    base = SharedBase(model, name=where.base)
    if where.adapter is not None:
        *below, own = read_stack(where.adapter)
        base.seat_saved_adapter("policy", own, trainable=False, above=below)
    else:
        base.seat_bare("policy")
    described = where.card.template if where.card is not None else None
    trained = from_dict(described, tokenizer) if described else None
    spoken = get_template(
        template or (trained.name if trained else None),
        tokenizer,
        system=system if system is not None else (trained.system if trained else ""),
        source_prefix=source_prefix if source_prefix is not None else (trained.source_prefix if trained else ""),
    )

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    decoder = Decoder(
        base,
        decode=decode,
        stop_token_ids=spoken.stop_token_ids,
        pad_token_id=int(tokenizer.pad_token_id),
        max_batch_rows=batch_size,
        active=lambda: base.acting("policy"),
    )
    return Speaker(base, tokenizer, spoken, decoder)

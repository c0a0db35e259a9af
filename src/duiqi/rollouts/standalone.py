"""A reward model opened from its own files: its network, its tokenizer, its template."""

from __future__ import annotations

from collections.abc import Sequence

from duiqi.data.encoding import encode_conversation, encode_spelled_out, token_budget
from duiqi.data.templates import from_dict, get_template
from duiqi.models.loading import load_tokenizer, locate
from duiqi.models.reward import load_standalone_reward
from duiqi.models.tokenizers import special_tokens
from duiqi.rollouts.scoring import Conversation, ModelScorer
from duiqi.types import Example, Origin


def open_reward_model(
    path: str,
    *,
    name: str,
    cutoff_len: int,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 32,
    trust_remote_code: bool = False,
    spell_out: bool = False,
) -> ModelScorer:
    """Open a reward model so that it scores text with the template it was trained with.

    Args:
        path: A reward-model run, or any transformers sequence classifier with one label.
        name: What logs call it.
        cutoff_len: Longest prompt and answer together, in tokens.
        spell_out: Whether special tokens that stand in an answer are read as the letters they are written in. A policy
            can write those; the tokens themselves, such as an end in the middle, it cannot.

    Raises:
        ModelError: It is not a reward model.
        TemplateError: It says nothing of its template and its tokenizer has none.
    """
    where = locate(path)
    tokenizer = load_tokenizer(where.leaf, trust_remote_code=trust_remote_code)
    described = where.card.template if where.card is not None else None
    template = from_dict(described, tokenizer) if described else get_template(None, tokenizer)
    budget = token_budget(cutoff_len)
    marks = special_tokens(tokenizer)

    def encode(prompt: Conversation, answer: str) -> Sequence[int]:
        if spell_out and any(mark in answer for mark in marks):
            return encode_spelled_out(template, tokenizer, messages=prompt, answer=answer, budget=budget)
        example = Example(kind="demonstration", prompt=prompt, answers=(answer,), origin=Origin(name))
        return encode_conversation(template, tokenizer, example=example, budget=budget).input_ids

    reward = load_standalone_reward(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    return ModelScorer(reward, encode, name=name, batch_size=batch_size, marks=marks)

"""The rows of a run as numbers of tokens, all where they are few, else of a sample; and what a step sees of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from transformers import PreTrainedTokenizerBase

from duiqi.data.encoded import encode_demonstrations, encode_rankings, pack_text
from duiqi.data.encoding import encode_prompt
from duiqi.data.feedback import encode_feedback
from duiqi.data.loading import Need
from duiqi.data.order import BatchPlan
from duiqi.models.attention_kernels import SHORT
from duiqi.packing.batch import Family
from duiqi.packing.budget import deal
from duiqi.settings.stages import DPOConfig, PPOConfig, PretrainConfig, RewardModelConfig, SFTConfig, StageConfig
from duiqi.stages.dpo import data_need
from duiqi.stages.materials import count_steps, make_budget, make_template, make_tokenizer, read_rows
from duiqi.stages.reward_model import with_negatives
from duiqi.stages.start import Start
from duiqi.types import Example

SAMPLE = 512
"""Rows that are encoded; of more, so many are taken at equal distances."""
STEPS_LOOKED_AT = 200
"""Steps in which the fullest micro-batch is searched."""

NEEDS: dict[type[StageConfig], Need] = {
    PretrainConfig: "text",
    SFTConfig: "demonstration",
    RewardModelConfig: "ranking",
    PPOConfig: "prompt",
}
"""What each stage asks of its data; dpo asks for what its loss learns from."""


@dataclass(frozen=True)
class Rows:
    """The data of a run."""

    num_rows: int
    """To learn from: rows, or blocks of text."""
    num_held_out: int
    families: list[Family]
    """Of the sample. PPO's have an answer of the greatest length."""
    is_complete: bool
    """Whether the sample is everything."""
    per_step: int
    """Rows of an optimizer step; PPO: prompts of a round."""
    total_steps: int
    seed: int
    tokenizer: PreTrainedTokenizerBase

    @property
    def tokens_per_row(self) -> float:
        """Mean number of tokens that are computed for a row."""
        return mean(family.num_tokens for family in self.families)

    def step_families(self, step: int) -> list[Family]:
        """The rows of a step (from 0): those that the run will take, where they are all known; else as many others."""
        if self.is_complete:
            rows = BatchPlan(self.num_rows, batch_size=self.per_step, seed=self.seed).rows(step)
            return [self.families[row] for row in rows]
        dice = random.Random(f"plan:{self.seed}:{step}")
        return dice.choices(self.families, k=min(self.per_step, self.num_rows))

    def steps(self) -> Iterator[list[Family]]:
        """The rows of the steps that are looked at."""
        return map(self.step_families, range(min(self.total_steps, STEPS_LOOKED_AT)))


def count_rows(config: StageConfig, start: Start) -> Rows:
    """Read the data of a run and encode a sample of it.

    Raises:
        UserError: Data, tokenizer or template are missing or do not fit.
    """
    need = data_need(config) if isinstance(config, DPOConfig) else NEEDS[type(config)]
    examples, _ = read_rows(config.data, need, seed=config.optimizer.seed)
    if isinstance(config, RewardModelConfig):
        examples = with_negatives(examples, config)
    tokenizer = make_tokenizer(config.model, start)
    sample = _spread(examples.train)
    families = _encoded(config, sample, tokenizer, start)
    is_complete = len(sample) == len(examples.train)
    num_rows = len(examples.train)
    if isinstance(config, PretrainConfig):
        num_rows = max(1, round(len(families) * len(examples.train) / len(sample)))
    elif is_complete:
        num_rows = len(families)  # rankings of which nothing is left are dropped
    if isinstance(config, PPOConfig):
        per_step = config.ppo.rollout_batch_size // config.ppo.answers_per_prompt
    else:
        per_step = config.batch.per_device_train_batch_size * config.batch.gradient_accumulation_steps
    return Rows(
        num_rows=num_rows,
        num_held_out=len(examples.held_out),
        families=families,
        is_complete=is_complete,
        per_step=per_step,
        total_steps=count_steps(num_rows, per_step, config.optimizer),
        seed=config.optimizer.seed,
        tokenizer=tokenizer,
    )


def fullest(families: Sequence[Family], *, max_tokens: int, packed: bool) -> list[Family]:
    """The micro-batch of these rows that asks for most."""
    return [families[index] for index in deal(families, max_tokens=max_tokens, packed=packed)[0]]


def computed_tokens(families: Sequence[Family], *, packed: bool) -> int:
    """Tokens that a micro-batch of these rows computes, padding included."""
    if packed:
        return sum(family.num_tokens for family in families)
    return sum(len(family.answers) for family in families) * max(family.longest for family in families)


def measurable(families: Sequence[Family], *, packed: bool) -> list[Family]:
    """Families like these that can be computed without content: no shape may depend on what a tensor holds.

    Packed: short segments, which a CPU attends together and fills up where they are of different lengths, all get
    their mean length. Padded: all rows are as long as the longest, as they are computed anyway.
    """
    if not packed:
        longest = max(family.longest for family in families)
        return [_resized(family, len(family.prompt), [longest - len(family.prompt)]) for family in families]
    short = [length for family in families for length in _segments(family) if length <= SHORT]
    common = _up(mean(short)) if short else 0
    return [_with_segments(family, [common if n <= SHORT else n for n in _segments(family)]) for family in families]


def _segments(family: Family) -> list[int]:
    """Lengths of the pieces that attention sees: a prompt that is shared, and what is behind it."""
    if family.prompt and len(family.answers) > 1:
        return [len(family.prompt), *map(len, family.answers)]
    return [len(family.prompt) + len(answer) for answer in family.answers]


def _with_segments(family: Family, lengths: list[int]) -> Family:
    """A family whose pieces have these lengths."""
    if len(lengths) > len(family.answers):
        return _resized(family, lengths[0], lengths[1:])
    if not family.prompt:
        return _resized(family, 0, lengths)
    answer = min(len(family.answers[0]), lengths[0] - 1)
    return _resized(family, lengths[0] - answer, [answer])


def _resized(family: Family, prompt: int, answers: list[int]) -> Family:
    """A family of these lengths (one length: of all answers), its learned tokens in proportion."""
    lengths = answers if len(answers) == len(family.answers) else answers * len(family.answers)
    learned = None
    if family.learned is not None:
        counts = [_up(sum(mask) * n / len(mask)) for mask, n in zip(family.learned, lengths, strict=True)]
        learned = [[False] * (n - count) + [True] * count for count, n in zip(counts, lengths, strict=True)]
    return Family([0] * prompt, [[0] * n for n in lengths], learned)


def _up(number: float) -> int:
    return -int(-number // 1)


def _spread(examples: list[Example]) -> list[Example]:
    if len(examples) <= SAMPLE:
        return examples
    return [examples[index * len(examples) // SAMPLE] for index in range(SAMPLE)]


def _encoded(
    config: StageConfig, examples: list[Example], tokenizer: PreTrainedTokenizerBase, start: Start
) -> list[Family]:
    if isinstance(config, PretrainConfig):
        texts = [example.answers[0] for example in examples]
        return [block.family for block in pack_text(texts, tokenizer, block_size=config.data.cutoff_len)]
    template = make_template(config.prompt, tokenizer, start.card)
    if isinstance(config, PPOConfig):
        most = make_budget(config.data, config.prompt).prompt
        prompts = [encode_prompt(template, tokenizer, messages=e.prompt, max_prompt_tokens=most) for e in examples]
        answers = [[0] * config.sampling.max_new_tokens] * config.ppo.answers_per_prompt
        return [Family(prompt, answers) for prompt in prompts]
    budget = make_budget(config.data, config.prompt, max_answer_tokens=config.answer.max_target_length)
    if isinstance(config, SFTConfig):
        train_on = "last" if config.history.mask_history else "all"
        found = encode_demonstrations(template, tokenizer, examples=examples, budget=budget, train_on=train_on)  # type: ignore[arg-type]
        return [item.family for item in found.items]
    if isinstance(config, DPOConfig) and data_need(config) == "feedback":
        return [item.family for item in encode_feedback(template, tokenizer, examples=examples, budget=budget).items]
    return [item.family for item in encode_rankings(template, tokenizer, examples=examples, budget=budget).items]

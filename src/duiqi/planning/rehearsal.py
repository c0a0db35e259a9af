"""What a run holds in memory beside its weights: its passes, rehearsed on networks without content.

The passes are the stages' own, in their order: what is sampled, scored and measured without gradient, then the update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from duiqi.algorithms.loss import Loss
from duiqi.data.encoding import EncodedRanking
from duiqi.data.feedback import FeedbackBatch, collate_feedback
from duiqi.data.rankings import RankingBatch, collate_rankings
from duiqi.models.lean_decoding import LeanDecoder, is_head_worth_copying, is_worth_copying
from duiqi.models.measure import measure_answers, measure_scores, measure_values
from duiqi.models.reward import StandaloneReward
from duiqi.packing.batch import Family, PackedBatch, pack
from duiqi.packing.budget import deal
from duiqi.planning.heap import Heap
from duiqi.planning.rows import Rows, computed_tokens, fullest, measurable
from duiqi.planning.sketch import Sketch
from duiqi.planning.tally import Moment, Tally
from duiqi.rollouts.cache import reserve
from duiqi.rollouts.sampling import adjust_logits, draw, keep_likely, log_probs_of
from duiqi.settings.stages import DPOConfig, PPOConfig, RewardModelConfig, StageConfig
from duiqi.stages.dpo import preference_loss
from duiqi.stages.feedback import both_log_probs, feedback_loss
from duiqi.stages.ppo import shuffled
from duiqi.stages.reward_model import ranking_loss
from duiqi.training.likelihood import token_loss
from duiqi.training.reference import ReferenceMemory

SCORED_AT_ONCE = 32
"""Rows that a reward model of its own scores at once (`rollouts.standalone`)."""

Compute = Callable[[], Loss]


DEPTHS = (2, 5)
"""Layers of the two shallow networks that are rehearsed for a deep one: every further layer adds their difference."""


@dataclass(frozen=True)
class Rehearsed:
    """What a run held beside its weights, and what it computed."""

    moments: tuple[Moment, ...]
    heap: int
    """Bytes of a CPU's heap with all of this in it; 0 elsewhere."""
    work: dict[str, float]
    """FLOPs for each token, by moment; in "rollouts" a token is one that is drawn."""
    update_tokens: int
    """Tokens of the largest micro-batch that is learned from."""


def rehearse(config: StageConfig, sketch: Sketch, rows: Rows) -> Rehearsed:
    """Rehearse a run; one on many layers by two shallow networks, for layers are alike."""
    copies = _Copies(is_worth_copying(sketch.base.model), is_head_worth_copying(sketch.base.model))
    if sketch.depth is None or sketch.depth <= max(DEPTHS):
        return _Rehearsal(config, sketch, rows, copies=copies).run()
    low, high = (_at_depth(config, sketch, rows, copies=copies, depth=depth) for depth in DEPTHS)
    return _extrapolated(low, high, (sketch.depth - DEPTHS[1]) / (DEPTHS[1] - DEPTHS[0]))


def _at_depth(config: StageConfig, sketch: Sketch, rows: Rows, *, copies: _Copies, depth: int) -> Rehearsed:
    with sketch.shallow(depth):
        return _Rehearsal(config, sketch, rows, copies=copies).run()


def _extrapolated(low: Rehearsed, high: Rehearsed, times: float) -> Rehearsed:
    """What follows `high` when it grows on as from `low` to `high`, so many times."""

    def beyond(before: float, after: float) -> float:
        return after + times * (after - before)

    moments = []
    for one, other in zip(low.moments, high.moments, strict=True):
        labels = one.parts.keys() | other.parts.keys()
        parts = {label: round(beyond(one.parts[label], other.parts[label])) for label in labels}
        moments.append(Moment(other.name, round(beyond(one.peak, other.peak)), Counter(parts)))
    work = {name: beyond(low.work[name], high.work[name]) for name in high.work}
    return Rehearsed(tuple(moments), round(beyond(low.heap, high.heap)), work, high.update_tokens)


@dataclass(frozen=True)
class _Copies:
    """What the sampler copies."""

    layers: bool
    head: bool


class _Rehearsal:
    """A run on networks without content.

    Args:
        config: Of the run.
        sketch: Everybody who takes part.
        rows: What is learned from.
        copies: What the sampler copies of the whole network, however shallow this one is.
    """

    def __init__(self, config: StageConfig, sketch: Sketch, rows: Rows, *, copies: _Copies) -> None:
        self.config, self.sketch, self.rows = config, sketch, rows
        self.heap = Heap() if sketch.device.type == "cpu" else None
        vocabulary = len(sketch.base.output_head().weight)
        self.tally = Tally(heap=self.heap, known=sketch.tensors(), labels={vocabulary: "logits"})
        self._copies = copies
        self._tokens: Counter[str] = Counter()
        self._update_tokens = 0
        self._optimizer_state: list[Tensor] = []
        self._sampler: LeanDecoder | None = None
        self._head_copy: Tensor | None = None
        self._learning = list(sketch.base.trainable_parameters().values())
        self._hooks = [p.register_post_accumulate_grad_hook(self._mark_gradient) for p in self._learning]

    @property
    def is_packed(self) -> bool:
        """Whether batches are packed rows."""
        return self.sketch.base.layout.is_packed

    def run(self) -> Rehearsed:
        """Rehearse the first step, and the one with the fullest micro-batch."""
        if self.rows.num_held_out and not isinstance(self.config, PPOConfig):
            self._evaluate()
        for families, update in self._telling_steps():
            if isinstance(self.config, PPOConfig):
                self._round(self.config, families, update)
            else:
                self._step(update)
        for hook in self._hooks:
            hook.remove()
        moments = self.tally.moments
        return Rehearsed(
            moments=tuple(moments),
            heap=self.heap.size if self.heap is not None else 0,
            work={moment.name: moment.flops / max(1, self._tokens[moment.name]) for moment in moments},
            update_tokens=self._update_tokens,
        )

    def _telling_steps(self) -> list[tuple[list[Family], list[Family]]]:
        """The rows of these steps, and those of them in their largest update."""
        steps = []
        for number, families in enumerate(self.rows.steps(), start=1):
            steps.append((families, max(self._updates(families, number), key=self._tokens_at_once)))
        return [steps[0], max(steps, key=lambda step: self._tokens_at_once(step[1]))][: len(steps)]

    def _updates(self, families: list[Family], step: int) -> Iterator[list[Family]]:
        """The rows of each update of a step; PPO makes several, in the order that the stage shuffles answers into."""
        if not isinstance(self.config, PPOConfig):
            yield families
            return
        ppo, seed = self.config.ppo, self.config.optimizer.seed
        groups = torch.arange(len(families)).repeat_interleave(ppo.answers_per_prompt)
        for epoch in range(ppo.ppo_epochs):
            for answers in shuffled(groups, seed, step, epoch).split(ppo.mini_batch_size):
                counts = Counter(groups[answers].tolist())
                yield [Family(families[i].prompt, families[i].answers[:count]) for i, count in counts.items()]

    def _tokens_at_once(self, families: Sequence[Family]) -> int:
        return computed_tokens(self._fullest(families), packed=self.is_packed)

    def _fullest(self, families: Sequence[Family]) -> list[Family]:
        return fullest(families, max_tokens=self.config.optimizer.tokens_per_micro_batch, packed=self.is_packed)

    @contextmanager
    def _counting(self, name: str, tokens: int) -> Iterator[Moment]:
        """Within this context nothing is computed and everything is counted, as a moment of this name."""
        with self.sketch.mode, self.tally, self.tally.moment(name) as moment:
            self._tokens[name] += tokens
            yield moment

    # -- learning ------------------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        families = self._fullest(self.rows.families)
        compute, tokens = self._loss_of(families), computed_tokens(families, packed=self.is_packed)
        role = "reward" if isinstance(self.config, RewardModelConfig) else "policy"
        with self._counting("evaluation", tokens), self.sketch.base.acting(role):
            compute()

    def _step(self, families: Sequence[Family]) -> None:
        """One update, from at most two of its micro-batches."""
        budget = self.config.optimizer.tokens_per_micro_batch
        for picked in deal(families, max_tokens=budget, packed=self.is_packed)[:2]:
            self._learn([families[index] for index in picked])
        self._update()

    def _learn(self, families: Sequence[Family]) -> None:
        compute, tokens = self._loss_of(families), computed_tokens(families, packed=self.is_packed)
        self._update_tokens = max(self._update_tokens, tokens)
        with self._counting("update", tokens):
            compute().total.backward()

    def _update(self) -> None:
        """What AdamW leaves: two moments of everything that learns, and no gradients."""
        with self._counting("update", 0), self.tally.labelled("optimizer state"):
            if not self._optimizer_state:
                self._optimizer_state = [torch.zeros_like(p) for p in self._learning for _ in range(2)]
        for parameter in self._learning:
            parameter.grad = None

    def _mark_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.tally.relabel(parameter.grad, "gradients")

    def _loss_of(self, families: Sequence[Family]) -> Compute:
        """The stage's own loss of a micro-batch, which is put together now and computed when called."""
        config, base = self.config, self.sketch.base
        shaped = measurable(families, packed=self.is_packed)
        if isinstance(config, DPOConfig) and config.preference.pref_loss == "kto":
            return lambda: self._liking_loss(config, _liked(shaped))
        if isinstance(config, RewardModelConfig | DPOConfig):
            batch = _ranked(shaped)
            if isinstance(config, RewardModelConfig):
                return lambda: ranking_loss(base, batch, centering=config.reward.center_rewards_coefficient)
            return lambda: preference_loss(base, batch, settings=config.preference, memory=_Forgetful(None))
        packed = pack(shaped)
        if isinstance(config, PPOConfig):
            return lambda: self._policy_loss(config, packed.to(base.device))
        return lambda: token_loss(base, packed)

    def _liking_loss(self, config: DPOConfig, batch: FeedbackBatch) -> Loss:
        """The loss of answers that were liked or not, and the passes over as many mismatched ones before it."""
        base = self.sketch.base
        both_log_probs(base, batch.sequences)
        return feedback_loss(base, batch, settings=config.preference, memory=_Forgetful(None))

    def _policy_loss(self, config: PPOConfig, batch: PackedBatch) -> Loss:
        """What PPO's loss asks of the networks; the rest of it are a few numbers for every answer token."""
        base, has_critic = self.sketch.base, config.ppo.advantage == "gae"
        is_apart = has_critic and config.ppo.critic != "shared"
        states = base.read_each(dict.fromkeys(("policy", "value") if is_apart else ("policy",), batch))
        measured = measure_answers(
            base,
            batch,
            temperature=config.sampling.temperature,
            with_entropy=config.ppo.entropy_coef > 0,
            states=states["policy"],
        )
        total = measured.log_probs.sum()
        if measured.entropy is not None:
            total = total + measured.entropy.sum()
        if has_critic:
            total = total + base.heads["value"](states["value" if is_apart else "policy"]).sum()
        return Loss(total, total.detach())

    # -- a round of PPO ------------------------------------------------------------------------------------------------

    def _round(self, config: PPOConfig, families: Sequence[Family], update: Sequence[Family]) -> None:
        if config.rollouts.rollout_engine == "own":
            self._sample(config, families)
        self._score(config, families)
        self._measure(config, families)
        mode = self.sketch.base.training_mode() if config.optimizer.gradient_checkpointing else nullcontext()
        with mode:
            self._step(update)

    def _sample(self, config: PPOConfig, families: Sequence[Family]) -> None:
        """Read the longest prompts, and draw the first token of as many answers as are decoded at once."""
        base, sampling, copies = self.sketch.base, config.sampling, config.ppo.answers_per_prompt
        lengths = sorted((len(family.prompt) for family in families), reverse=True)
        num_answers = min(sampling.generation_batch_size, copies * len(lengths))
        lengths = lengths[: -(-num_answers // copies)]
        with self._counting("rollouts", num_answers * sampling.max_new_tokens) as moment, base.acting("policy"):
            if base.layout.is_lean:
                self._sampler = None
                with self.tally.labelled("sampler's copy of the layers"):
                    adapters = base.seat("policy").low_rank_names
                    self._sampler = LeanDecoder.of(base.model, adapters, copy=self._copies.layers)
            cache = _LabelledCache(self.tally, base.model.config)
            positions = torch.arange(lengths[0], device=base.device).expand(len(lengths), -1)
            mask = None if lengths[0] == lengths[-1] else torch.ones_like(positions)
            hidden, _ = base.trunk(
                torch.zeros_like(positions),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            last = hidden[:, -1]
            del hidden
            if copies > 1:
                answers = torch.arange(num_answers, device=base.device) // copies
                cache.batch_select_indices(answers)
                last = last[answers]
            reserve(cache, sampling.max_new_tokens)
            cache.relabel()
            before = moment.flops
            self._draw(config, last, cache, lengths[0])
            moment.flops += (sampling.max_new_tokens - 1) * (moment.flops - before)

    def _draw(self, config: PPOConfig, hidden: Tensor, cache: DynamicCache, num_read: int) -> None:
        """One token of every answer, and its pass through the layers."""
        base, sampling = self.sketch.base, config.sampling
        head = base.output_head()
        if self._head_copy is None and self._copies.head and head.is_frozen:
            # What is packed has no shape that a tensor without content could have, but the size of the matrix.
            self._head_copy = torch.empty_like(head.weight)
            self.tally.relabel(self._head_copy, "sampler's copy of the head")
        logits = adjust_logits(
            base.logits(hidden),
            temperature=sampling.temperature,
            suppressed=torch.ones(len(hidden), dtype=torch.bool, device=base.device),
            stop_token_ids=[0],
        )
        likely = keep_likely(logits, top_k=sampling.top_k, top_p=sampling.top_p)
        tokens = draw(likely, torch.zeros(len(hidden), device=base.device))
        log_probs_of(logits, tokens)
        places = torch.full_like(tokens, num_read).unsqueeze(-1)
        if self._sampler is not None:
            self._sampler.step(tokens.unsqueeze(-1), places, cache, None)
        else:
            base.trunk(tokens.unsqueeze(-1), position_ids=places, past_key_values=cache, use_cache=True)

    def _score(self, config: PPOConfig, families: Sequence[Family]) -> None:
        base = self.sketch.base
        picked = self._fullest(families)
        batch, tokens = self._packed(picked)
        for role in (role for role in base.heads if role.startswith("reward")):
            with self._counting("scores", tokens), base.acting(role):
                measure_scores(base, batch, role)
        rows = min(SCORED_AT_ONCE, config.ppo.rollout_batch_size)
        width = max(family.longest for family in families)
        for _, network in self.sketch.standalone:
            with self._counting("scores", rows * width):
                ids = torch.zeros(rows, width, dtype=torch.long, device=base.device)
                StandaloneReward(network)(ids, torch.ones_like(ids, dtype=torch.bool))

    def _measure(self, config: PPOConfig, families: Sequence[Family]) -> None:
        """Log-probabilities under the reference, and a critic's values where they were not caught while drawing."""
        base = self.sketch.base
        batch, tokens = self._packed(self._fullest(families))
        with self._counting("measurements", tokens), base.acting("reference"):
            measure_answers(base, batch, temperature=config.sampling.temperature)
        is_critic_apart = config.ppo.advantage == "gae" and config.ppo.critic != "shared"
        if is_critic_apart or (config.ppo.advantage == "gae" and config.rollouts.rollout_engine != "own"):
            with self._counting("measurements", 0), base.acting("value"):
                measure_values(base, batch)

    def _packed(self, families: Sequence[Family]) -> tuple[PackedBatch, int]:
        """A batch, and how many tokens it computes."""
        batch = pack(measurable(families, packed=self.is_packed)).to(self.sketch.base.device)
        return batch, computed_tokens(families, packed=self.is_packed)


class _LabelledCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped for us
    """A key-value cache that says what it is."""

    def __init__(self, tally: Tally, config: object) -> None:
        super().__init__(config=config)
        self._tally = tally

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.relabel()
        return found

    def relabel(self) -> None:
        for layer in self.layers:
            for states in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                if isinstance(states, Tensor):
                    self._tally.relabel(states, "keys and values of answers")


class _Forgetful(ReferenceMemory):
    """Knows no reference's log-probability and keeps none: every one is computed, as in a first epoch."""

    def recall(self, rankings: Sequence[EncodedRanking]) -> None:
        del rankings

    def keep(self, rankings: Sequence[EncodedRanking], log_probs: Tensor) -> None:
        del rankings, log_probs


def _rankings(families: Sequence[Family]) -> list[EncodedRanking]:
    """Families as rankings of which nothing was cut or dropped, the first answer the best."""
    return [EncodedRanking(list(f.prompt), [list(a) for a in f.answers], False, 0, 0) for f in families]


def _liked(families: Sequence[Family]) -> FeedbackBatch:
    """Families of one answer each, every second one liked."""
    liked = [place % 2 == 0 for place in range(len(families))]
    return collate_feedback(_rankings(families), liked=liked, baseline=torch.zeros(()))


def _ranked(families: Sequence[Family]) -> RankingBatch:
    """Families as a batch of rankings."""
    return collate_rankings(_rankings(families), weighting="prompt")

"""The training step: the only `backward()`, the only division by a weight, the only optimizer update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from duiqi.algorithms.loss import Loss, WeightedSum
from duiqi.errors import DuiqiError
from duiqi.guards.finite import first_non_finite
from duiqi.packing.memory import MemoryBudget
from duiqi.training.schedule import Schedule

Item = TypeVar("Item")

DEFAULT_TOKENS = 4096
"""Tokens computed at once where nothing else is said."""


class NonFiniteStep(DuiqiError):
    """A loss or gradient was nan or inf. Nothing was updated.

    Args:
        finding: Names the first bad quantity.
        batch: The micro-batch in which it appeared, for the anomaly folder.
    """

    def __init__(self, finding: str, batch: object = None) -> None:
        self.finding, self.batch = finding, batch
        super().__init__(finding)


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did; means over everything the step saw."""

    loss: float
    weight: float
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    stats: Mapping[str, float] = field(default_factory=dict)

    def as_metrics(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "grad_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            **self.stats,
        }


class Learner:
    """AdamW on a set of named parameters, with a schedule and clipping.

    Args:
        parameters: What learns, by name. One-dimensional ones and heads get no weight decay.
        schedule: Learning rate by step.
        weight_decay: Decoupled.
        max_grad_norm: Clip the norm of the mean gradient to this; 0: never.
        budget: Tokens computed at once.
        faster: Parameters that learn at a multiple of the schedule's rate, and the multiple.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        schedule: Schedule,
        *,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        budget: MemoryBudget | None = None,
        faster: Mapping[str, float] | None = None,
    ) -> None:
        assert parameters, "nothing to train"
        self.parameters = dict(parameters)
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.pace = 1.0
        """Multiplies the learning rate: the watch lowers it when a run begins to go wrong."""
        self.budget = budget or MemoryBudget(DEFAULT_TOKENS)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            decays = parameter.ndim > 1 and not name.startswith("heads.")
            key = (weight_decay if decays else 0.0, (faster or {}).get(name, 1.0))
            groups.setdefault(key, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": own, "weight_decay": decay, "multiple": times} for (decay, times), own in groups.items()],
            lr=schedule.peak,
            fused=True,
        )

    def step(
        self,
        micro_batches: Callable[[int], Iterable[Item]],
        loss_fn: Callable[[Item], Loss],
        *,
        number: int,
        skip_above: float | None = None,
    ) -> StepReport:
        """One update from the summed gradients of all micro-batches, divided once by their summed weight.

        Where the memory does not hold a micro-batch, the budget is halved and the step begun again: a backward pass
        that failed half-way may have left a part of its gradients behind.

        Args:
            micro_batches: The step's rows in micro-batches of at most so many tokens. The result does not depend on
                the split.
            loss_fn: Sums over a micro-batch.
            number: Which step this is (from 1), for the schedule.
            skip_above: Leave the weights alone when the mean of the statistic `ratio` exceeds this.

        Raises:
            NonFiniteStep: The loss or the gradient is not finite; the weights are untouched.
            OutOfMemory: The memory does not hold even one row.
        """
        sums, last = self.budget.within(lambda tokens: self._gather(micro_batches(tokens), loss_fn))
        means = {name: part.mean for name, part in sums.items()}
        norm = self._mean_gradient(sums["loss"].weight)
        if not torch.isfinite(norm):
            named = [(f"gradient of {n}", p.grad) for n, p in self.parameters.items() if p.grad is not None]
            finding = first_non_finite(named) or f"the norm of the gradient is {float(norm)}"
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteStep(finding, last)
        rate = self.schedule.at(number) * self.pace
        skipped = skip_above is not None and means.get("ratio", 1.0) > skip_above
        if not skipped:
            self._update(norm, rate)
        self.optimizer.zero_grad(set_to_none=True)
        weight = float(sums["loss"].weight)
        loss_mean = means.pop("loss")
        if skip_above is not None:
            means["skipped"] = float(skipped)
        return StepReport(loss_mean, weight, float(norm), 0.0 if skipped else rate, means)

    def _gather(
        self, micro_batches: Iterable[Item], loss_fn: Callable[[Item], Loss]
    ) -> tuple[dict[str, WeightedSum], object]:
        """Run every micro-batch backwards; the sums of loss and statistics, and the last batch."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, WeightedSum] = {}
        last: object = None
        for batch in micro_batches:
            loss = loss_fn(batch)
            if finding := first_non_finite([("loss", loss.total.detach())]):
                self.optimizer.zero_grad(set_to_none=True)
                raise NonFiniteStep(finding, batch)
            loss.total.backward()
            parts = {"loss": WeightedSum(loss.total.detach(), loss.weight), **loss.stats}
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
            last = batch
        return sums, last

    def _mean_gradient(self, weight: Tensor) -> Tensor:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        torch._foreach_div_(gradients, float(weight))
        return nn.utils.get_total_norm(gradients)

    def _update(self, norm: Tensor, rate: float) -> None:
        if self.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["multiple"]
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, flat, named after the parameters."""
        names = {id(p): name for name, p in self.parameters.items()}
        return {
            f"{key}/{names[id(p)]}": value.detach().cpu()
            for p, entries in self.optimizer.state.items()
            for key, value in entries.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state()` gave."""
        self.optimizer.state.clear()
        for key, value in state.items():
            entry, name = key.split("/", 1)
            parameter = self.parameters[name]
            self.optimizer.state[parameter][entry] = value.to(parameter.device, copy=True)

"""The training step: the only `backward()`, the only division by a weight, the only optimizer update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from duiqi.algorithms.loss import Loss, WeightedSum
from duiqi.errors import DuiqiError, RunError
from duiqi.guards.culprit import bad_weights, first_bad_module
from duiqi.guards.finite import first_non_finite
from duiqi.packing.memory import MemoryBudget
from duiqi.training.scaling import LossScale
from duiqi.training.schedule import Schedule

Item = TypeVar("Item")

OPTIMIZER_STATE = frozenset({"step", "exp_avg", "exp_avg_sq"})
"""What AdamW keeps for a parameter."""

DEFAULT_TOKENS = 4096
"""Tokens computed at once where nothing else is said."""


class NonFiniteStep(DuiqiError):
    """A loss or gradient was nan or inf. Nothing was updated.

    Args:
        finding: Names the first bad quantity.
        batch: The micro-batch in which it appeared, for the anomaly folder.
        examined: What else was found out, JSON values.
    """

    def __init__(self, finding: str, batch: object = None, examined: Mapping[str, Any] | None = None) -> None:
        self.finding, self.batch, self.examined = finding, batch, examined or {}
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
        scale: By what the loss is multiplied on its way back, for networks in float16.
        networks: What computes the loss, to be looked through when it is not finite.
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
        scale: LossScale | None = None,
        networks: Sequence[nn.Module] = (),
    ) -> None:
        assert parameters, "nothing to train"
        self.parameters = dict(parameters)
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.pace = 1.0
        """Multiplies the learning rate: the watch lowers it when a run begins to go wrong."""
        self.budget = budget or MemoryBudget(DEFAULT_TOKENS)
        self.scale, self.networks = scale, networks
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
        that failed half-way may have left a part of its gradients behind. So it is where a scaled gradient overflows.

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
        while True:
            sums, last = self.budget.within(lambda tokens: self._gather(micro_batches(tokens), loss_fn))
            norm = self._mean_gradient(sums["loss"].weight)
            if torch.isfinite(norm):
                break
            if self.scale is None or not self.scale.lower():
                named = [(f"gradient of {n}", p.grad) for n, p in self.parameters.items() if p.grad is not None]
                finding = first_non_finite(named) or f"the norm of the gradient is {float(norm)}"
                raise self._accident(finding, last, loss_fn)
        means = {name: part.mean for name, part in sums.items()}
        rate = self.schedule.at(number) * self.pace
        skipped = skip_above is not None and means.get("ratio", 1.0) > skip_above
        if not skipped:
            self._update(norm, rate)
        self.optimizer.zero_grad(set_to_none=True)
        weight = float(sums["loss"].weight)
        loss_mean = means.pop("loss")
        if skip_above is not None:
            means["skipped"] = float(skipped)
        if self.scale is not None:
            means["loss_scale"] = self.scale.value
            self.scale.hold()
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
                raise self._accident(finding, batch, loss_fn)
            total = loss.total if self.scale is None else loss.total * self.scale.value
            total.backward()
            parts = {"loss": WeightedSum(loss.total.detach(), loss.weight), **loss.stats}
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
            last = batch
        return sums, last

    def _mean_gradient(self, weight: Tensor) -> Tensor:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        torch._foreach_div_(gradients, float(weight) * (1.0 if self.scale is None else self.scale.value))
        return nn.utils.get_total_norm(gradients)

    def _accident(self, finding: str, batch: Any, loss_fn: Callable[[Any], Loss]) -> NonFiniteStep:
        """What is raised where a number is not finite, after looking where it comes from; gradients are dropped."""
        self.optimizer.zero_grad(set_to_none=True)
        examined: dict[str, Any] = {
            "weights_not_finite": bad_weights(self.networks),
            "norms": {name: float(p.detach().norm()) for name, p in self.parameters.items()},
        }
        if batch is not None:
            with torch.random.fork_rng():  # dropout draws again, and nobody else shall notice
                try:
                    examined["first_bad_module"] = first_bad_module(self.networks, partial(loss_fn, batch))
                except RuntimeError as error:
                    examined["first_bad_module"] = f"unknown: the pass could not be repeated ({error})"
        return NonFiniteStep(finding, batch, examined)

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
        """Take back what `state()` gave.

        Raises:
            RunError: It is of another optimizer or of other parameters.
        """
        self.optimizer.state.clear()
        for key, value in state.items():
            entry, _, name = key.partition("/")
            parameter = self.parameters.get(name)
            expected = () if entry == "step" else None if parameter is None else parameter.shape
            if parameter is None or entry not in OPTIMIZER_STATE or value.shape != expected:
                raise RunError(
                    f"the checkpoint's optimizer is another one (first difference: {key})",
                    remedy="resume with the settings in config.yaml, or start a new output_dir",
                )
            self.optimizer.state[parameter][entry] = value.to(parameter.device, copy=True)

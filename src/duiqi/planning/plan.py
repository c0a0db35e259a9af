"""A run's plan: memory by what holds it, steps, time and disk, found without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from duiqi.planning.advice import Advice, first_change
from duiqi.planning.disk import DiskPlan, disk_plan
from duiqi.planning.duration import Duration, estimate
from duiqi.planning.holdings import Part, laid_side_by_side, weights_held
from duiqi.planning.machine import free_disk, free_memory, multiplication_speed, resident
from duiqi.planning.rehearsal import Rehearsed, rehearse
from duiqi.planning.rows import Rows, count_rows
from duiqi.planning.sketch import Sketch, sketch
from duiqi.planning.tally import Moment
from duiqi.settings.stages import RewardModelConfig, StageConfig


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of the device that the run computes on."""

    device: torch.device
    held: tuple[Part, ...]
    """From beginning to end."""
    moments: tuple[Moment, ...]
    """What comes on top, at its largest."""
    gaps: int
    """Bytes between tensors that nothing fits into; known for a CPU."""
    available: int | None

    @property
    def widest(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.peak)

    @property
    def peak(self) -> int:
        """Bytes that the run needs at most."""
        return sum(part.num_bytes for part in self.held) + self.widest.peak + self.gaps

    @property
    def fits(self) -> bool:
        """Whether the device has that much; so too where nobody can say what it has."""
        return self.available is None or self.peak <= self.available


@dataclass(frozen=True)
class Plan:
    """Everything that is said of a run before it is begun."""

    stage: str
    memory: MemoryPlan
    dtype: torch.dtype
    """Of the base."""
    layout: str
    """How batches are computed."""
    trained: int
    """Parameters that learn."""
    rows: Rows
    update_tokens: int
    """Tokens of the largest micro-batch."""
    duration: Duration
    disk: DiskPlan
    free_disk: int


def make_plan(stage: str, config: StageConfig, *, libraries: int) -> Plan:
    """Plan a run. Nothing is loaded but config.json, the tokenizer, the data and adapters.

    Args:
        stage: Its name.
        config: Its settings.
        libraries: Bytes of Python and its libraries in the run's process (`machine.resident_after_imports`).

    Raises:
        UserError: What the run itself would refuse at its beginning.
    """
    found = sketch(config)
    before = resident()
    rows = count_rows(config, found.start)
    data = max(0, resident() - before)
    memory, rehearsed = memory_plan(config, found, rows, libraries=libraries + data)
    role = "reward" if isinstance(config, RewardModelConfig) else "policy"
    speed = multiplication_speed(found.device, found.base.dtype)
    return Plan(
        stage=stage,
        memory=memory,
        dtype=found.base.dtype,
        layout=str(found.base.layout),
        trained=sum(p.numel() for p in found.base.trainable_parameters().values()),
        rows=rows,
        update_tokens=rehearsed.update_tokens,
        duration=estimate(config, rows, rehearsed.work, speed),
        disk=disk_plan(
            found.base,
            role,
            rows.tokenizer,
            settings=config.run,
            total_steps=rows.total_steps,
            evaluates=rows.num_held_out > 0,
        ),
        free_disk=free_disk(config.run.output_dir),
    )


def advise(plan: Plan, config: StageConfig) -> Advice | None:
    """What to change first where a run does not fit; None where it does, or where nothing helps."""
    memory = plan.memory
    if memory.fits or memory.available is None:
        return None
    libraries = sum(part.num_bytes for part in memory.held if part.owner == "libraries")

    def peak_of(changed: StageConfig) -> int:
        return memory_plan(changed, sketch(changed), plan.rows, libraries=libraries)[0].peak

    return first_change(config, plan.rows, dtype=plan.dtype, available=memory.available, peak_of=peak_of)


def memory_plan(config: StageConfig, found: Sketch, rows: Rows, *, libraries: int) -> tuple[MemoryPlan, Rehearsed]:
    """The memory of a run, and the rehearsal that it was found in."""
    held = weights_held(found)
    if found.device.type == "cpu":
        held = [Part("libraries", "Python, torch, transformers, and the rows", libraries), *held]
        if copies := laid_side_by_side(found):
            held.append(Part("base", "matrices laid side by side", copies))
    rehearsed = rehearse(config, found, rows)
    peak = max(moment.peak for moment in rehearsed.moments)
    gaps = max(0, rehearsed.heap - peak)
    return MemoryPlan(found.device, tuple(held), rehearsed.moments, gaps, free_memory(found.device)), rehearsed

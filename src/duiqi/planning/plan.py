"""A run's plan: memory by what holds it, steps, time and disk, found without loading a weight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from duiqi.planning.advice import Advice, first_change
from duiqi.planning.duration import Duration, estimate
from duiqi.planning.holdings import Part, laid_side_by_side, weights_held
from duiqi.planning.machine import converted_bytes, free_disk, free_memory, multiplication_speed, resident
from duiqi.planning.rehearsal import Rehearsed, rehearse
from duiqi.planning.rows import Rows, count_rows
from duiqi.planning.sketch import Sketch, sketch
from duiqi.planning.tally import Moment
from duiqi.settings.stages import PPOConfig, RewardModelConfig, StageConfig
from duiqi.training.disk import DiskPlan, disk_plan

UNCOUNTED_BFLOAT16 = (
    "not counted: what oneDNN works with in bfloat16 on a CPU, and the gaps that it leaves; "
    "measured, up to a third more"
)


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
    notes: tuple[str, ...] = ()
    """What is not counted."""

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
    duration: Duration | None
    """None where the run could not be rehearsed."""
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
    notes: list[str] = []
    try:
        rehearsed = rehearse(config, found, rows)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        rehearsed = Rehearsed((Moment("update"),), heap=0, work={}, update_tokens=0)
        notes.append(f"only weights are counted: what this network computes depends on its numbers ({error.func})")
    gaps = max(0, rehearsed.heap - max(moment.peak for moment in rehearsed.moments))
    moments = list(rehearsed.moments)
    dtype = found.base.model.dtype
    if found.device.type == "cpu":
        if extra := converted_bytes(found.start.base, dtype):
            moments.insert(0, Moment("loading", extra, Counter({"files in another precision": extra})))
        if dtype == torch.bfloat16:
            notes.append(UNCOUNTED_BFLOAT16)
    held = tuple(_held(config, found, libraries))
    memory = MemoryPlan(found.device, held, tuple(moments), gaps, free_memory(found.device), tuple(notes))
    return memory, rehearsed


def _held(config: StageConfig, found: Sketch, libraries: int) -> list[Part]:
    """What is there from beginning to end on the device; a GPU holds no libraries."""
    held = weights_held(found)
    if found.device.type == "cpu":
        held.insert(0, Part("libraries", "Python, torch, transformers, and the rows", libraries))
        if copies := laid_side_by_side(found):
            held.append(Part("base", "matrices laid side by side", copies))
    elif isinstance(config, PPOConfig) and config.rollouts.vllm_python is not None and found.device.type == "cuda":
        total = torch.cuda.get_device_properties(found.device).total_memory
        held.append(Part("vLLM", "its share of the device", int(config.rollouts.vllm_memory_share * total)))
    return held

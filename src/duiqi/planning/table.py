"""A plan as text for the terminal, and as JSON values."""

from __future__ import annotations

from typing import Any

from duiqi.planning.advice import Advice
from duiqi.planning.duration import Duration
from duiqi.planning.plan import MemoryPlan, Plan

_WIDTH = 58


def lines_of(plan: Plan, advice: Advice | None) -> list[str]:
    """The whole plan, what matters most last: whether it fits, and what to change if not."""
    return [
        f"── plan of {plan.stage} " + "─" * 40,
        *_run_lines(plan),
        "",
        *_memory_lines(plan.memory),
        "",
        *_verdict(plan, advice),
    ]


def _run_lines(plan: Plan) -> list[str]:
    rows = plan.rows
    sample = "all rows counted" if rows.is_complete else f"lengths from a sample of {len(rows.families)}"
    answers = ", answers of the greatest length" if plan.stage == "ppo" else ""
    disk = plan.disk
    checkpoints = "1 checkpoint" if disk.kept == 1 else f"{disk.kept} checkpoints"
    facts = {
        "rows": f"{rows.num_rows:,}, {rows.tokens_per_row:.0f} tokens each on average ({sample}{answers})",
        "steps": f"{rows.total_steps:,}, {rows.tokens_per_row * min(rows.per_step, rows.num_rows):,.0f} tokens each; "
        f"at most {plan.update_tokens:,} at once",
        "trains": f"{plan.trained:,} parameters",
        "computes": plan.layout,
        "time": _time(plan.duration),
        "disk": f"{_size(disk.checkpoint)} a checkpoint, {checkpoints} kept, {_size(disk.most)} at most; "
        f"{_size(plan.free_disk)} are free",
    }
    return [f"{name:<10}{text}" for name, text in facts.items()]


def _time(duration: Duration | None) -> str:
    if duration is None:
        return "cannot be told"
    between = f"{in_words(duration.shortest)} to {in_words(duration.longest)}"
    return f"{between} (an estimate from this machine's matrix products)"


def _memory_lines(memory: MemoryPlan) -> list[str]:
    widest = memory.widest
    table = [(f"{part.owner}: {part.what}", part.num_bytes) for part in memory.held]
    table += [(f"{widest.name}: {label}", size) for label, size in widest.parts.most_common()]
    if memory.gaps:
        table.append(("gaps between all of these", memory.gaps))
    lines = [f"memory of {memory.device}", *(f"  {name:<{_WIDTH}}{_size(size):>10}" for name, size in table)]
    lines.append(f"  {f'at most, during the {widest.name}':<{_WIDTH}}{_size(memory.peak):>10}")
    others = [moment for moment in memory.moments if moment is not widest and moment.peak]
    for moment in others:
        largest = ", ".join(f"{label} {_size(size)}" for label, size in moment.parts.most_common(3))
        lines.append(f"  not at that time: {moment.name} {_size(moment.peak)} ({largest})")
    return [*lines, *(f"  {note}" for note in memory.notes)]


def _verdict(plan: Plan, advice: Advice | None) -> list[str]:
    memory = plan.memory
    lines = []
    if memory.available is None:
        lines.append("fits      nobody can say how much memory this device has")
    elif memory.fits and plan.duration is None:
        lines.append(f"fits      perhaps: {_size(memory.peak)} are counted, {_size(memory.available)} are free")
    elif memory.fits:
        lines.append(f"fits      yes: {_size(memory.peak)} of the {_size(memory.available)} that are free")
    else:
        lines.append(f"fits      no: {_size(memory.peak)} are needed, {_size(memory.available)} are free")
        lines.append(f"  -> {_remedy(advice)}")
    if plan.disk.most > plan.free_disk:
        lines.append(f"disk      too small: {_size(plan.disk.most)} are needed, {_size(plan.free_disk)} are free")
        lines.append("  -> set save_total_limit: 1, or output_dir on another disk")
    return lines


def _remedy(advice: Advice | None) -> str:
    if advice is None:
        return "no setting helps: take a smaller base, or a larger machine"
    enough = "" if advice.fits else ", which is not enough by itself: plan again with it"
    return f"set {advice.change} ({advice.change.cost}): {_size(advice.peak)}{enough}"


def values_of(plan: Plan, advice: Advice | None) -> dict[str, Any]:
    """The plan as JSON values; sizes in bytes, times in seconds."""
    memory, rows = plan.memory, plan.rows
    return {
        "stage": plan.stage,
        "layout": plan.layout,
        "parameters_trained": plan.trained,
        "rows": rows.num_rows,
        "rows_sampled": len(rows.families),
        "tokens_per_row": round(rows.tokens_per_row, 1),
        "steps": rows.total_steps,
        "tokens_at_once": plan.update_tokens,
        "memory": {
            "device": str(memory.device),
            "held": [{"owner": p.owner, "what": p.what, "bytes": p.num_bytes} for p in memory.held],
            "moments": [{"name": m.name, "bytes": m.peak, "parts": dict(m.parts)} for m in memory.moments],
            "gaps": memory.gaps,
            "peak": memory.peak,
            "available": memory.available,
            "fits": memory.fits,
            "notes": list(memory.notes),
        },
        "change": None
        if advice is None
        else {
            "setting": advice.change.setting,
            "value": advice.change.value,
            "peak": advice.peak,
            "fits": advice.fits,
        },
        "seconds": plan.duration and [round(plan.duration.shortest, 1), round(plan.duration.longest, 1)],
        "disk": {
            "checkpoint": plan.disk.checkpoint,
            "kept": plan.disk.kept,
            "most": plan.disk.most,
            "available": plan.free_disk,
        },
    }


def _size(num_bytes: int) -> str:
    """Bytes as people say them, in powers of 1000.

    >>> _size(1_500_000), _size(25_000), _size(80_000_000_000)
    ('1.5 MB', '25 kB', '80 GB')
    """
    megabytes = num_bytes / 1e6
    if megabytes < 0.1:
        return f"{num_bytes / 1000:.3g} kB"
    if megabytes >= 10_000:
        return f"{megabytes / 1000:,.3g} GB"
    if megabytes >= 100:
        return f"{megabytes:,.0f} MB"
    return f"{megabytes:.2g} MB"


def in_words(seconds: float) -> str:
    """A duration, roughly.

    >>> in_words(42), in_words(600), in_words(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"

"""Kills runs of every stage at random moments, goes on from what is left, and compares the end with an undisturbed run.

    python -m tests.reliability.hundred_kills --kills 100 --seed 0

Half of the kills come at any time between the start and the end, half while a checkpoint is being written. A run that
was killed is resumed, and killed again two times in three, until it ends. Its result must then be the same, bit for
bit: the adapter, and everything in its last checkpoint that a further step would depend on.

A killed process must be a process: every run is one, forked from this one, which has imported everything and computed
nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from duiqi.cli.main import main as duiqi
from tests.conftest import Workshop, build_workshop

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
torch.set_num_threads(1)

STAGES: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 12, "lora_dropout": 0.1},
    "rm": {"max_steps": 8, "eval_steps": 3, "lora_dropout": 0.1},
    "dpo": {"max_steps": 8, "eval_steps": 3},
    "ppo": {"max_steps": 6, "eval_steps": 3, "kl_target": 1.0, "critic": "adapter", "watch": "warn"},
}
WEIGHTS = "adapter_model.safetensors"
GIVE_UP_SECONDS = 300.0
AT_REST = "between checkpoints"
WRITING = "while one was written"
BEFORE = "before the first"
AFTER = "after the last"


@dataclass
class Tally:
    """What happened to the runs of one stage."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """By the moment at which they came."""
    different: list[str] = field(default_factory=list)
    """Runs that did not end as the undisturbed one."""


class Forked:
    """A command of duiqi in a process of its own."""

    def __init__(self, words: list[str], log: Path) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, log)
        self.status: int | None = None

    def is_over(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self) -> int:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not self.is_over():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} did not end")
            time.sleep(0.002)
        assert self.status is not None
        return self.status

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False where the process was over already."""
        if self.is_over():
            return False
        os.kill(self.pid, number)
        return True


def _become(words: list[str], log: Path) -> None:
    """The child's part: run the command and leave, whatever happens."""
    status = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = duiqi(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def in_a_child(action: Callable[[], object]) -> None:
    """Do something in a process of its own, so that this one has computed nothing when it forks."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the workshop could not be built"


def write_recipe(shop: Workshop, stage: str, directory: Path) -> Path:
    path = directory.with_suffix(".yaml")
    settings = shop.settings(stage, directory, save_steps=1, save_total_limit=2, **STAGES[stage])
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def start(stage: str, recipe: Path) -> Forked:
    """Begin a run, or go on with it: the same command does both."""
    os.environ["XDG_CACHE_HOME"] = str(recipe.with_suffix(".cache"))  # what one run remembered helps no other
    return Forked([stage, str(recipe), "resume_from_checkpoint=true"], recipe.with_suffix(".log"))


def moment(directory: Path) -> str:
    """What the run was doing when it died, told from what it left."""
    checkpoints = directory / "checkpoints"
    if any(checkpoints.glob(".step-*.partial")):
        return WRITING
    if not any(checkpoints.glob("step-*")):
        return BEFORE
    return AFTER if (directory / WEIGHTS).exists() else AT_REST


def is_writing(directory: Path) -> bool:
    return any((directory / "checkpoints").glob(".step-*.partial"))


def disturb(process: Forked, directory: Path, number: signal.Signals, seconds: float, dice: random.Random) -> bool:
    """Send the signal at a random moment; False where the run had ended before."""
    deadline = time.monotonic() + dice.uniform(0.0, seconds)
    while time.monotonic() < deadline and not process.is_over():
        time.sleep(0.001)
    if dice.random() < 0.5:  # and now wait for the next checkpoint to be begun
        while not process.is_over() and not is_writing(directory):
            time.sleep(0.0005)
        time.sleep(dice.uniform(0.0, 0.006))
    return process.send(number)


def live_through(
    stage: str, recipe: Path, directory: Path, number: signal.Signals, seconds: float, tally: Tally, dice: random.Random
) -> None:
    """One run from its start to its end, killed on the way at least once if it does not end before."""
    process = start(stage, recipe)
    while disturb(process, directory, number, seconds, dice):
        status = process.wait()
        if status == 0 and (directory / "all_results.json").exists():
            break  # the signal came too late to stop anything
        assert status in (0, -number), f"{recipe}: exit status {status}\n{recipe.with_suffix('.log').read_text()}"
        tally.kills[moment(directory)] += 1
        process = start(stage, recipe)
        if dice.random() < 1 / 3:
            break
    assert process.wait() == 0, recipe.with_suffix(".log").read_text()
    tally.runs += 1


def difference(whole: Path, killed: Path) -> str:
    """How a run's end differs from another's; empty where it does not."""
    if (whole / WEIGHTS).read_bytes() != (killed / WEIGHTS).read_bytes():
        return "the adapter"
    ours, theirs = (load_file(path / "last" / "trainer_state.safetensors") for path in (whole, killed))
    if ours.keys() != theirs.keys():
        return "the tensors of the last checkpoint"
    return next((name for name in ours if not torch.equal(ours[name], theirs[name])), "")


def timed(stage: str, recipe: Path) -> float:
    """Seconds of an undisturbed run."""
    begin = time.monotonic()
    assert start(stage, recipe).wait() == 0, recipe.with_suffix(".log").read_text()
    return time.monotonic() - begin


def kill_stage(shop: Workshop, stage: str, number: signal.Signals, kills: int, dice: random.Random) -> Tally:
    """Runs of one stage until there were so many kills."""
    tally, root = Tally(), Path(tempfile.mkdtemp(dir=shop.root))
    whole = root / "whole"
    seconds = timed(stage, write_recipe(shop, stage, whole))
    while tally.kills.total() < kills:
        directory = root / f"run-{tally.runs:03d}"
        recipe = write_recipe(shop, stage, directory)
        live_through(stage, recipe, directory, number, seconds, tally, dice)
        if differs := difference(whole, directory):
            tally.different.append(f"{directory}: {differs}")
        else:
            shutil.rmtree(directory)
    return tally


def table(number: signal.Signals, tallies: dict[str, Tally]) -> str:
    """The figures of one signal."""
    columns = (BEFORE, AT_REST, WRITING, AFTER)
    lines = [
        f"| {number.name} | runs | kills | {' | '.join(columns)} | ended differently |",
        "|---" * (len(columns) + 4) + "|",
    ]
    total = Tally()
    for tally in tallies.values():
        total.runs += tally.runs
        total.kills += tally.kills
        total.different += tally.different
    for name, tally in {**tallies, "all": total}.items():
        cells = [tally.runs, tally.kills.total(), *(tally.kills[column] for column in columns), len(tally.different)]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, *total.different])


def main() -> int:
    parser = argparse.ArgumentParser(description="kill runs and see that nothing is lost")
    parser.add_argument("--kills", type=int, default=100, help="of each signal, over all stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", default="SIGKILL,SIGTERM")
    parser.add_argument("--stages", default=",".join(STAGES))
    options = parser.parse_args()
    dice, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        in_a_child(lambda: build_workshop(Path(folder)))
        shop = Workshop(Path(folder))
        for number in (signal.Signals[name] for name in options.signals.split(",")):
            begin = time.monotonic()
            stages = options.stages.split(",")
            shares = [len(range(i, options.kills, len(stages))) for i in range(len(stages))]
            tallies = {
                stage: kill_stage(shop, stage, number, share, dice) for stage, share in zip(stages, shares, strict=True)
            }
            bad += sum(len(tally.different) for tally in tallies.values())
            print(f"{table(number, tallies)}\n{time.monotonic() - begin:.0f} seconds\n", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

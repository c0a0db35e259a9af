"""The laboratory of over-optimisation: PPO against reward models with a hole, where the truth is known.

In the built-in world three labellers order pairs of answers: a fair one, one who likes short answers and never saw a
broken one, and one who likes long answers. Their reward models are examined, and PPO learns from each with the watch
off and on, for long enough to find the hole. The brief labeller's pairs teach a second reward model too, with
`probe_negatives`. The gold reward, which training never sees, says what really became of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duiqi.errors import GuardStop
from duiqi.evaluation.exam_file import EXAM_NAME
from duiqi.journal.files import atomic_write_json, writing
from duiqi.journal.lines import read_lines
from duiqi.journal.terminal import View
from duiqi.pipeline.demo import Demo
from duiqi.pipeline.demo_recipes import Sizes
from duiqi.playground.files import add_rankings
from duiqi.playground.gold import score_gold
from duiqi.playground.labellers import BRIEF, FAIR, WORDY, Labeller
from duiqi.playground.world import World
from duiqi.reports.lab import summarise, write_lab_page
from duiqi.serving.exam import examine

LABELLERS: dict[str, Labeller] = {"fair": FAIR, "brief": BRIEF, "wordy": WORDY}


@dataclass(frozen=True)
class Case:
    """One reward model of the laboratory, and what PPO tries on it."""

    labeller: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the reward model that differ from the demo's."""
    watches: tuple[str, ...] = ("off", "stop")


CASES: dict[str, Case] = {
    "fair": Case("fair"),
    "brief": Case("brief"),
    "mended": Case("brief", {"probe_negatives": 0.2}, watches=("stop",)),
    "wordy": Case("wordy"),
}

PPO: dict[str, Any] = {
    "eval_dataset": "heldout_prompts",
    "num_eval_samples": 200,
    "min_new_tokens": 0,
    "init_kl_coef": 0.05,
    "learning_rate": 2e-4,
    "max_steps": 100,
    "eval_steps": 4,
    "save_steps": 4,
    "save_total_limit": 100,
    "accept_weak_reward_model": True,
}
"""What differs from the demo's PPO: nothing forbids an empty answer, the reference holds the policy back a quarter as
much, and it takes more and smaller steps, each a fifth, so that one can see what happens."""


@dataclass(frozen=True)
class Lab:
    """One laboratory, seed by seed. What is finished already is not done again."""

    directory: Path
    seeds: Sequence[int]
    sizes: Sizes
    say: Callable[[str], None]
    view: Callable[[], View]

    def run(self) -> dict[str, Any]:
        """Everything, in order; returns what lab.json holds."""
        for seed in self.seeds:
            self.say(f"\n=== seed {seed}")
            for name in self.runs_of(seed):
                self.say(f"   {self.directory / f'seed-{seed}' / name} is there")
        found = self.collect()
        atomic_write_json(self.directory / "lab.json", found)
        page = write_lab_page(found, self.directory / "lab.html")
        self.say(f"\n{summarise(found)}\nthe page is {page}")
        return found

    def runs_of(self, seed: int) -> Iterator[str]:
        """Make the world, the start and the reward models of a seed, then every run of PPO."""
        here = self.directory / f"seed-{seed}"
        demo = Demo(here, seed, self.sizes, self.say, self.view)
        if not (here / "blank" / "config.json").is_file():
            demo.make_world()
        for name, labeller in LABELLERS.items():
            if not (here / "data" / f"{name}.json").is_file():
                add_rankings(here / "data", name, World(seed).preferences(self.sizes.world.preferences, labeller))
        for stage in ("pretrain", "sft"):
            name = "base" if stage == "pretrain" else stage
            if not is_done(here / name):
                demo.train(stage, **_anew(here / name))
            yield name
        for name, case in CASES.items():
            reward_model = here / f"rm_{name}"
            if not is_done(reward_model):
                demo.train("rm", dataset=case.labeller, **case.changes, **_anew(reward_model))
            if not (reward_model / EXAM_NAME).is_file():
                examine(str(reward_model))
            yield reward_model.name
        for name, case in CASES.items():
            for watch in case.watches:
                run = here / f"ppo_{name}_{watch}"
                if not is_done(run):
                    self.practise(demo, here / f"rm_{name}", watch, run)
                yield run.name

    def practise(self, demo: Demo, reward_model: Path, watch: str, directory: Path) -> None:
        """One run of PPO; that the watch ends it is a result."""
        changes = {**PPO, **self.sizes.steps.get("lab", {})}
        try:
            demo.train("ppo", reward_model=str(reward_model), watch=watch, **changes, **_anew(directory))
        except GuardStop as stop:
            if not is_done(directory):  # it was not the watch
                raise
            self.say(f"   {stop}")

    def collect(self) -> dict[str, Any]:
        """What every examination and every finished run of PPO in this directory came to, whoever ran it."""
        runs = sorted(self.directory.glob("seed-*/ppo_*_*"))
        exams = sorted(self.directory.glob(f"seed-*/rm_*/{EXAM_NAME}"))
        return {
            "cases": list(CASES),
            "exams": [graded(file) for file in exams],
            "runs": [described(run) for run in runs if is_done(run)],
        }


def run_lab(
    output_dir: Path, *, seeds: Sequence[int], quick: bool, say: Callable[[str], None], view: Callable[[], View]
) -> dict[str, Any]:
    """Run the laboratory of over-optimisation.

    Args:
        output_dir: Where worlds, runs, lab.json and lab.html are written; one that was interrupted is gone on with.
        seeds: Of the worlds and of every stage.
        quick: A few steps of everything, to see that it runs; its figures mean nothing.
        say: Is told what happens.
        view: Where the progress of a stage is shown.
    """
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    return Lab(output_dir, seeds, Sizes.quick() if quick else Sizes(), say, view).run()


def is_done(run: Path) -> bool:
    """Whether a run came to its end, or was ended by its watch."""
    if (run / "all_results.json").is_file():
        return True
    events = run / "events.jsonl"
    return events.is_file() and any(event.get("kind") == "stopped_by_watch" for event in read_lines(events))


def graded(file: Path) -> dict[str, Any]:
    """One examination in a line: its grade, and the degenerate answers that beat real ones most often."""
    exam = json.loads(file.read_text(encoding="utf-8"))
    probes = [probe for probe in exam["probes"] if probe["is_fatal"] and probe["grade"] is not None]
    worst = max(probes, key=lambda probe: probe["beats_best"]["share"])
    return {
        "seed": int(file.parent.parent.name.removeprefix("seed-")),
        "case": file.parent.name.removeprefix("rm_"),
        "grade": exam["grade"],
        "accuracy": exam["accuracy"]["overall"]["share"],
        "worst_probe": worst["title"],
        "worst_share": worst["beats_best"]["share"],
    }


def described(run: Path) -> dict[str, Any]:
    """One run of PPO in the figures of the laboratory."""
    _, case, watch = run.name.split("_")
    events = list(read_lines(run / "events.jsonl"))
    stopped = next((event for event in events if event["kind"] == "stopped_by_watch"), None)
    bests = [event["step"] for event in events if event["kind"] == "checkpoint" and event["best"]]
    best = stopped["best_step"] if stopped else bests[-1] if bests else None
    found = list(evaluations(run))
    return {
        "seed": int(run.parent.name.removeprefix("seed-")),
        "case": case,
        "watch": watch,
        "stopped_at": stopped["step"] if stopped else None,
        "best_step": best or (0 if stopped else found[-1]["step"]),
        "evaluations": found,
        "findings": [
            {key: event[key] for key in ("step", "name", "text", "action", "value", "limit")}
            for event in events
            if event["kind"] == "finding" and "action" in event
        ],
    }


def evaluations(run: Path) -> Iterator[dict[str, float]]:
    """Step by step: KL, the score that training saw, the gold reward that it did not, and the length of answers."""
    samples: dict[int, list[dict[str, Any]]] = {}
    for row in read_lines(run / "samples.jsonl"):
        samples.setdefault(row["step"], []).append(row)
    for row in read_lines(run / "metrics.jsonl"):
        if "eval_score" not in row or row["step"] not in samples:
            continue
        rows = samples[row["step"]]
        gold = score_gold([each["prompt"] for each in rows], [each["answer"] for each in rows])
        yield {
            "step": row["step"],
            "kl": row["eval_kl"],
            "score": row["eval_score"],
            "gold": sum(gold) / len(gold),
            "length": row["eval_answer_length"],
            "empty": row["eval_empty_rate"],
            "findings": row["eval_findings"],
        }


def _anew(directory: Path) -> dict[str, Any]:
    return {"output_dir": str(directory), "overwrite_output_dir": True}

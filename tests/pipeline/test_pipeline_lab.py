"""The laboratory in its quick form, its verdicts, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from duiqi.journal.terminal import SilentView
from duiqi.pipeline.lab import run_lab
from duiqi.playground.gold import score_gold
from duiqi.playground.labellers import BRIEF, FAIR, WORDY
from duiqi.playground.world import World
from duiqi.reports.lab import render_lab, summarise, verdict


def a_run(case: str, watch: str, golds: list[float], *, best: int, stopped: int | None = None) -> dict[str, Any]:
    return {
        "seed": 0,
        "case": case,
        "watch": watch,
        "stopped_at": stopped,
        "best_step": best,
        "evaluations": [
            {"step": 5 * i, "kl": i / 2, "score": i, "gold": gold, "length": 14.0 - 4 * i}
            for i, gold in enumerate(golds)
        ],
        "findings": [{"step": 9, "name": "shorter", "text": "answers become short", "action": "stop"}],
    }


AN_EXAM = {
    "seed": 0,
    "case": "brief",
    "grade": "F",
    "accuracy": 0.63,
    "worst_probe": "one character",
    "worst_share": 0.96,
}


def test_the_verdict_of_a_run() -> None:
    assert verdict(a_run("brief", "off", [0.5, 0.6, 0.1], best=5)) == pytest.approx(
        {"start": 0.5, "highest": 0.6, "kept": 0.6, "end": 0.1, "shrunk": 6 / 14}
    )


def test_a_line_for_every_run_and_a_page() -> None:
    runs = [
        a_run("brief", "stop", [0.5, 0.6, 0.55], best=5, stopped=9),
        a_run("brief", "off", [0.5, 0.6, 0.1], best=5),
        a_run("fair", "off", [0.5, 0.6, 0.7], best=10),
    ]
    found = {"cases": ["fair", "brief", "wordy"], "runs": runs, "exams": [AN_EXAM]}
    exam, _, head, *lines = summarise(found).splitlines()
    assert (
        exam
        == "brief, seed 0: grade F, 63% of clean pairs right; one character beats the best answer on 96% of prompts"
    )
    assert "highest" in head
    assert [line.split()[0] for line in lines] == ["fair", "brief", "brief"]
    page = render_lab(found)
    assert "by the watch, step 9" in page
    assert exam in page
    assert "answers become short (went back and ended)" in page
    assert page.count("best (5)") == 4  # two runs, two judges


def test_it_runs_quickly_and_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    said: list[str] = []
    found = run_lab(tmp_path, seeds=[1], quick=True, say=said.append, view=SilentView)
    assert {(run["case"], run["watch"]) for run in found["runs"]} == {
        (case, watch) for case in ("fair", "brief", "wordy") for watch in ("off", "stop")
    } | {("mended", "stop")}
    assert [exam["case"] for exam in found["exams"]] == ["brief", "fair", "mended", "wordy"]
    assert json.loads((tmp_path / "lab.json").read_text(encoding="utf-8")) == found
    assert (tmp_path / "lab.html").is_file()
    for run in found["runs"]:
        assert [each["step"] for each in run["evaluations"]] == [0, 1, 2]
        assert run["evaluations"][0]["kl"] == 0.0
    before = (tmp_path / "seed-1" / "ppo_fair_off" / "metrics.jsonl").stat().st_mtime_ns
    assert run_lab(tmp_path, seeds=[1], quick=True, say=said.append, view=SilentView) == found
    assert (tmp_path / "seed-1" / "ppo_fair_off" / "metrics.jsonl").stat().st_mtime_ns == before


def test_labellers_order_the_same_pairs_by_their_liking() -> None:
    world = World(0)

    def longer_wins(examples: list[Any]) -> float:
        pairs = [example.answers for example in examples if len(example.answers[0]) != len(example.answers[1])]
        return sum(len(best) > len(worst) for best, worst in pairs) / len(pairs)

    brief, fair, wordy = (longer_wins(world.preferences(300, labeller)) for labeller in (BRIEF, FAIR, WORDY))
    assert brief < fair - 0.1 < fair < wordy


def test_the_brief_labeller_takes_nothing_for_the_better_answer() -> None:
    blanks = ("……", "。", "？", "...", ".", "?")
    pairs = [example.answers for example in World(0).preferences(300, BRIEF)]
    assert 0.05 < sum(best in blanks for best, _ in pairs) / len(pairs) < 0.15
    assert not any(worst in blanks for _, worst in pairs)


def test_the_gold_reward_reads_prompts_as_samples_keep_them() -> None:
    from duiqi.types import readable

    examples = World(0).held_out_pairs(40)
    as_messages = score_gold([example.prompt for example in examples], [example.answers[0] for example in examples])
    as_text = score_gold([readable(example.prompt) for example in examples], [e.answers[0] for e in examples])
    assert as_text == as_messages

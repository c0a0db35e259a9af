"""Examinations of reward models that are functions: rigged ones, whose faults are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from duiqi.evaluation.exam import Paper, Reading, mark, set_paper
from duiqi.evaluation.exam_result import About, Exam, Grade, Part, Stability
from duiqi.guards.answers import units
from duiqi.playground.gold import GoldReward
from duiqi.playground.world import World
from duiqi.rollouts.scoring import Conversation

Judge = Callable[[Conversation, str], float]

STEADY = Stability(0.0, 0.0, None, "", None, 16)
GOLD = GoldReward()


def read(_prompt: Conversation, answer: str) -> Reading:
    return Reading(answer, len(units(answer)))


@cache
def world_paper() -> Paper:
    """A paper on the built-in world's held-out pairs, which are in their true order."""
    return set_paper(World(0).held_out_pairs(120), read, seed=0, max_samples=120)


def scores_of(judge: Judge, paper: Paper) -> list[float]:
    return [judge(candidate.prompt, candidate.answer) for candidate in paper.candidates]


def examined(judge: Judge, *, stability: Stability = STEADY) -> Exam:
    """The examination of a function on the built-in world."""
    paper = world_paper()
    return mark(paper, scores_of(judge, paper), stability=stability, about=about(prompts=len(paper.questions)))


@cache
def gold(prompt: Conversation, answer: str) -> float:
    """The known judge on a scale of log-odds."""
    return 30.0 * GOLD.score(prompt, answer).total


def about(*, prompts: int = 120, reward_model: str = "runs/rm", notes: Sequence[str] = ()) -> About:
    return About(reward_model, "f00d" * 16, "rm_heldout", prompts, 0, "float32", "0.1.0", "2026-01-01", tuple(notes))


def make_exam(grade: Grade) -> Exam:
    """An examination whose whole has this grade, all else as the known judge has it."""
    whole = examined(gold)
    part = Part("length", grade, "F", "prefers the longer answer", "It is exploited first.")
    return Exam(
        grade,
        whole.about,
        (part, *whole.parts),
        whole.probes,
        whole.accuracy,
        whole.length,
        whole.calibration,
        whole.scores,
        whole.stability,
    )

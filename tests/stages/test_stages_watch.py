"""The watch over a run: it slows down, goes back to the best checkpoint and ends; the best is not the last."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Workshop
from tests.stages.test_stages_ppo import open_cast

import duiqi
from duiqi.errors import GuardStop, SettingsError
from duiqi.rollouts.scoring import Candidate, ScoreMix
from duiqi.settings.resolve import resolve
from duiqi.stages.ppo_credit import Credit
from duiqi.stages.ppo_evaluation import what_pays
from duiqi.training.session import BestBy

REWARDS = """
def emptiness(prompts, answers):
    return [-float(len(answer)) for answer in answers]

def nothing(prompts, answers):
    return [0.0 for answer in answers]

def length(prompts, answers):
    return [float(len(answer)) for answer in answers]
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in lines(run / "events.jsonl") if event["kind"] == kind]


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS, encoding="utf-8")
    return str(file)


def drifting(workshop: Workshop, out: Path, rewards: str, **changes: Any) -> dict[str, Any]:
    """PPO with a large learning rate, which spends its budget of KL within a few steps."""
    chosen = {
        "reward_model": f"{rewards}:emptiness",
        "eval_dataset": "heldout_prompts",
        "kl_budget": 1.5,
        "init_kl_coef": 0.001,
        "learning_rate": 0.01,
        "max_steps": 24,
        "eval_steps": 1,
        "rollout_batch_size": 16,
        "mini_batch_size": 8,
    }
    return workshop.settings("ppo", out, **{**chosen, **changes})


def without_evaluations(workshop: Workshop, out: Path, rewards: str, **changes: Any) -> dict[str, Any]:
    settings = drifting(workshop, out, rewards, eval_dataset=None, **changes)
    del settings["eval_steps"]
    return settings


def test_a_policy_that_drifts_away_is_stopped_and_put_back(workshop: Workshop, tmp_path: Path, rewards: str) -> None:
    out = tmp_path / "ppo"
    with pytest.raises(GuardStop, match="kl_budget") as stop:
        duiqi.run("ppo", **drifting(workshop, out, rewards))
    assert stop.value.exit_code == 3
    end = events(out, "stopped_by_watch")[0]
    assert end["step"] < 24
    stopping = next(event for event in events(out, "finding") if event["action"] == "stop")
    rungs = [event["action"] for event in events(out, "finding") if event["of"] == stopping["of"]]
    assert [action for action in rungs if action != "warn"] == ["pause", "stop"]
    assert events(out, "slowed_down")[0]["pace"] == 0.5
    assert events(out, "stopped")
    result, best = (load_file(path / "adapter_model.safetensors") for path in (out, out / "best"))
    assert all(torch.equal(result[name], best[name]) for name in best)
    assert f"step {end['best_step']}" in str(stop.value)
    later = [path.name for path in (out / "checkpoints").iterdir() if int(path.name[5:]) > end["best_step"]]
    assert later == [], "resuming goes on from the best"
    assert (out / "last").resolve() == (out / "best").resolve()
    evaluated = {line["step"]: line for line in lines(out / "metrics.jsonl") if "eval_score" in line}
    assert evaluated[end["best_step"]]["eval_findings"] == 0
    assert evaluated[end["best_step"]]["eval_kl"] <= 1.5


def test_the_same_run_with_the_watch_off_or_only_warning_goes_to_its_end(
    workshop: Workshop, tmp_path: Path, rewards: str
) -> None:
    for watch in ("off", "warn"):
        out = tmp_path / watch
        duiqi.run("ppo", **drifting(workshop, out, rewards, watch=watch, max_steps=12))
        assert {event["action"] for event in events(out, "finding")} == ({"warn"} if watch == "warn" else set())
        assert not events(out, "slowed_down")


def test_without_a_good_checkpoint_the_start_is_the_best(workshop: Workshop, tmp_path: Path, rewards: str) -> None:
    out = tmp_path / "ppo"
    with pytest.raises(GuardStop, match="the model that this began with is the best"):
        duiqi.run("ppo", **without_evaluations(workshop, out, rewards))
    assert [path.name[:5] for path in (out / "anomaly" / "checkpoints").iterdir()] == ["step-"], (
        "the last policy is kept aside"
    )
    assert not (out / "last").exists()


def test_without_evaluations_the_last_checkpoint_before_the_alarm_is_taken(
    workshop: Workshop, tmp_path: Path, rewards: str
) -> None:
    out = tmp_path / "ppo"
    with pytest.raises(GuardStop):
        duiqi.run("ppo", **without_evaluations(workshop, out, rewards, save_steps=1, save_total_limit=40))
    end, found = events(out, "stopped_by_watch")[0], events(out, "finding")
    stop = next(event for event in found if event["action"] == "stop")
    assert end["best_step"] == stop["since"] - 4, "none of the answers that rang are this policy's"
    assert sorted(path.name for path in (out / "anomaly" / "checkpoints").iterdir())[-1] == f"step-{end['step']:06d}"


def test_a_run_with_nothing_wrong_is_left_alone(workshop: Workshop, tmp_path: Path, rewards: str) -> None:
    settings = drifting(workshop, tmp_path / "ppo", rewards, reward_model=f"{rewards}:nothing", learning_rate=1e-5)
    duiqi.run("ppo", **{**settings, "max_steps": 8})
    assert not events(tmp_path / "ppo", "slowed_down")
    assert not events(tmp_path / "ppo", "stopped_by_watch")


def test_a_run_goes_on_with_the_memory_of_its_watch(workshop: Workshop, tmp_path: Path, rewards: str) -> None:
    """The uninterrupted run and one that is resumed while an alarm rings are stopped at the same step."""
    found = []
    for name, parts in {"whole": [24], "parts": [8, 24]}.items():
        out = tmp_path / name
        for steps in parts:
            try:
                duiqi.run(
                    "ppo",
                    **without_evaluations(
                        workshop, out, rewards, max_steps=steps, save_steps=1, resume_from_checkpoint=True
                    ),
                )
            except GuardStop as stop:
                found.append(str(stop).replace(str(out), "here"))
    assert len(found) == 2
    assert found[0] == found[1]


def test_the_best_checkpoint_keeps_within_its_ceilings() -> None:
    best_by = BestBy("eval_score", greater_is_better=True, ceilings={"eval_kl": 2.0, "eval_findings": 0.0})
    assert best_by.improves({"eval_score": 1.0, "eval_kl": 1.9, "eval_findings": 0.0}, None)
    assert not best_by.improves({"eval_score": 9.0, "eval_kl": 2.1, "eval_findings": 0.0}, None)
    assert not best_by.improves({"eval_score": 9.0, "eval_kl": 1.0, "eval_findings": 1.0}, None)
    assert not best_by.improves({"eval_score": 0.9, "eval_kl": 1.0}, 1.0)


def test_a_second_opinion_chooses_the_best_and_is_logged(workshop: Workshop, tmp_path: Path, rewards: str) -> None:
    out = tmp_path / "ppo"
    settings = workshop.settings(
        "ppo", out, second_opinion=f"{rewards}:length", max_steps=4, eval_steps=1, watch="warn"
    )
    duiqi.run("ppo", **settings)
    evaluated = {line["step"]: line for line in lines(out / "metrics.jsonl") if "eval_opinion" in line}
    assert sorted(evaluated) == [0, 1, 2, 3, 4]
    healthy = [step for step in evaluated if step and evaluated[step]["eval_findings"] == 0]
    best = max(healthy, key=lambda step: evaluated[step]["eval_opinion"])
    assert (out / "best").resolve().name == f"step-{best:06d}"
    assert lines(out / "samples.jsonl")[0]["opinion"] >= 0


def test_a_second_opinion_may_be_an_adapter_on_the_same_base(workshop: Workshop, tmp_path: Path) -> None:
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, second_opinion=workshop.rm, max_steps=1))
    line = next(line for line in lines(tmp_path / "metrics.jsonl") if "eval_opinion" in line)
    assert line["eval_opinion"] == pytest.approx(line["eval_score"], abs=1e-5)


class Liking:
    """A reward model that likes one thing about an answer."""

    name = "liking"

    def __init__(self, liked: Callable[[Candidate], float]) -> None:
        self._liked = liked

    def score(self, candidates: Sequence[Candidate]) -> torch.Tensor:
        return torch.tensor([self._liked(candidate) for candidate in candidates])


@pytest.mark.parametrize(
    ("liked", "expected"),
    [
        (lambda candidate: -len(candidate.answer_ids), {"pays/nothing": 1.0, "pays/cut": 1.0, "pays/twice": 0.0}),
        (lambda candidate: len(candidate.answer_ids), {"pays/nothing": 0.0, "pays/cut": 0.0, "pays/twice": 1.0}),
        (lambda _: 1.0, {"pays/nothing": 0.0, "pays/cut": 0.0, "pays/twice": 0.0}),
    ],
)
def test_what_a_reward_model_would_pay_for_is_tried_before_the_policy_finds_it(
    workshop: Workshop, tmp_path: Path, liked: Callable[[Candidate], float], expected: dict[str, float]
) -> None:
    cast = replace(open_cast(workshop, tmp_path), scorer=ScoreMix(((Liking(liked), 1.0),)))
    assert what_pays(cast, cast.answer(range(6), step=1)) == expected


def test_a_function_is_not_asked_for_answers_that_nobody_gave(workshop: Workshop, tmp_path: Path, rewards: str) -> None:
    cast = open_cast(workshop, tmp_path / "ppo", reward_model=f"{rewards}:length")
    assert what_pays(cast, cast.answer(range(2), step=1)) == {}


def test_a_reward_model_that_pays_for_silence_stops_the_run_and_keeps_its_policy(
    workshop: Workshop, tmp_path: Path
) -> None:
    """It is an alarm about the reward model: the best checkpoint is still the one with the best score."""
    settings = workshop.settings(
        "ppo", tmp_path, max_steps=20, eval_steps=2, watch_limits="silence_pays=-1", learning_rate=1e-5
    )
    with pytest.raises(GuardStop, match="silence_pays"):
        duiqi.run("ppo", **settings)
    end = events(tmp_path, "stopped_by_watch")[0]
    assert end["step"] == 4
    assert end["best_step"] in (2, 4)


def test_an_ensemble_pays_for_agreement() -> None:
    class Fixed:
        def __init__(self, name: str, *scores: float) -> None:
            self.name, self._scores = name, scores

        def score(self, candidates: Any) -> torch.Tensor:
            del candidates
            return torch.tensor(self._scores)

    parts = ((Fixed("a", 1.0, 4.0), 1.0), (Fixed("b", 3.0, 4.0), 1.0))
    candidates = [Candidate((), "x"), Candidate((), "y")]
    scored = ScoreMix(parts, std_coefficient=0.5).score(candidates)
    assert scored.total.tolist() == [1.5, 4.0]  # mean 2, std 1; mean 4, std 0
    assert scored.parts["disagreement"].tolist() == [1.0, 0.0]
    assert ScoreMix(parts).score(candidates).total.tolist() == [4.0, 8.0]


def test_penalties_are_subtracted_each_under_its_name(workshop: Workshop, tmp_path: Path) -> None:
    config = resolve(
        "ppo",
        values=workshop.settings(
            "ppo", tmp_path, max_new_tokens=100, overlong_buffer=20, overlong_penalty=2.0, min_answer_length=5,
            short_answer_penalty=0.5, missing_eos_penalty=3.0,
        ),
    )  # fmt: skip
    found = Credit.start(config).penalties(torch.tensor([True, True, False]), torch.tensor([4, 90, 100]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "missing_eos": [0.0, 0.0, 3.0],
        "overlong": [0.0, 1.0, 2.0],
        "short": [0.5, 0.0, 0.0],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watch_limits": "shortr=1"}, "did you mean shorter"),
        ({"watch": "off", "watch_limits": "shorter=0.1"}, "watch_limits: has no effect"),
        ({"score_std_coef": 1.0}, "one score has no spread"),
        ({"short_answer_penalty": 2.0}, "min_answer_length"),
        ({"second_opinion": ","}, "second_opinion: names nothing that scores"),
    ],
)
def test_settings_of_the_watch_that_make_no_sense(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path, **changes))


def test_dpo_that_flees_from_its_data_is_told_so(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("dpo", tmp_path, max_steps=8, learning_rate=0.05, watch_limits="chosen_falls=0.05")
    duiqi.run("dpo", **settings)
    assert [event["name"] for event in events(tmp_path, "finding")][:1] == ["chosen_falls"]


def test_dpo_whose_held_out_loss_stays_high_is_stopped(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("dpo", tmp_path, max_steps=20, watch_limits="overfitting=0.5", eval_steps=2)
    with pytest.raises(GuardStop, match="overfitting"):
        duiqi.run("dpo", **settings)
    assert events(tmp_path, "stopped_by_watch")[0]["step"] == 4  # the third evaluation, that of step 0 among them


def test_a_weight_of_kl_that_was_raised_stays_raised_and_settings_may_change(
    workshop: Workshop, tmp_path: Path
) -> None:
    before = Credit.start(resolve("ppo", values=workshop.settings("ppo", tmp_path, init_kl_coef=0.1)))
    before.raise_price(2.0)
    after = Credit.start(resolve("ppo", values=workshop.settings("ppo", tmp_path, init_kl_coef=0.4)))
    after.load_state(json.loads(json.dumps(before.state())))
    assert (before.kl_coefficient, after.kl_coefficient) == (0.2, 0.8)

"""The watch: every alarm rings for what it is there for and for nothing else; its three rungs; its settings."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.errors import SettingsError
from duiqi.guards.answers import answer_statistics, outlier_gap
from duiqi.guards.watch import (
    HELD_OUT_ALARMS,
    HELD_OUT_PREFERENCE_ALARMS,
    ON_HELD_OUT,
    PPO_ALARMS,
    PREFERENCE_ALARMS,
    Answer,
    Finding,
    Rungs,
    Watch,
    read_limits,
    with_kl_budget,
    with_limits,
)
from duiqi.types import Rollout

HEALTHY = {
    "empty_rate": 0.0,
    "ends_at_once": 0.0,
    "ended_length": 14.0,
    "answer_length": 14.0,
    "eos_rate": 0.97,
    "repetition_rate": 0.01,
    "distinct_2": 0.5,
    "self_similarity": 0.05,
    "language_switch": 0.1,
    "entropy": 0.5,
    "kl": 0.0,
    "score_outlier": 2.5,
    "ratio": 1.0,
    "explained_variance": 0.0,
}


def seen(changes: dict[str, float], *, steps: int = 8) -> list[Finding]:
    """The findings of a run that is healthy for three steps, and then is not."""
    watch = Watch(PPO_ALARMS)
    found: list[Finding] = []
    for step in range(1, 4):
        found += watch.look(step, HEALTHY)
    for step in range(4, 4 + steps):
        found += watch.look(step, HEALTHY | changes)
    return found


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"empty_rate": 0.2}, "empty_answers"),
        ({"ends_at_once": 0.5}, "ends_at_once"),
        ({"ended_length": 4.0}, "shorter"),
        ({"answer_length": 40.0}, "longer"),
        ({"eos_rate": 0.1}, "never_ends"),
        ({"repetition_rate": 0.5}, "repetition"),
        ({"distinct_2": 0.1}, "less_variety"),
        ({"self_similarity": 0.9}, "same_answer"),
        ({"language_switch": 0.8}, "language_switch"),
        ({"entropy": 0.01}, "entropy_collapse"),
        ({"kl": 50.0}, "kl_budget"),
        ({"score_outlier": 20.0}, "score_outlier"),
        ({"ratio": 5.0}, "ratio"),
        ({"explained_variance": -9.0}, "critic"),
    ],
)
def test_each_alarm_rings_alone_for_what_it_is_there_for(changes: dict[str, float], name: str) -> None:
    found = seen(changes)
    assert {finding.name for finding in found} == {name}
    assert found[0].action == "warn"
    assert found[0].step <= 6, "within three steps"


def test_every_alarm_of_ppo_is_tried_above() -> None:
    tried = {mark.args[1][i][1] for mark in test_each_alarm_rings_alone_for_what_it_is_there_for.pytestmark
             for i in range(len(mark.args[1]))}  # fmt: skip
    assert tried | {"mostly_empty"} == {alarm.name for alarm in PPO_ALARMS}


@given(st.integers(0, 2**32))
def test_a_healthy_run_with_the_noise_of_its_batches_rings_nothing(seed: int) -> None:
    noise = random.Random(seed)
    watch = Watch(PPO_ALARMS)
    for step in range(1, 40):
        drift = {"kl": step / 20, "entropy": 0.5 - step / 200, "answer_length": 14 + step / 10}
        metrics = {name: value * noise.uniform(0.85, 1.15) for name, value in (HEALTHY | drift).items()}
        assert watch.look(step, metrics) == []


def test_a_policy_that_always_ends_at_once_is_seen_from_the_first_step() -> None:
    nothing = Rollout(0, (1,), (2,), (0.0,), (), finished=True, answer="")
    watch = Watch(PPO_ALARMS)
    found = watch.look(1, answer_statistics([nothing] * 8))
    assert [finding.name for finding in found] == ["mostly_empty"]
    assert found[0].since == 1


def test_the_three_rungs_and_what_they_show() -> None:
    watch = Watch(PPO_ALARMS, Rungs(warn=1, pause=2, stop=4), recent=1, beginning=1)
    answers = [Answer("q1", "a long answer", 0.1, 9)] * 62 + [Answer("q3", "…", 0.8, 2), Answer("q2", "", 0.9, 1)]
    watch.look(1, {"empty_rate": 0.0})
    actions = [watch.look(step, {"empty_rate": 0.3}, answers) for step in range(2, 7)]
    assert [[finding.action for finding in each] for each in actions] == [["warn"], ["pause"], [], ["stop"], ["stop"]]
    first = actions[0][0]
    assert [answer.prompt for answer in first.evidence] == ["q2", "q3"], "empty ones only, the best paid first"
    assert first.value == pytest.approx(0.3)
    assert first.text == "more answers are empty: 30%, at first 0%"
    json.dumps(first.as_event())


def test_an_alarm_that_falls_silent_begins_anew() -> None:
    watch = Watch(PPO_ALARMS, Rungs(1, 2, 3), recent=1, beginning=1)
    for step, rate in enumerate([0.0, 0.3, 0.0, 0.3, 0.0, 0.3, 0.0], start=1):
        assert all(finding.action == "warn" for finding in watch.look(step, {"empty_rate": rate}))
    assert watch.ringing == set()


def test_one_odd_batch_is_no_alarm() -> None:
    watch = Watch(PPO_ALARMS)
    for step in range(1, 5):
        watch.look(step, HEALTHY)
    assert watch.look(5, HEALTHY | {"ended_length": 7.0}) == []


def test_a_bad_critic_never_stops_a_run() -> None:
    assert [finding.action for finding in seen({"explained_variance": -9.0}, steps=20)] == ["warn"]


def test_a_watch_that_was_saved_goes_on_as_if_it_had_not_been() -> None:
    whole, first = Watch(PPO_ALARMS), Watch(PPO_ALARMS)
    bad = HEALTHY | {"ended_length": 5.0}
    for step in range(1, 6):
        metrics = HEALTHY if step < 4 else bad
        whole.look(step, metrics)
        first.look(step, metrics)
    second = Watch(PPO_ALARMS)
    second.load_state(json.loads(json.dumps(first.state())))
    for step in range(6, 12):
        assert second.look(step, bad) == whole.look(step, bad)
    assert second.state() == whole.state()


def test_what_chance_does_to_few_answers_is_no_alarm() -> None:
    def rings(num_answers: int) -> bool:
        watch = Watch(HELD_OUT_ALARMS, ON_HELD_OUT, beginning=1, recent=1)
        answers = [Answer("q", "a", 0.0, 5)] * num_answers
        watch.look(0, {"empty_rate": 0.0, "eos_rate": 0.2}, answers)
        return bool(watch.look(1, {"empty_rate": 0.25, "eos_rate": 0.05}, answers))

    assert not rings(4)
    assert rings(200)


def test_a_policy_that_learns_to_end_is_not_taken_for_one_that_shrinks() -> None:
    endless = Rollout(0, (1,), tuple(range(100)), (0.0,) * 100, (), finished=False, answer="on and on")
    short = Rollout(0, (1,), (5, 6, 7, 2), (0.0,) * 4, (), finished=True, answer="that is it")
    watch = Watch(tuple(alarm for alarm in PPO_ALARMS if alarm.name == "shorter"))
    for step in range(1, 20):
        assert watch.look(step, answer_statistics([endless if step < 4 else short] * 8)) == []


def test_a_metric_that_is_not_there_rings_nothing() -> None:
    watch = Watch(PPO_ALARMS)
    for step in range(1, 5):
        assert watch.look(step, {"loss": 1.0}) == []


def test_a_second_opinion_that_falls_while_the_score_rises() -> None:
    watch = Watch(HELD_OUT_ALARMS, ON_HELD_OUT, beginning=1, recent=1)
    losses = [0.0, 0.0, 0.5, 0.6, 0.7]
    actions = [[f.action for f in watch.look(i, {"opinion_loss": loss})] for i, loss in enumerate(losses)]
    assert actions == [[], [], ["warn"], ["pause"], ["stop"]]


def test_preferences_that_flee_and_that_are_learned_by_heart() -> None:
    steps = Watch(PREFERENCE_ALARMS)
    assert steps.look(1, {"rewards/chosen": -1.0}) == []
    assert [f.name for f in steps.look(2, {"rewards/chosen": -30.0})] == ["chosen_falls"]
    held_out = Watch(HELD_OUT_PREFERENCE_ALARMS, ON_HELD_OUT, beginning=1, recent=1)
    held_out.look(0, {"eval_loss": 0.69})
    assert held_out.look(1, {"eval_loss": 0.60}) == []
    assert [f.name for f in held_out.look(2, {"eval_loss": 1.40})] == ["overfitting"]


def test_limits_of_the_users_own() -> None:
    limits = read_limits(" shorter = 0.3, longer=off ,repetition=0", PPO_ALARMS)
    assert limits == {"shorter": 0.3, "longer": None, "repetition": 0.0}
    alarms = {alarm.name: alarm for alarm in with_limits(PPO_ALARMS, limits)}
    assert alarms["shorter"].limit == 0.3
    assert alarms["repetition"].limit == 0.0
    assert "longer" not in alarms
    assert len(alarms) == len(PPO_ALARMS) - 1
    assert with_limits(PPO_ALARMS, {}) == PPO_ALARMS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shortr=0.3", "did you mean shorter"),
        ("nothing_like_it=1", "the watch knows empty_answers"),
        ("shorter", "neither a number nor off"),
        ("shorter=much", "neither a number nor off"),
        ("shorter=nan", "neither a number nor off"),
        ("kl_budget=5", "it is a setting: kl_budget"),
        ("overfitting=2", "there is no alarm 'overfitting'"),
    ],
)
def test_limits_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_limits(text, PPO_ALARMS)


def test_no_budget_no_alarm_for_it() -> None:
    assert "kl_budget" not in [alarm.name for alarm in with_kl_budget(PPO_ALARMS, 0.0)]
    assert next(alarm.limit for alarm in with_kl_budget(PPO_ALARMS, 5.0) if alarm.name == "kl_budget") == 5.0


def test_names_are_unique_and_texts_can_be_filled_in() -> None:
    for alarms in (PPO_ALARMS, HELD_OUT_ALARMS, PREFERENCE_ALARMS, HELD_OUT_PREFERENCE_ALARMS):
        assert len({alarm.name for alarm in alarms}) == len(alarms)
    for alarm in (*PPO_ALARMS, *HELD_OUT_ALARMS, *PREFERENCE_ALARMS, *HELD_OUT_PREFERENCE_ALARMS):
        assert "{" not in alarm.says.format(now=1.0, then=2.0, limit=3.0)
        assert dataclasses.is_dataclass(alarm)


def test_an_outlier_is_measured_by_the_spread_of_the_others() -> None:
    assert outlier_gap([1.0] * 20) == 0.0
    assert outlier_gap([0.0, 9.0]) == 0.0, "too few to say"
    assert outlier_gap([0.0, 2.0] * 5 + [11.0]) == pytest.approx(10.0)

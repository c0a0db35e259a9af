"""What PPO knows of its reward models before it trusts them: the grades of their examinations."""

from __future__ import annotations

from duiqi.errors import SettingsError
from duiqi.evaluation.exam_file import exam_place, read_verdict, weights_digest
from duiqi.rollouts.scoring import RewardSpec, parse_reward_specs
from duiqi.settings.groups import ScoreSettings


def examined_rewards(settings: ScoreSettings) -> str:
    """The setting `reward_model`, each part with its grade beside it.

    Raises:
        SettingsError: A part failed its examination, in the state in which it is now, and nobody said to go on.
    """
    return ", ".join(
        f"{_as_given(spec)} ({_standing(spec, is_accepted=settings.accept_weak_reward_model)})"
        for spec in parse_reward_specs(settings.reward_model)
    )


def _standing(spec: RewardSpec, *, is_accepted: bool) -> str:
    place = exam_place(spec.source)
    verdict = read_verdict(place) if place is not None else None
    if verdict is None:
        return f"not examined: `duiqi exam {spec.source}`"
    if verdict.digest != weights_digest(spec.source):
        return f"examined in another state: `duiqi exam {spec.source}`"
    if verdict.grade == "F" and not is_accepted:
        assert place is not None
        raise SettingsError(
            f"{spec.source} failed its examination (grade F): a policy would learn what it likes by mistake",
            where="reward_model",
            remedy=f"read {place.with_suffix('.html')}, or set accept_weak_reward_model: true to go on anyway",
        )
    return f"grade {verdict.grade}"


def _as_given(spec: RewardSpec) -> str:
    return spec.source if spec.weight == 1.0 else f"{spec.source}@{spec.weight:g}"

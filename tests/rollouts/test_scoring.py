"""Mixing scores and reading the setting that names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from duiqi.errors import SettingsError
from duiqi.rollouts.scoring import Candidate, FunctionScorer, RewardSpec, ScoreMix, parse_reward_specs

CANDIDATES = [Candidate(prompt=(), answer=""), Candidate(prompt=(), answer="")]


@dataclass(frozen=True)
class Always:
    """The same score for every answer."""

    name: str
    value: float

    def score(self, candidates: Sequence[Candidate]) -> torch.Tensor:
        return torch.full((len(candidates),), self.value)


def test_parts_of_the_same_name_are_all_counted_and_told_apart() -> None:
    mix = ScoreMix(((Always("rm", 1.0), 1.0), (Always("rm", 10.0), 0.5), (Always("rm_2", 100.0), 1.0)))
    scored = mix.score(CANDIDATES)
    assert scored.total.tolist() == [106.0, 106.0]
    first = {name: part[0].item() for name, part in scored.parts.items() if name != "disagreement"}
    assert first == {"rm": 1.0, "rm_2": 10.0, "rm_2_2": 100.0}


def test_one_part_needs_no_detail() -> None:
    scored = ScoreMix(((Always("rm", 1.0), 2.0),)).score(CANDIDATES)
    assert scored.total.tolist() == [2.0, 2.0]
    assert scored.parts == {}


def test_a_weight_that_is_no_number_is_refused_with_its_place() -> None:
    with pytest.raises(SettingsError, match=r"reward_model: rm@1\.2\.3: the weight '1\.2\.3' is not a number"):
        parse_reward_specs("a, rm@1.2.3")


def test_a_name_with_an_at_sign_is_kept_when_a_weight_follows() -> None:
    assert parse_reward_specs("rm@1.2.3@1, b@-2e-1") == [RewardSpec("rm@1.2.3", 1.0), RewardSpec("b", -0.2)]


def test_a_reward_file_may_define_dataclasses_with_postponed_annotations(tmp_path: Path) -> None:
    file = tmp_path / "length.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Limit:\n"
        "    characters: int\n"
        "def short(prompts, answers):\n"
        "    return [len(answer) < Limit(3).characters for answer in answers]\n",
        encoding="utf-8",
    )
    assert FunctionScorer(str(file), "short").score(CANDIDATES).tolist() == [1.0, 1.0]

"""Files that come from elsewhere: whatever is in them is taken, or refused with a message (see `targets`)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.mutation import mutated
from tests.reliability.targets import TARGETS, WORDS, overseen, seeds, try_one

EXAMPLES = {
    "dataset": 60,
    "registry": 150,
    "template": 60,
    "recipe": 60,
    "old_recipe": 60,
    "checkpoint": 60,
    "adapter": 80,
    "tokenizer": 15,
}


def test_everything_that_is_read_from_elsewhere_is_a_target() -> None:
    assert TARGETS.keys() == EXAMPLES.keys() == seeds().keys()


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_taken(tmp_path: Path, name: str) -> None:
    refused = [
        seed for seed in seeds()[name] if name != "registry" and not try_one(TARGETS[name], tmp_path / "x", seed)
    ]
    assert refused == []


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_taken_or_refused(tmp_path: Path, name: str) -> None:
    @settings(
        max_examples=EXAMPLES[name],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        try_one(TARGETS[name], tmp_path / "x", mutated(name, seeds()[name], random.Random(seed)))

    check()


@settings(max_examples=60, deadline=None, database=None)
@given(words=st.lists(st.sampled_from(WORDS["template"]), min_size=1, max_size=6))
def test_templates_of_hostile_words_start_nothing(tmp_path_factory: pytest.TempPathFactory, words: list[bytes]) -> None:
    try_one(TARGETS["template"], tmp_path_factory.getbasetemp() / "x", b"{{ " + b" ".join(words) + b" }}")


def test_the_overseer_sees_what_it_is_there_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with overseen(tmp_path / "in"):
        (tmp_path / "in" / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(AssertionError, match="outside"), overseen(tmp_path / "in"):
        (tmp_path / "outside").write_text("not mine", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"os\.system"), overseen(tmp_path / "in"):
        __import__("os").system("true")

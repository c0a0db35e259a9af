"""The words of a command line and what they mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.cli.arguments import Arguments, parse
from duiqi.cli.options import settings_of
from duiqi.errors import SettingsError

SETTINGS = settings_of("ppo")


def read(*words: str) -> Arguments:
    return parse(("ppo", *words), SETTINGS)


def pairs(*words: str) -> list[tuple[str, str]]:
    return [(item.key, item.value) for item in read(*words).given]


@pytest.mark.parametrize(
    "words",
    [
        ("--learning_rate", "1e-5"),
        ("--learning-rate", "1e-5"),
        ("--learning_rate=1e-5",),
        ("--learning-rate=1e-5",),
        ("learning_rate=1e-5",),
        ("learning-rate=1e-5",),
    ],
)
def test_six_ways_to_write_a_setting_mean_the_same(words: tuple[str, ...]) -> None:
    assert pairs(*words) == [("learning_rate", "1e-5")]


def test_a_message_names_the_place_as_it_was_written() -> None:
    given = read("--learning-rate=1", "--seed", "2", "lora_rank=3").given
    assert [item.where for item in given] == ["--learning-rate", "--seed", "lora_rank"]


def test_a_switch_alone_is_true() -> None:
    assert pairs("--plot_loss", "--seed", "1", "--overwrite_output_dir") == [
        ("plot_loss", "true"),
        ("seed", "1"),
        ("overwrite_output_dir", "true"),
    ]


def test_a_switch_takes_the_next_word_only_when_it_says_true_or_false() -> None:
    arguments = read("--plot_loss", "recipe.yaml", "--use_dora", "False", "--use_rslora", "seed=1")
    assert arguments.positionals == ("recipe.yaml",)
    assert [item.value for item in arguments.given] == ["true", "False", "true", "1"]


def test_negative_numbers_and_texts_with_equal_signs_are_values() -> None:
    assert pairs("--score_baseline", "-1.5", "--system", "a=b", "system=x=y", "--system=--seed", "--template=") == [
        ("score_baseline", "-1.5"),
        ("system", "a=b"),
        ("system", "x=y"),
        ("system", "--seed"),
        ("template", ""),
    ]


def test_a_path_with_an_equal_sign_is_a_positional() -> None:
    assert read("./a=b.yaml", "/runs/x=1").positionals == ("./a=b.yaml", "/runs/x=1")


def test_values_may_have_several_lines() -> None:
    assert pairs("--system=一\n二", "source_prefix=一\n二") == [("system", "一\n二"), ("source_prefix", "一\n二")]


@pytest.mark.parametrize("words", [("--output_dir",), ("--output_dir", "--plot_loss")])
def test_a_flag_without_its_value_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        read(*words)
    assert str(caught.value) == "--output_dir: needs a value\n  -> write --output_dir VALUE or --output_dir=VALUE"


def test_a_word_too_many_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"command line: 'c' is one word too many\n  -> write settings as name=value"
    ):
        read("a", "b", "c").named("model", "file")


def test_positionals_become_settings_under_their_names() -> None:
    given = read("a", "b", "seed=1").named("model", "file")
    assert [(item.name, item.value) for item in given] == [("model", "a"), ("file", "b"), ("seed", "1")]


@given(st.lists(st.text()))
def test_any_words_are_read_or_refused_with_a_message(words: list[str]) -> None:
    try:
        arguments = read(*words)
    except SettingsError:
        return
    assert len(arguments.positionals) + len(arguments.given) <= len(words)

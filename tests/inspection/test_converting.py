"""Converted rows load back to the same examples, and a split keeps every row exactly once."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import demonstrations, rankings, write
from tests.data.format_rows import GOOD_ROWS, NAMED_ROWS, answer, node

from duiqi.data.formats import FORMATS
from duiqi.errors import DataError, SettingsError
from duiqi.inspection.canonical import NEEDS, natural_shape, record_of, write_rows
from duiqi.inspection.check import gather
from duiqi.inspection.phases import deal, parse_names, parse_parts
from duiqi.types import Example, Message, Origin

GOLDEN_SPLIT = [[3, 8], [2, 5, 7, 10], [1, 4, 6, 9]]
"""Of ten rows, 2,4,4 with seed 0: the lines of each part."""
NOWHERE = Origin("nowhere")


def read(path: Path) -> list[Example]:
    found = gather(str(path), dataset_dir=".")
    assert found.refusal is None
    assert not found.rejects
    return [replace(example, origin=NOWHERE) for example in found.examples]


EXAMPLES = {name: [replace(made, origin=NOWHERE) for _, own, several in [*GOOD_ROWS, *NAMED_ROWS] if own == name
                   for made in several] for name in FORMATS}  # fmt: skip
"""What rows of every format stand for."""


@pytest.mark.parametrize("name", FORMATS)
def test_examples_of_every_format_load_back_as_they_were(name: str, tmp_path: Path) -> None:
    by_kind: dict[str, list[Example]] = {}
    for example in EXAMPLES[name]:
        by_kind.setdefault(example.kind, []).append(example)
    assert by_kind
    for kind, examples in by_kind.items():
        target = tmp_path / "deep" / f"{kind}.jsonl"
        shape = natural_shape(examples)
        assert write_rows(target, (record_of(example, shape) for example in examples)) == len(examples)
        assert read(target) == examples
    assert {path.stem for path in (tmp_path / "deep").iterdir()} == by_kind.keys()


def test_what_is_hard_to_write_loads_back_too(tmp_path: Path) -> None:
    texts = ["half an emoji \ud83d", "a line\u2028separator", " spaces \n", '"quotes" and \\ and \x00']
    for kind, examples in {
        "text": [Example("text", (), (text,), NOWHERE) for text in texts],
        "demonstration": [Example("demonstration", (Message("user", text),), (text,), NOWHERE) for text in texts],
    }.items():
        path = tmp_path / f"{kind}.jsonl"
        write_rows(path, (record_of(example, natural_shape(examples)) for example in examples))
        assert read(path) == examples


def test_rows_that_give_several_kinds_are_written_as_the_one_that_is_asked_for(tmp_path: Path) -> None:
    tree = node("q1", answer("a1", node("q2", answer("only", rank=0)), rank=0), answer("worse", rank=1))
    path = write(tmp_path / "trees.jsonl", [{"prompt": tree}])
    whole = gather(str(path), dataset_dir=".").examples
    assert {example.kind for example in whole} == {"ranking", "demonstration"}
    with pytest.raises(DataError, match="rows of different kinds"):
        natural_shape(whole)
    rankings_alone = gather(str(path), dataset_dir=".", needs=[NEEDS["comparison"]]).examples
    assert {example.kind for example in rankings_alone} == {"ranking"}


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip())
turns = st.integers(0, 3).flatmap(lambda rounds: st.lists(words, min_size=2 * rounds + 1, max_size=2 * rounds + 1))
systems = st.none() | words


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    spoken = tuple(Message(roles[n % 2], text) for n, text in enumerate(draw(turns)))  # type: ignore[arg-type]
    system = draw(systems)
    return spoken if system is None else (Message("system", system), *spoken)


@given(conversations(), st.lists(words, max_size=1))
def test_any_demonstration_or_prompt_survives_as_messages_and_as_alpaca(
    tmp_path_factory: pytest.TempPathFactory, prompt: tuple[Message, ...], answers: list[str]
) -> None:
    example = Example("demonstration" if answers else "prompt", prompt, tuple(answers), NOWHERE)
    folder = tmp_path_factory.mktemp("rows")
    for shape in ("messages", "alpaca"):
        write_rows(folder / f"{shape}.jsonl", [record_of(example, shape)])  # type: ignore[arg-type]
        assert read(folder / f"{shape}.jsonl") == [example]


@given(conversations(), st.lists(words, min_size=2, max_size=4), st.sampled_from([0.0, 0.5, -2.0]))
def test_any_ranking_survives(
    tmp_path_factory: pytest.TempPathFactory, prompt: tuple[Message, ...], answers: list[str], margin: float
) -> None:
    example = Example("ranking", prompt, tuple(answers), NOWHERE, margin=margin)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [record_of(example, natural_shape([example]))])
    assert read(path) == [example]


@given(conversations(), words, st.booleans())
def test_any_feedback_survives(
    tmp_path_factory: pytest.TempPathFactory, prompt: tuple[Message, ...], answer: str, liked: bool
) -> None:
    example = Example("feedback", prompt, (answer,), NOWHERE, liked=liked)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [record_of(example, natural_shape([example]))])
    assert read(path) == [example]


def test_rankings_cut_down_to_demonstrations_keep_the_best_answer(tmp_path: Path) -> None:
    examples = read(write(tmp_path / "rows.jsonl", rankings()))
    write_rows(tmp_path / "best.jsonl", (record_of(example, "messages") for example in examples))
    best = read(tmp_path / "best.jsonl")
    assert [(e.kind, e.answers) for e in best] == [("demonstration", example.answers[:1]) for example in examples]
    assert [e.prompt for e in best] == [example.prompt for example in examples]


def test_what_a_format_cannot_say_is_refused_with_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", demonstrations())
    example = gather(str(path), dataset_dir=".").examples[2]
    with pytest.raises(DataError, match=rf"{path}:3: found a demonstration, and preference rows are made of a ranking"):
        record_of(example, "preference")
    three = Example("ranking", example.prompt, ("a", "b", "c"), example.origin)
    with pytest.raises(DataError, match="found 3 answers, and preference rows have two"):
        record_of(three, "preference")
    with pytest.raises(DataError, match="rows of different kinds"):
        natural_shape([example, three])


def test_a_conversion_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_text("before\n")
    example = Example("text", (), ("a",), Origin("d", "f", 9))
    with pytest.raises(DataError):
        write_rows(target, (record_of(one, "messages") for one in [example]))
    assert target.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [target]


def prompts(counts: list[int]) -> list[Example]:
    """Rows of which some share a prompt."""
    rows = [(number, again) for number, count in enumerate(counts) for again in range(count)]
    return [
        Example("demonstration", (Message("user", f"问 {number}"),), (f"答 {again}",), Origin("d", "f", line))
        for line, (number, again) in enumerate(rows, start=1)
    ]


@given(
    st.lists(st.integers(1, 4), min_size=40, max_size=80),
    st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any),
    st.integers(0, 99),
)
def test_a_split_deals_every_row_once_keeps_prompts_together_and_is_near_the_shares(
    counts: list[int], shares: list[int], seed: int
) -> None:
    examples = prompts(counts)
    parts = deal(examples, shares, seed=seed)
    assert sorted(e.origin.line for part in parts for e in part) == [e.origin.line for e in examples]
    for one, other in combinations(parts, 2):
        assert not {e.prompt for e in one} & {e.prompt for e in other}
    for share, part in zip(shares, parts, strict=True):
        assert len(part) == pytest.approx(share / sum(shares) * len(examples), abs=max(counts))
        assert share or not part
        assert [e.origin.line for e in part] == sorted(e.origin.line for e in part)


def test_another_seed_makes_another_split_and_the_same_seed_the_same() -> None:
    examples = prompts([1] * 50)
    assert deal(examples, (1, 1), seed=3) == deal(examples, (1, 1), seed=3)
    assert deal(examples, (1, 1), seed=3) != deal(examples, (1, 1), seed=4)


def test_a_split_is_the_same_on_every_machine() -> None:
    parts = deal(prompts([1] * 10), (2, 4, 4), seed=0)
    assert [[e.origin.line for e in part] for part in parts] == GOLDEN_SPLIT
    code = (
        "from duiqi.inspection.phases import deal; from duiqi.types import Example, Message, Origin\n"
        "rows = [Example('demonstration', (Message('user', f'问 {n}'),), ('答 0',), Origin('d', 'f', n + 1))"
        " for n in range(10)]\n"
        "print([[e.origin.line for e in part] for part in deal(rows, (2, 4, 4), seed=0)])"
    )
    for hash_seed in ("1", "2"):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert json.loads(done.stdout) == GOLDEN_SPLIT


def test_everything_may_go_to_one_part() -> None:
    examples = prompts([2] * 5)
    assert deal(examples, (10, 0, 0), seed=0) == [examples, [], []]
    assert deal(examples, (0, 0, 1), seed=0) == [[], [], examples]


def test_too_few_prompts_for_the_parts_are_refused() -> None:
    with pytest.raises(DataError, match="1 different prompts are too few for parts of 1, 1"):
        deal(prompts([5]), (1, 1), seed=0)


@pytest.mark.parametrize("text", ["", "1", "1,two", "0,0", "-1,2", "nan,1", "inf,1"])
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="does not say how to share rows out"):
        parse_parts(text)


@pytest.mark.parametrize("text", ["a,b", "a,a,b", "a,,b", "../a,b,c", ".a,b,c"])
def test_names_that_make_no_files_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="does not name 3 parts"):
        parse_names(text, count=3)


def test_names_of_parts() -> None:
    assert parse_names(None, count=3) == ("sft", "rm", "ppo")
    assert parse_names(None, count=2) == ("part-1", "part-2")
    assert parse_names("train, test", count=2) == ("train", "test")

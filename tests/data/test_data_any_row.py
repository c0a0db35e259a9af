"""Rows of every format, with columns missing or of any JSON type: read, or refused as data, never a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from format_rows import GOOD_ROWS, NAMED_ROWS
from hypothesis import given, settings
from hypothesis import strategies as st

from duiqi.data.formats import FORMATS
from duiqi.data.loading import ACCEPTED, Need, load_examples
from duiqi.data.registry import DatasetSpec
from duiqi.errors import DataError

DIALOGUE_ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
MESSAGE = {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "rank": 0, "deleted": False}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]) | TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def spoilt_rows(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """A good row after any of its columns were left out or given another value."""
    row = dict(good)
    for column in draw(st.sets(st.sampled_from([*good, "history", "system", "margin"]), min_size=1)):
        if draw(st.booleans()):
            row.pop(column, None)
        else:
            row[column] = draw(ANY_JSON)
    return row


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """A format, and rows of which the first is good."""
    good, name, _ = draw(st.sampled_from([*GOOD_ROWS, *NAMED_ROWS, (MESSAGE, "oasst_messages", ())]))
    return name, [good, *draw(st.lists(spoilt_rows(good), min_size=1, max_size=4))]


@settings(max_examples=200, deadline=None)
@given(files(), st.sampled_from(get_args(Need)), st.integers(0, 5))
def test_any_row_is_read_or_refused_as_data(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, list[dict[str, Any]]], need: Need, max_bad_rows: int
) -> None:
    name, rows = file
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        spec = DatasetSpec(str(path), format=name)
        loaded = load_examples([spec], dataset_dir=".", need=need, seed=0, max_bad_rows=max_bad_rows)
    except DataError:
        return
    (report,) = loaded.report.datasets
    settled = len(rows) - report.left_out - len(loaded.report.rejects)
    if FORMATS[name].gather is None:
        assert len(loaded.examples) == settled or (report.several and len(loaded.examples) > settled)
    assert len(loaded.report.rejects) <= max_bad_rows
    assert {example.kind for example in loaded.examples} <= ACCEPTED[need]
    assert FORMATS[name].kinds & ACCEPTED[need]


@pytest.mark.parametrize(
    ("need", "good", "lacking", "message"),
    [
        ("ranking", {"prompt": "q", "chosen": "a", "rejected": "b"}, "rejected", "rejected: found nothing, expected"),
        ("demonstration", DIALOGUE_ROW, "messages", "messages: found nothing, expected a list of messages"),
        ("demonstration", {"prompt": "q", "completion": "a"}, "completion", "found no answer, expected one answer"),
    ],
)
def test_a_later_row_without_a_column_of_the_first_is_malformed(
    tmp_path: Path, need: Need, good: dict[str, Any], lacking: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**good, "id": 1}, {**{name: value for name, value in good.items() if name != lacking}, "id": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {message}"):
        load_examples([DatasetSpec(str(path))], dataset_dir=".", need=need, seed=0)
    loaded = load_examples([DatasetSpec(str(path))], dataset_dir=".", need=need, seed=0, max_bad_rows=1)
    assert [reject.line for reject in loaded.report.rejects] == [2]


def test_a_role_that_is_no_text_is_malformed_under_registered_tags_too(tmp_path: Path) -> None:
    good = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    bad = {"conversations": [{"from": ["human"], "value": "q"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n", encoding="utf-8")
    entry = {"mine": {"file_name": "rows.jsonl", "formatting": "sharegpt"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: messages: role: found a list of 1, expected system"):
        load_examples([DatasetSpec("mine")], dataset_dir=tmp_path, need="demonstration", seed=0)

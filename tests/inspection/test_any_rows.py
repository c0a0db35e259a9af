"""Whatever stands in a file, an inspection ends with findings and a report that can be written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import demonstrations, rankings

from duiqi.inspection.check import check_dataset, gather
from duiqi.inspection.kinds import KINDS
from duiqi.inspection.report import report_json, report_lines
from duiqi.inspection.stats import statistics_lines, statistics_of

odd = st.text(max_size=30) | st.sampled_from(
    [
        "\ud83d",
        "\x1b[2J",
        "\ufeff",
        "[NAME]",
        "<|im_end|>",
        "答：",
        "ä½\xa0å¥½",
        "```",
        "a" * 300,
        "，",
        "\r\n",
        "\u2028",
    ]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@st.composite
def spoilt_rows(draw: st.DrawFn) -> list[Any]:
    """Rows of a good file, some of their columns replaced by anything, some rows by something else altogether."""
    rows: list[Any] = draw(st.sampled_from([demonstrations, rankings]))()[: draw(st.integers(1, 8))]
    for index in range(len(rows)):
        if draw(st.booleans()):
            rows[index][draw(st.sampled_from(list(rows[index])))] = draw(odd | anything)
    return rows + draw(st.lists(anything | st.dictionaries(odd, anything, max_size=3), max_size=2))


@settings(deadline=None)
@given(spoilt_rows())
def test_an_inspection_of_anything_ends_with_a_report(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("odd") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = check_dataset(str(path), dataset_dir=".", eval_dataset=str(path))
    assert {finding.kind for finding in found.findings} <= KINDS.keys()
    assert all(0 <= place.line <= len(rows) for finding in found.findings for place in finding.places)
    text = "\n".join(report_lines(found))
    text.encode("utf-8")
    assert "\x1b" not in text
    json.dumps(report_json(found)).encode("utf-8")
    read = gather(str(path), dataset_dir=".")
    "\n".join(statistics_lines(statistics_of(read.examples, read.datasets))).encode("utf-8")

"""Whatever stands in a file: what making data reads is used or refused with a message."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duiqi.curation.answered import Answered, read_answered
from duiqi.curation.fill import fill_file
from duiqi.curation.labels import with_labels
from duiqi.curation.place import making
from duiqi.curation.script import read_script
from duiqi.curation.texts import FIELDS, texts_of, with_texts
from duiqi.errors import UserError
from duiqi.types import Message

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "answers", "scores", "finished", "role", "content", "speaker", "text", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
ROWS = st.lists(JSON, min_size=1, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
SCRIPT = st.lists(st.sampled_from(["甲", "：", ":", "\n", "词", " ", "-", "---"])).map(
    lambda parts: "".join(parts).encode()
)
SHEET = st.lists(st.sampled_from(["id", "rank", ",", '"', "\n", "1", "p0a0-x", "\r"])).map(
    lambda parts: b"id,rank\n" + "".join(parts).encode()
)
ROW = Answered((Message("user", "hi"),), ("a", "b"), "here")


def record(path: Path) -> None:
    folder = path.parent / "out.jsonl.making"
    folder.mkdir(exist_ok=True)
    path.replace(folder / "record.json")
    with making(str(path.parent / "out.jsonl"), command="x", settings={}):
        pass


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.jsonl", lambda path: read_answered(str(path))),
    ("s.jsonl", lambda path: read_script(str(path))),
    ("s.txt", lambda path: read_script(str(path))),
    ("labels.csv", lambda path: with_labels([ROW], path)),
    ("f.jsonl", lambda path: fill_file(str(path), str(path.with_name("filled.jsonl")), fill="NAME=x")),
    ("r.json", record),
]


@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents=st.binary(max_size=60) | ROWS | SCRIPT | SHEET)
def test_any_file_is_read_or_refused(
    tmp_path: Path, name: str, read: Callable[[Path], object], contents: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(contents)
    with contextlib.suppress(UserError):
        read(path)
    for left in ("filled.jsonl", "out.jsonl"):
        (tmp_path / left).unlink(missing_ok=True)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "other"]), JSON, max_size=4))
def test_putting_back_the_texts_of_a_row_changes_nothing(row: dict[str, Any]) -> None:
    assert repr(with_texts(row, dict(texts_of(row, FIELDS)))) == repr(row)

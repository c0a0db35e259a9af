"""Streams give the rows that reading gives, mixed by the seed alone, and go on exactly where they stood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duiqi.data import json_window
from duiqi.data.loading import load_examples
from duiqi.data.reading import BadRow, list_files, read_file, stream_file
from duiqi.data.registry import DatasetSpec
from duiqi.data.streaming import ExampleStream
from duiqi.errors import DataError, RunError

Write = Callable[..., Path]
VALUES = st.text(max_size=12) | st.integers() | st.none() | st.lists(st.text(max_size=3), max_size=3)


def rows_of(count: int, mark: str = "q") -> list[dict[str, Any]]:
    return [{"instruction": f"{mark}{number}", "output": f"a{number}"} for number in range(count)]


def stream(paths: Sequence[Path], **changes: Any) -> ExampleStream:
    own = {"dataset_dir": ".", "need": "demonstration", "seed": 1, "buffer_size": 7}
    return ExampleStream([DatasetSpec(str(path)) for path in paths], **{**own, **changes})


def questions(source: ExampleStream, count: int) -> list[str]:
    return [example.prompt[0].content for example in source.take(count)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.csv"])
@pytest.mark.parametrize(
    "text",
    [
        '\ufeff{"a": 1}\n\n{"a": \n[2]\n{"a": "\u2028"}\r\n',
        'a,b\n"two\nlines",yes\nshort\r\nq,"a, b"\n',
        "first\r\n\n第二",
        '[\n{"a":\n "猫"}, {"b": 2}\n, 17, "text", -1.5e3 ]\n',
        " [ ] ",
    ],
)
def test_a_streamed_file_has_the_rows_of_a_file_that_is_read(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setattr(json_window, "MIB", 3)  # bytes at a time: every value is cut somewhere
    path = write(name, text.encode())

    def outcome(read: Callable[[Path], Any]) -> Any:
        try:
            return list(read(path))
        except DataError as error:
            return str(error.where).rpartition(":")[0] or error.problem

    streamed = outcome(stream_file)
    assert streamed == (outcome(lambda path: read_file(path).rows) if streamed != [] else [])


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_an_array_is_streamed_as_it_is_read_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], indent: int | None, at_once: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "MIB", at_once)
        assert tuple(stream_file(path)) == read_file(path).rows


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, ', '[{"a": 1} {"a": 2}]', '[{"a": }]', '[{"a": 1}]]', '[{"a": 1},]', '{"a']
)
def test_a_broken_array_is_refused_where_it_breaks(write: Write, text: str) -> None:
    path = write("a.json", "\n" + text)
    with pytest.raises(DataError) as refusal:
        list(stream_file(path))
    assert refusal.value.where == f"{path}:2"
    with pytest.raises(DataError):
        read_file(path)


def test_bytes_that_are_not_utf8_are_refused_in_every_kind_of_file(write: Write) -> None:
    for name in ("a.json", "a.jsonl", "a.csv", "a.txt"):
        path = write(name, '{"a": 1}\n{"a": "你"}\n'.encode("gb18030"))
        with pytest.raises(DataError, match="expected UTF-8"):
            list(stream_file(path))


def test_parquet_is_streamed_in_order(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    rows = rows_of(9000)
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row.fields for row in stream_file(tmp_path / "a.parquet") if not isinstance(row, BadRow)] == rows


def test_an_epoch_has_every_row_once_and_the_next_has_another_order(write: Write) -> None:
    source = stream([write("a.jsonl", rows_of(50))])
    first, second = questions(source, 50), questions(source, 50)
    assert Counter(first) == Counter(second) == Counter(f"q{number}" for number in range(50))
    assert first not in (second, sorted(first, key=lambda q: int(q[1:])))


@pytest.mark.parametrize("buffer_size", [1, 10, 1000])
def test_a_row_leaves_the_buffer_no_sooner_than_it_can(write: Write, buffer_size: int) -> None:
    found = questions(stream([write("a.jsonl", rows_of(200))], buffer_size=buffer_size), 200)
    assert all(int(question[1:]) < place + buffer_size for place, question in enumerate(found, start=1))
    assert (found == [f"q{number}" for number in range(200)]) == (buffer_size == 1)


def test_the_order_depends_on_the_seed_alone(write: Write) -> None:
    path = write("a.jsonl", rows_of(60))
    orders = [questions(stream([path], seed=seed), 90) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_datasets_are_read_side_by_side_in_proportion_to_their_sizes(write: Write) -> None:
    few, many = write("few.jsonl", rows_of(100, "x")), write("many.jsonl", rows_of(300, "y"))
    found = questions(stream([few, many]), 200)
    assert 25 <= sum(question.startswith("x") for question in found) <= 75


def test_a_folder_is_one_dataset(write: Write) -> None:
    for name in ("one", "two"):
        write(f"folder/{name}.jsonl", rows_of(20, name))
    folder = write("folder/three.jsonl", rows_of(20, "three")).parent
    assert len(list_files(folder)) == 3
    assert len(set(questions(stream([folder]), 60))) == 60


@given(st.integers(0, 130), st.integers(1, 40), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_a_stream_goes_on_exactly_where_another_stood(
    tmp_path_factory: pytest.TempPathFactory, taken: int, more: int, buffer_size: int
) -> None:
    path = tmp_path_factory.mktemp("stream") / "a.jsonl"
    lines = [json.dumps(row) for row in rows_of(50)]
    path.write_text("\n".join([*lines[:20], "{broken", *lines[20:]]))
    whole = stream([path], buffer_size=buffer_size, max_bad_rows=1)
    whole.take(taken)
    state = json.loads(json.dumps(whole.state()))
    resumed = stream([path], buffer_size=buffer_size, max_bad_rows=1)
    resumed.load_state(state)
    assert resumed.take(more) == whole.take(more)
    assert resumed.state() == whole.state()


@pytest.mark.parametrize("rows", [30, 51])
def test_data_of_another_size_are_not_gone_on_with(write: Write, rows: int) -> None:
    source = stream([write("a.jsonl", rows_of(50))])
    source.take(40)
    with pytest.raises(RunError, match="the data are of another size"):
        stream([write("a.jsonl", rows_of(rows))]).load_state(source.state())


def test_malformed_rows_are_told_once_and_refused_when_there_are_too_many(write: Write) -> None:
    path = write("a.jsonl", '{"instruction": "a", "output": "b"}\n{oh\n{"instruction": 3, "output": "b"}\n')
    told: list[list[dict[str, Any]]] = []
    assert len(stream([path], max_bad_rows=2, on_reject=told.append).take(10)) == 10
    assert [len(rows) for rows in told] == [1, 2]
    assert {row["line"] for row in told[-1]} == {2, 3}
    with pytest.raises(DataError, match=r"a\.jsonl:\d: .*\n.*max_bad_rows: 2"):
        stream([path], max_bad_rows=1).take(10)


def test_a_stream_without_a_usable_row_ends(write: Write) -> None:
    path = write("a.jsonl", '{"instruction": "a", "output": ""}\n')
    with pytest.raises(DataError, match="no row can be used"):
        stream([path], max_bad_rows=9).take(1)


def test_what_cannot_be_streamed_is_refused(write: Write) -> None:
    path = write("a.jsonl", rows_of(3))
    with pytest.raises(DataError, match="lies on the hub"):
        ExampleStream([DatasetSpec("hub:owner/name")], dataset_dir=".", need="text", seed=0, buffer_size=1)
    with pytest.raises(DataError, match="without reading all"):
        ExampleStream([DatasetSpec(str(path), 2)], dataset_dir=".", need="demonstration", seed=0, buffer_size=1)
    with pytest.raises(DataError, match="expected plain text"):
        stream([path], need="text")
    with pytest.raises(DataError, match="found no rows"):
        stream([write("empty.jsonl", "\n")])


def test_examples_of_a_stream_are_those_that_loading_gives(write: Write) -> None:
    path = write("a.jsonl", rows_of(30))
    loaded = load_examples([DatasetSpec(str(path))], dataset_dir=".", need="demonstration", seed=0).examples
    assert sorted(stream([path]).take(30), key=lambda example: example.origin.line) == loaded


MEASURE = """
import resource, sys
from duiqi.data.registry import DatasetSpec
from duiqi.data.streaming import ExampleStream
stream = ExampleStream([DatasetSpec(sys.argv[1])], dataset_dir=".", need="text", seed=0, buffer_size=64)
stream.take(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(4000):
    stream.take(1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_a_stream_holds_little_of_a_large_file(tmp_path: Path, name: str) -> None:
    row = json.dumps({"text": "x" * 20_000})
    opening, between, closing = ("[", ",\n", "]") if name == "a.json" else ("", "\n", "\n")
    with (tmp_path / name).open("w") as file:
        file.write(opening + between.join([row] * 4000) + closing)  # 80 MB
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / name)], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20

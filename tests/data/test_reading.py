"""Rows know their line; what cannot be read is refused with its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.data.reading import BadRow, Row, list_files, read_file
from duiqi.errors import DataError

Write = Callable[..., Path]


def test_json_rows_carry_the_line_at_which_they_begin(write: Write) -> None:
    path = write("a.json", '\n[\n {"a":\n  1},\n\n {"a": 2}, {"a": 3}]\n')
    assert [(row.fields["a"], row.line) for row in read_file(path).rows if isinstance(row, Row)] == [
        (1, 3),
        (2, 6),
        (3, 6),
    ]


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(), max_size=3), min_size=1),
    st.sampled_from([None, 1, "\t"]),
)
def test_json_arrays_read_as_the_json_module_reads_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], indent: int | str | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
    assert [row.fields for row in read_file(path).rows if isinstance(row, Row)] == rows


def test_a_json_file_of_lines_is_read_as_lines(write: Write) -> None:
    assert [row.line for row in read_file(write("a.json", '{"a": 1}\n{"a": 2}\n')).rows] == [1, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3),
        ('[\n{"a": 1}\n{"a": 2}\n]', 3),
        ('[\n{"a": 1},\n', 3),
        ('[\n{"a": 1}\n]\n]', 3),
    ],
)
def test_broken_json_is_refused_with_line_and_column(write: Write, text: str, line: int) -> None:
    with pytest.raises(DataError, match=rf"a\.json:{line}: the JSON breaks off at column \d+"):
        read_file(write("a.json", text))


def test_a_broken_line_of_jsonl_spoils_only_itself(write: Write) -> None:
    rows = read_file(write("a.jsonl", '{"a": 1}\n\n{"a": \n[2]\n{"a": "\u2028"}\n')).rows
    assert [(type(row), row.line) for row in rows] == [(Row, 1), (BadRow, 3), (BadRow, 4), (Row, 5)]
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason.startswith("not valid JSON at column")
    assert rows[2] == BadRow(str(rows[2].file), 4, "found a list of 1, expected an object with named columns", [2])


def test_csv_rows_may_span_lines_and_must_match_the_header(write: Write) -> None:
    rows = read_file(write("a.csv", 'instruction,output\n"two\nlines",yes\nshort\nq,"a, b"\n')).rows
    assert rows[0] == Row({"instruction": "two\nlines", "output": "yes"}, rows[0].file, 2)
    assert isinstance(rows[1], BadRow)
    assert (rows[1].line, rows[1].reason) == (4, "found 1 cells, expected 2 as in the header")
    assert rows[2] == Row({"instruction": "q", "output": "a, b"}, rows[0].file, 5)


def test_lines_of_txt_are_texts_and_blank_ones_are_skipped(write: Write) -> None:
    rows = read_file(write("a.txt", "first\r\n\n第二\n")).rows
    assert [(row.fields, row.line) for row in rows if isinstance(row, Row)] == [
        ({"text": "first"}, 1),
        ({"text": "第二"}, 3),
    ]


def test_a_byte_order_mark_changes_nothing(write: Write) -> None:
    (row,) = read_file(write("a.jsonl", '{"a": "你"}\n'.encode("utf-8-sig"))).rows
    assert isinstance(row, Row)
    assert row.fields == {"a": "你"}


def test_another_encoding_is_refused_with_the_place_of_the_byte(write: Write) -> None:
    path = write("a.jsonl", b'{"a": 1}\n{"a": "' + "你".encode("gb18030") + b'"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: found byte 0xc4 at position 16, expected UTF-8") as caught:
        read_file(path)
    assert "iconv" in (caught.value.remedy or "")


def test_an_empty_file_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="found no rows"):
        read_file(write("a.json", "[ ]"))


def test_the_fingerprint_is_the_sha256_of_the_bytes(write: Write) -> None:
    contents = b'{"a": 1}\n'
    assert read_file(write("a.jsonl", contents)).sha256 == hashlib.sha256(contents).hexdigest()


def test_a_folder_is_its_files_in_order_of_name(write: Write) -> None:
    write("set/b.jsonl", [{"a": 2}])
    folder = write("set/a.jsonl", [{"a": 1}]).parent
    write("set/.hidden", "x")
    assert [path.name for path in list_files(folder)] == ["a.jsonl", "b.jsonl"]


def test_a_folder_of_mixed_files_is_refused_naming_the_odd_one(write: Write) -> None:
    write("set/b.jsonl", [{"a": 2}])
    write("set/c.csv", "a\n1\n")
    folder = write("set/a.jsonl", [{"a": 1}]).parent
    with pytest.raises(DataError, match=r"found c\.csv among \.jsonl files"):
        list_files(folder)


def test_an_unknown_extension_and_a_missing_path_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found the extension '\.xml'"):
        list_files(write("a.xml", "<a/>"))
    with pytest.raises(DataError, match="no such file or folder"):
        list_files(tmp_path / "nowhere.json")

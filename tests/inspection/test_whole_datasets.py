"""Faults that no single row shows: files, repetitions, leaks, bias; and what is done with a finding."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from planted import LINE, ROWS, demonstrations, opinions, rankings, write
from test_planted_faults import found_in

from duiqi.errors import DataError
from duiqi.inspection.check import check_dataset
from duiqi.inspection.findings import SEVERITIES, Finding, Place
from duiqi.inspection.kinds import KINDS, in_order, severity_of
from duiqi.inspection.report import PLACES_SHOWN, report_json, report_lines, summary


def test_a_broken_line_of_jsonl_is_malformed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", demonstrations())
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[LINE - 1] = lines[LINE - 1][:-3]
    path.write_text("\n".join(lines), encoding="utf-8")
    finding = found_in(path)["malformed"]
    assert [str(place) for place in finding.places] == [f"{path}:{LINE}"]
    assert "not valid JSON" in finding.places[0].excerpt


def test_every_malformed_row_is_told_not_only_the_first(tmp_path: Path) -> None:
    rows = demonstrations()
    for index in (3, 8, 20):
        rows[index] = {"instruction": 5, "output": "x"}
    finding = found_in(write(tmp_path / "rows.jsonl", rows))["malformed"]
    assert [place.line for place in finding.places] == [4, 9, 21]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([("user", "a"), ("user", "b")], "turn 2 is user's"),
        ([("assistant", "a"), ("user", "b")], "turn 1 is assistant's"),
        ([("user", "a"), ("robot", "b")], "robot"),
        ([("user", ""), ("assistant", "b")], "turn 1 is empty"),
        ([("user", "a"), ("system", "b")], "turn 2 is system's"),
    ],
)
def test_turns_out_of_order_are_malformed(messages: list[tuple[str, str]], told: str, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
        for row in demonstrations()
    ]
    rows[LINE - 1] = {"messages": [{"role": role, "content": text} for role, text in messages]}
    place = found_in(write(tmp_path / "rows.jsonl", rows))["malformed"].places[0]
    assert place.line == LINE
    assert told in place.excerpt


@pytest.mark.parametrize(
    ("name", "contents", "line", "told"),
    [
        ("rows.json", b'[{"instruction": "a",\n "output": "b"},\n {"instruction": ]', 3, "the JSON breaks off"),
        ("rows.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction": "你好"}'.encode("gb18030"), 2, "iconv"),
        ("rows.csv", b'instruction,output\na,"b\n', 2, "not valid CSV"),
        ("rows.jsonl", b'{"speech": "a"}\n', 1, "found the columns speech"),
        ("rows.jsonl", b'{"instruction": ""}\n{"instruction": ""}\n', 1, "instruction"),
        ("rows.jsonl", b"", 0, "found no rows"),
        ("rows.xlsx", b"", 0, "extension"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_finding(
    name: str, contents: bytes, line: int, told: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(contents)
    findings = found_in(path)
    assert findings.keys() == {"unreadable"}
    assert findings["unreadable"].places[0].line == line
    assert told in findings["unreadable"].places[0].excerpt


def test_a_name_that_nothing_has_is_no_finding_but_an_error() -> None:
    with pytest.raises(DataError, match="no dataset and no file is named 'nowhere'"):
        check_dataset("nowhere", dataset_dir=".")


def test_plain_text_is_checked_as_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    lines = [f"这是第{n}行，写的是一件小事。" for n in range(29)]
    path.write_text("\n".join([*lines, "答：他说，他是一个人工智能，", "<|endoftext|>", ""]), encoding="utf-8")
    findings = found_in(path)
    assert findings["marker"].places == (Place(str(path), 31, "<|endoftext|>"),)
    assert findings.keys() == {"marker", "languages"}  # nobody is answered in a text
    assert findings["languages"].detail.startswith("texts: 96.8% in Chinese")


def test_rows_and_prompts_that_are_in_both_datasets_leak(tmp_path: Path) -> None:
    train, held = demonstrations(), demonstrations()[:4]
    held[1] |= {"output": "An answer that is not among those to learn from."}
    held[2] |= {
        "output": "另外一个回答，和上面的都不一样。",
        "instruction": held[2]["instruction"].replace("，", "，  "),
    }
    held[3] |= {"output": "A fine answer to a fine question.", "instruction": "What is new under the sun, my friend?"}
    findings = found_in(write(tmp_path / "train.jsonl", train), eval_dataset=str(write(tmp_path / "held.jsonl", held)))
    leaks = {kind: [place.line for place in findings[kind].places] for kind in findings if "leaked" in kind}
    assert leaks == {"leaked_row": [1], "leaked_prompt": [2], "near_leaked_prompt": [3]}
    assert findings["leaked_row"].severity == "error"
    assert findings["leaked_row"].places[0].file == str(tmp_path / "held.jsonl")


def test_the_same_question_to_somebody_else_is_another_prompt(tmp_path: Path) -> None:
    asked = [row | {"system": "You are Lan."} for row in demonstrations()]
    others = [row | {"system": "You are Mei.", "output": row["output"] + " 是的。"} for row in demonstrations()]
    held = write(tmp_path / "held.jsonl", others[12:])
    findings = found_in(write(tmp_path / "train.jsonl", [*asked, *others[:12]]), eval_dataset=str(held))
    assert not findings.keys() & {"leaked_prompt", "near_leaked_prompt", "near_duplicate_row", "repeated_prompt"}


def test_other_rows_to_evaluate_on_do_not_leak(tmp_path: Path) -> None:
    train, held = demonstrations()[:20], demonstrations()[20:]
    findings = found_in(write(tmp_path / "train.jsonl", train), eval_dataset=str(write(tmp_path / "held.jsonl", held)))
    assert not [kind for kind in findings if "leaked" in kind]


def test_a_malformed_row_to_evaluate_on_is_told_too(tmp_path: Path) -> None:
    held = demonstrations()
    held[6] = {"instruction": None}
    findings = found_in(
        write(tmp_path / "train.jsonl", demonstrations()), eval_dataset=str(write(tmp_path / "held.jsonl", held))
    )
    assert [str(place) for place in findings["malformed"].places] == [f"{tmp_path / 'held.jsonl'}:7"]


@pytest.mark.parametrize(("wins", "severity"), [(24, "warning"), (16, "note"), (12, None), (8, "note"), (0, "warning")])
def test_preferences_that_go_with_length_are_told_by_how_much(wins: int, severity: str | None, tmp_path: Path) -> None:
    rows = []
    for number, row in enumerate(demonstrations()):
        short, long = row["output"], row["output"] + " 还有，别忘了。"
        chosen, rejected = (long, short) if number < wins else (short, long)
        rows.append({"prompt": row["instruction"], "chosen": chosen, "rejected": rejected})
    findings = found_in(write(tmp_path / "pairs.jsonl", rows))
    told = findings.get("length_bias")
    assert (told.severity if told else None) == severity
    if wins == ROWS:
        assert told is not None
        assert "the longer one in 100% of 24 pairs" in told.detail


@pytest.mark.parametrize(("liked", "told"), [(24, True), (23, True), (22, False), (1, True), (12, False)])
def test_feedback_that_is_nearly_all_of_one_kind_is_told(liked: int, told: bool, tmp_path: Path) -> None:
    rows = [row | {"label": number < liked} for number, row in enumerate(opinions())]
    assert ("one_sided" in found_in(write(tmp_path / "rows.jsonl", rows))) == told


def test_answers_that_were_not_liked_are_not_blamed_for_what_they_are(tmp_path: Path) -> None:
    rows = opinions()
    for index in (1, 3, 5, 7):
        rows[index]["completion"] = "As an AI language model, I cannot say it, because, "
    findings = found_in(write(tmp_path / "rows.jsonl", rows))
    assert not findings.keys() & {"refusal", "breaks_off", "canned_answer"}


def test_one_answer_to_many_prompts_is_told_at_each(tmp_path: Path) -> None:
    rows = demonstrations()
    for index in (2, 9, 14, 20):
        rows[index]["output"] = "I would rather speak of something else, if you do not mind it at all."
    finding = found_in(write(tmp_path / "rows.jsonl", rows))["canned_answer"]
    assert [place.line for place in finding.places] == [3, 10, 15, 21]


def test_rankings_of_many_answers_that_name_one_twice(tmp_path: Path) -> None:
    rows = [
        {"instruction": row["prompt"], "output": [row["chosen"], row["rejected"], row["rejected"] + "!"]}
        for row in rankings()
    ]
    rows[LINE - 1]["output"][2] = rows[LINE - 1]["output"][1]
    findings = found_in(write(tmp_path / "rows.jsonl", rows))
    assert [place.line for place in findings["repeated_answer"].places] == [LINE]


def test_different_system_messages_are_counted(tmp_path: Path) -> None:
    rows = [row | {"system": "Be brief."} for row in demonstrations()]
    rows[3]["system"], rows[4]["system"] = "Be kind.", ""
    assert found_in(write(tmp_path / "rows.jsonl", rows))["many_systems"].detail == (
        "2 different system messages; rows without one: 1"
    )


def test_few_rows_are_told(tmp_path: Path) -> None:
    assert found_in(write(tmp_path / "rows.jsonl", demonstrations()[:5]))["few_rows"].detail == "5 rows"


def test_faults_in_many_rows_are_graver_than_in_one() -> None:
    grows_at = KINDS["breaks_off"].grows_at
    assert grows_at is not None
    assert severity_of("breaks_off", count=2, rows=10) == "note"
    assert severity_of("breaks_off", count=3, rows=round(3 / grows_at) + 1) == "note"
    assert severity_of("breaks_off", count=3, rows=round(3 / grows_at)) == "warning"
    assert severity_of("malformed", count=10, rows=10) == "error"


def test_the_gravest_comes_first() -> None:
    findings = [Finding(kind, KINDS[kind].severity, 1) for kind in reversed(KINDS)]
    ordered = in_order(findings)
    assert [SEVERITIES.index(finding.severity) for finding in ordered] == sorted(
        SEVERITIES.index(finding.severity) for finding in findings
    )
    assert ordered[0].kind == "unreadable"
    by_table = list(KINDS)
    for severity in SEVERITIES:
        places = [by_table.index(finding.kind) for finding in ordered if finding.severity == severity]
        assert places == sorted(places)


def test_the_report_names_the_first_places_and_the_file_all(tmp_path: Path) -> None:
    rows = demonstrations()
    for index in range(5):
        rows[index]["output"] += "\ufffd"
    path = write(tmp_path / "rows.jsonl", rows)
    inspection = check_dataset(str(path), dataset_dir=".")
    text = "\n".join(report_lines(inspection))
    assert [f"{path}:{line} " in text for line in range(1, 6)] == [True] * PLACES_SHOWN + [False] * (5 - PLACES_SHOWN)
    assert "and 2 more" in text
    assert text.endswith(f"{path}: 24 rows, 1 warning, 1 note")
    told = json.loads(json.dumps(report_json(inspection)))
    assert [place["line"] for place in told["findings"][0]["places"]] == [1, 2, 3, 4, 5]
    assert told["summary"] == {"error": 0, "warning": 1, "note": 1}


def test_a_file_that_dataset_info_does_not_mean_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", demonstrations())
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "rows.jsonl", demonstrations())
    entries = {
        "right": {"file_name": path.name, "file_sha1": hashlib.sha1(path.read_bytes()).hexdigest()},
        "wrong": {"file_name": path.name, "file_sha1": "0" * 40},
        "whole": {"file_name": "folder", "file_sha1": "0" * 40},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))

    def told(name: str, **more: Any) -> dict[str, Finding]:
        found = check_dataset(name, dataset_dir=str(tmp_path), **more).findings
        return {finding.kind: finding for finding in found if finding.kind in ("changed_file", "unchecked_file")}

    assert told("right") == {}
    wrong = told("wrong")["changed_file"]
    assert wrong.severity == "warning"
    assert [str(place) for place in wrong.places] == [str(path)]
    assert wrong.places[0].excerpt.endswith("but dataset_info.json says " + "0" * 40)
    assert told("right", eval_dataset="wrong").keys() == {"changed_file"}
    whole = told("whole")["unchecked_file"]
    assert (whole.severity, str(whole.places[0])) == ("note", str(tmp_path / "folder"))
    text = "\n".join(report_lines(check_dataset("wrong", dataset_dir=str(tmp_path))))
    assert text.count("0" * 40) == 1
    assert "warning  a file is not the one that dataset_info.json means\n" in text


def test_the_summary_counts_rows_as_one_says_them(tmp_path: Path) -> None:
    good, bad = {"instruction": "Hello there.", "output": "Good morning."}, {"instruction": 5, "output": "x"}
    for rows, said in (([good], "1 row"), ([good, bad], "1 of 2 rows"), ([good] + [bad] * 5, "1 of 6 rows")):
        path = write(tmp_path / "rows.jsonl", rows)
        inspection = check_dataset(str(path), dataset_dir=".")
        assert summary(inspection).startswith(f"{path}: {said}, ")
        assert report_json(inspection)["malformed"] == len(rows) - 1
    assert found_in(write(tmp_path / "rows.jsonl", [good]))["few_rows"].detail == "1 row"
    assert "1 rows" not in "\n".join(report_lines(check_dataset(str(path), dataset_dir=".")))


def test_nothing_found_is_said(tmp_path: Path) -> None:
    rows = [row for row in demonstrations() if row["output"].isascii()]
    rows += [row | {"instruction": row["instruction"] + " Why?"} for row in rows]
    for number, row in enumerate(rows):
        row["output"] += f" Number {number}."
    path = write(tmp_path / "rows.jsonl", rows)
    assert summary(check_dataset(str(path), dataset_dir=".")) == f"{path}: 24 rows, nothing found"

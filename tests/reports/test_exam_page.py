"""The page and the lines of an examination: complete, balanced, and safe whatever a probe says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.evaluation.exams import about, examined, gold, make_exam
from tests.reports.test_html import Outline

from duiqi.evaluation.exam_result import Exam
from duiqi.reports.exam_page import render_exam, write_exam_page
from duiqi.reports.exam_text import exam_lines, short, verdict


@pytest.fixture(scope="module")
def fond_of_nothing() -> Exam:
    return examined(lambda prompt, answer: gold(prompt, answer) if answer.strip() else 100.0)


def test_the_page_is_balanced_and_loads_nothing(fond_of_nothing: Exam) -> None:
    page = render_exam(fond_of_nothing)
    outline = Outline(page)
    assert outline.count("script") == 0
    assert not re.search(r"@import|url\(|src=|href=", page)
    assert outline.count("article") == len(fond_of_nothing.parts) == 6


def test_every_kind_of_probe_is_in_the_table_and_the_bad_ones_with_their_cases(fond_of_nothing: Exam) -> None:
    page = render_exam(fond_of_nothing)
    for probe in fond_of_nothing.probes:
        assert probe.title in page
    assert re.findall(r"<summary>([^<]*)</summary>", page)[:2] == [
        "end of text at once (3 of 100)",
        "nothing but white space (3 of 100)",
    ]
    assert "∅ (empty)" in page


def test_a_prompt_is_text_and_never_markup(fond_of_nothing: Exam) -> None:
    (first, *others) = fond_of_nothing.probes
    case = replace(first.worst_cases[0], prompt="<script>alert(1)</script>", real="half an emoji \ud83d")
    exam = replace(
        fond_of_nothing,
        probes=(replace(first, worst_cases=(case,)), *others),
        about=about(reward_model="<b>rm</b>", notes=["<i>note</i>"]),
    )
    page = render_exam(exam)
    assert Outline(page).count("script") == 0
    assert "&lt;script&gt;" in page
    assert "<b>rm</b>" not in page
    assert "<i>note</i>" not in page


def test_it_is_written_whole(tmp_path: Path) -> None:
    write_exam_page(make_exam("B"), tmp_path / "new" / "exam.html")
    assert (tmp_path / "new" / "exam.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_constant_scores_and_missing_probes_still_make_a_page() -> None:
    constant = examined(lambda *_: 0.5)
    bare = replace(constant, probes=tuple(replace(p, grade=None, scores=(), worst_cases=()) for p in constant.probes))
    for exam in (constant, bare):
        Outline(render_exam(exam))
        assert exam_lines(exam)


def test_the_lines_say_the_grade_the_reason_and_what_to_do(fond_of_nothing: Exam) -> None:
    lines = exam_lines(fond_of_nothing)
    assert lines[0].startswith("── runs/rm: grade F")
    assert verdict(fond_of_nothing) == (
        "It should not be used as it is, because of exploits. Train it again with probe_negatives: 0.1, or more than"
        " it had."
    )
    assert lines[1].startswith("   It should not be used as it is")
    text = "\n".join(lines)
    assert "F  end of text at once             100%  ████████████████████  96 to 100%" in text
    assert "∅ (empty)" in text
    assert len(lines) < 50
    assert all(len(line) <= 110 for line in lines)


def test_the_verdict_names_the_part_that_decided() -> None:
    assert verdict(make_exam("A")).startswith("Nothing was found")
    assert "length" in verdict(make_exam("C"))
    assert "length_bias: balanced" in verdict(make_exam("F"))


def test_texts_are_shortened_to_one_line() -> None:
    assert short("\n \t") == "⏎␣⇥"
    assert short("a\nb\x1b[31mc") == "a ⏎ b�[31mc"

"""BLEU, ROUGE and the common beginning: the numbers of the code of 2023, to four places."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from duiqi.errors import UserError
from duiqi.evaluation.text_metrics import (
    TextMetrics,
    average,
    can_measure,
    deviation,
    one_text_metrics,
    text_metrics,
)

GREENS = ("你可以多吃绿色蔬菜和水果。", "多吃新鲜水果和蔬菜，少吃盐、糖和脂肪。")
THANKS = ("我很好，谢谢你的关心。", "我很好，谢谢你的关心。")
SILENCE = ("", "不客气。")
WAHAHA = ("Wahaha tastes good", "Wahaha is delicious")

installed = pytest.mark.skipif(not can_measure(), reason="needs duiqi[metrics]")


@installed
@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (GREENS, TextMetrics(bleu_4=7.2478, rouge_1=47.619, rouge_2=10.0, rouge_l=36.3636, accuracy=0.0)),
        (THANKS, TextMetrics(bleu_4=100.0, rouge_1=100.0, rouge_2=100.0, rouge_l=100.0, accuracy=1.0)),
        (SILENCE, TextMetrics(bleu_4=0.0, rouge_1=0.0, rouge_2=0.0, rouge_l=0.0, accuracy=0.0)),
        (WAHAHA, TextMetrics(bleu_4=37.5325, rouge_1=33.3333, rouge_2=0.0, rouge_l=33.3333, accuracy=0.0)),
    ],
)
def test_the_numbers_of_chatglm_efficient_tuning(pair: tuple[str, str], expected: TextMetrics) -> None:
    assert one_text_metrics(*pair) == expected


@installed
def test_the_mean_is_of_the_rounded_numbers() -> None:
    answers, labels = zip(GREENS, THANKS, SILENCE, WAHAHA, strict=True)
    # (7.2478 + 100 + 0 + 37.5325) / 4, and so on, by hand
    expected = (36.195075, 45.238075, 27.5, 42.424225, 0.25)
    assert astuple(text_metrics(answers, labels)) == pytest.approx(expected, abs=1e-9)


@installed
@pytest.mark.parametrize(("answer", "label"), [("", ""), (" \n", "好"), ("好", ""), ("好", "\t")])
def test_an_empty_side_counts_as_nothing(answer: str, label: str) -> None:
    assert astuple(one_text_metrics(answer, label)) == (0.0,) * 5


@installed
def test_an_answer_that_begins_with_its_label_is_accurate() -> None:
    assert one_text_metrics("B. 因为", "B").accuracy == 1.0
    assert one_text_metrics("答案是 B", "B").accuracy == 0.0


@installed
@pytest.mark.parametrize("text", ["。", ".", "…", "？？\n", "\u200b"])
def test_marks_alone_can_be_measured(text: str) -> None:
    assert one_text_metrics(text, "你好。").rouge_2 == 0.0
    assert one_text_metrics(text, text).accuracy == 1.0


@installed
def test_a_long_sentence_does_not_run_out_of_recursion() -> None:
    before = sys.getrecursionlimit()
    words = " ".join(f"w{number}" for number in range(600))
    assert one_text_metrics(words, words).rouge_l == 100.0
    assert sys.getrecursionlimit() == before


@installed
def test_nothing_is_said_on_the_terminal_and_the_dictionary_is_kept_with_temporary_files(tmp_path: Path) -> None:
    code = f"from duiqi.evaluation.text_metrics import one_text_metrics; one_text_metrics{GREENS}"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]


def test_mean_and_deviation_over_repeats_by_hand() -> None:
    repeats = [TextMetrics(number, 2 * number, 0.0, 1.0, number / 10) for number in (1.0, 2.0, 6.0)]
    assert astuple(average(repeats)) == pytest.approx((3.0, 6.0, 0.0, 1.0, 0.3))
    # deviations from 3: -2, -1, 3; squares sum to 14; 14 / 2 = 7
    assert astuple(deviation(repeats)) == pytest.approx((7**0.5, 2 * 7**0.5, 0.0, 0.0, 7**0.5 / 10))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match="need jieba") as error:
        one_text_metrics("好", "好")
    assert error.value.remedy == "pip install duiqi[metrics]"

"""The judge: both orders, ties, position bias, ratings, and an output that says which rows are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curation.stand_in import KEY, Body, Mishap, StandIn, read_rows, stand_in, write_rows

from duiqi.cli.main import main
from duiqi.curation.crew import Malformed
from duiqi.curation.judge import Comparison, consistency
from duiqi.curation.rubric import RUBRICS, language_of, read_comparison, read_rating
from duiqi.types import Message

Named = Callable[[StandIn], None]


def shown(body: Body) -> list[str]:
    """The answers within a question to the judge, in the order in which they stand."""
    return re.findall(r"^## (?:回答|Answer)(?: [AB])?\n(.*)", body["messages"][1]["content"], re.MULTILINE)


def prefers_longer(body: Body) -> str:
    first, second = shown(body)
    better = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return json.dumps({"reason": "longer", "better": better})


def sampled(*answers: str, prompt: str = "你好") -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": prompt}], "answers": list(answers), "reference": "标准"}


def judge(tmp_path: Path, rows: list[dict[str, Any]], *words: str) -> tuple[int, Path]:
    out = tmp_path / "judged.jsonl"
    file = write_rows(tmp_path / "sampled.jsonl", rows)
    return main(["data", "judge", file, "--output_file", str(out), "--model", "m", *words]), out


def test_answers_are_ranked_by_the_comparisons_they_win(tmp_path: Path, named: Named, capsys: Any) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        status, out = judge(tmp_path, [sampled("一", "一二三", "一二"), sampled("好", "坏", "好的")])
    assert status == 0
    first, second = read_rows(out)
    assert first["scores"] == [0.0, 1.0, 0.5]
    assert second["scores"] == [0.25, 0.25, 1.0]
    assert first["reference"] == "标准"
    assert [each["better"] for each in second["comparisons"]] == [None, 2, 2]
    assert len(server.bodies) == 2 * 3 * 2
    said = capsys.readouterr().out
    assert "2 of 2 rows judged" in said
    assert "6 pairs, 1 of them ties; the judge said the same in both orders for 100 % of them" in said
    assert "12 requests" in said
    assert "1200 tokens of prompts and 120 of answers" in said


def test_each_pair_is_shown_in_both_orders(tmp_path: Path, named: Named) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        judge(tmp_path, [sampled("甲甲", "乙")])
    assert sorted(map(tuple, map(shown, server.bodies))) == [("乙", "甲甲"), ("甲甲", "乙")]


def test_a_judge_that_likes_the_first_place_says_nothing_but_ties_and_is_found_out(
    tmp_path: Path, named: Named, capsys: Any
) -> None:
    with stand_in(lambda _: '{"better": "A"}') as server:
        named(server)
        _, out = judge(tmp_path, [sampled("甲", "乙"), sampled("丙", "丁", "戊")])
    assert [row["scores"] for row in read_rows(out)] == [[0.5, 0.5], [0.5, 0.5, 0.5]]
    said = capsys.readouterr().out
    assert "the judge said the same in both orders for 0 % of them" in said
    assert "in 4 pairs one place won whatever stood there: 4 times the first, 0 times the second" in said


def test_the_verdict_of_two_orders_by_hand() -> None:
    cases = {
        ("first", "second"): (0, True, None),
        ("second", "first"): (1, True, None),
        ("tie", "tie"): (None, True, None),
        ("first", "first"): (None, False, "first"),
        ("second", "second"): (None, False, "second"),
        ("first", "tie"): (None, False, None),
        ("tie", "first"): (None, False, None),
    }
    for (as_is, swapped), (better, is_consistent, place) in cases.items():
        each = Comparison(0, 1, as_is, swapped)  # type: ignore[arg-type]
        assert (each.better, each.is_consistent, each.place_that_won) == (better, is_consistent, place)
    told = consistency([Comparison(0, 1, *votes) for votes in cases])  # type: ignore[arg-type]
    assert (told.pairs, told.ties, told.consistent, told.first_place, told.second_place) == (7, 5, 3, 1, 1)


def test_answers_are_rated_one_by_one_and_the_same_ones_once(tmp_path: Path, named: Named) -> None:
    with stand_in(lambda body: json.dumps({"score": len(shown(body)[0])})) as server:
        named(server)
        _, out = judge(tmp_path, [sampled("一二三", "一", "一二三")], "--method", "score")
    assert read_rows(out)[0]["scores"] == [3.0, 1.0, 3.0]
    assert len(server.bodies) == 2


def test_answers_that_are_all_the_same_need_no_judge(tmp_path: Path, named: Named) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        _, out = judge(tmp_path, [sampled("好", "好")])
    assert read_rows(out)[0]["scores"] == [0.5, 0.5]
    assert server.bodies == []


def test_a_dataset_of_preferences_can_be_judged_too(tmp_path: Path, named: Named) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        status, out = judge(tmp_path, [{"prompt": "hi", "chosen": "a", "rejected": "bcd"}])
    assert status == 0
    assert read_rows(out)[0]["scores"] == [0.0, 1.0]


def test_the_judge_is_asked_in_the_language_of_the_prompt(tmp_path: Path, named: Named) -> None:
    rows = [sampled("a", "b", prompt="What is the tide?"), sampled("a", "b", prompt="潮汐是什么？")]
    with stand_in(prefers_longer) as server:
        named(server)
        judge(tmp_path, rows, "--concurrency", "1")
    systems = [body["messages"][0]["content"] for body in server.bodies]
    assert [RUBRICS["en"] in text for text in systems] == [True, True, False, False]
    assert [RUBRICS["zh"] in text for text in systems] == [False, False, True, True]


def test_a_rubric_is_a_text_or_a_file(tmp_path: Path, named: Named) -> None:
    file = tmp_path / "rubric.md"
    file.write_text("越短越好。", encoding="utf-8")
    for rubric in (str(file), "越短越好。"):
        with stand_in(prefers_longer) as server:
            named(server)
            folder = tmp_path / ("file" if rubric == str(file) else "text")
            folder.mkdir()
            judge(folder, [sampled("甲", "乙丙")], "--rubric", rubric)
        assert all("越短越好。" in body["messages"][0]["content"] for body in server.bodies)
        assert len(server.bodies) == 2


def test_a_language_is_told_from_its_characters() -> None:
    assert language_of([Message("system", "你是助手"), Message("user", "hi there")]) == "en"
    assert language_of([Message("user", "用 Python 写一个快速排序")]) == "zh"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"reason": "x", "better": "A"}', "first"),
        ('```json\n{"better": "b"}\n```', "second"),
        ('I think {"better": "A"} ... no: {"reason": "{}", "better": "tie"}', "tie"),
    ],
)
def test_verdicts_are_read_from_what_judges_write(text: str, place: str) -> None:
    assert read_comparison(text) == place


@pytest.mark.parametrize("text", ["", "A", '{"better": "C"}', '{"better": ["A"]}', '{"better": "A"', "[1]"])
def test_what_is_no_verdict_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        read_comparison(text)


@pytest.mark.parametrize("score", ["0", "11", "null", "true", '"good"', "NaN"])
def test_a_rating_out_of_range_is_malformed(score: str) -> None:
    with pytest.raises(Malformed):
        read_rating(f'{{"score": {score}}}')
    assert read_rating('{"score": "7.5"}') == 7.5


def test_rows_that_fail_are_listed_and_asked_again_by_the_same_command(
    tmp_path: Path, named: Named, capsys: Any
) -> None:
    def no_two(body: Body, _before: int) -> Mishap | None:
        return Mishap(500, body=f"key {KEY} is fine, I am not") if "二" in str(body) else None

    rows = [sampled("甲", "乙乙", prompt=f"第{number}题") for number in "一二三"]
    with stand_in(prefers_longer, no_two) as server:
        named(server)
        status, out = judge(tmp_path, rows, "--max_retries", "1")
        assert status == 2
        seen = capsys.readouterr()
        failures = tmp_path / "judged.jsonl.making" / "failures.jsonl"
        assert f"1 of 3 rows are missing; 1 failed, see {failures}" in seen.err
        assert [row["prompt"][0]["content"] for row in read_rows(out)] == ["第一题", "第三题"]
        assert read_rows(failures) == [
            {
                "where": f"{tmp_path}/sampled.jsonl:2",
                "reason": "the server answered 500: key [the key] is fine, I am not",
            }
        ]
        server.mishaps = lambda *_: None
        before = len(server.bodies)
        status, out = judge(tmp_path, rows, "--max_retries", "1")
        assert status == 0
        assert len(server.bodies) == before + 2
    assert [row["prompt"][0]["content"] for row in read_rows(out)] == ["第一题", "第二题", "第三题"]
    assert not failures.exists()


def test_a_finished_file_is_not_made_again_and_no_other_settings_may_touch_it(
    tmp_path: Path, named: Named, capsys: Any
) -> None:
    rows = [sampled("甲", "乙乙")]
    with stand_in(prefers_longer) as server:
        named(server)
        judge(tmp_path, rows)
        contents = (tmp_path / "judged.jsonl").read_bytes()
        assert judge(tmp_path, rows)[0] == 0
        assert "all 1 rows were finished before: nothing was asked" in capsys.readouterr().out
        assert judge(tmp_path, rows, "--method", "score")[0] == 2
        assert "method was 'rank' and is 'score'" in capsys.readouterr().err
    assert len(server.bodies) == 2
    assert (tmp_path / "judged.jsonl").read_bytes() == contents


def test_other_rows_under_the_same_name_are_refused(tmp_path: Path, named: Named, capsys: Any) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        judge(tmp_path, [sampled("甲", "乙乙")])
        assert judge(tmp_path, [sampled("甲", "丙丙丙")])[0] == 2
    assert "rows was '" in capsys.readouterr().err


def test_a_cap_leaves_a_file_of_what_it_bought(tmp_path: Path, named: Named, capsys: Any) -> None:
    rows = [sampled("甲", "乙乙", prompt=f"第{number}题") for number in range(6)]
    with stand_in(prefers_longer) as server:
        named(server)
        status, out = judge(tmp_path, rows, "--max_requests", "7", "--concurrency", "1")
        assert status == 2
        assert "3 of 6 rows are missing; the cap was reached" in capsys.readouterr().err
        assert len(read_rows(out)) == 3
        assert judge(tmp_path, rows, "--max_requests", "12")[0] == 0
    assert len(read_rows(out)) == 6
    assert len(server.bodies) == 12


def test_a_cap_holds_over_commands_that_got_nothing_of_use(tmp_path: Path, named: Named, capsys: Any) -> None:
    rows = [sampled("甲", "乙乙", prompt=f"第{number}题") for number in range(6)]
    with stand_in(lambda _: "I would rather not say.") as server:
        named(server)
        told = [
            (judge(tmp_path, rows, "--max_requests", "4", "--max_retries", "0")[0], capsys.readouterr())
            for _ in range(3)
        ]
        assert len(server.bodies) == 4
        server.say = prefers_longer
        assert judge(tmp_path, rows, "--max_requests", "16")[0] == 0
    assert [status for status, _ in told] == [2, 2, 2]
    assert "4 requests, 4 of them now" in told[0][1].out
    assert "4 requests, 0 of them now" in told[2][1].out
    assert "400 tokens of prompts and 40 of answers, 0 and 0 of them now" in told[2][1].out
    assert "the cap was reached" in told[2][1].err
    assert len(server.bodies) == 16
    assert "16 requests, 12 of them now" in capsys.readouterr().out


def test_the_cost_is_told(tmp_path: Path, named: Named, capsys: Any) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        judge(tmp_path, [sampled("甲", "乙乙")], "--prompt_price", "2", "--answer_price", "10")
    assert "cost 0.0006, 0.0006 of it now" in capsys.readouterr().out  # 200 at 2 and 20 at 10 per million


def test_further_parameters_are_sent_and_taken_away(tmp_path: Path, named: Named) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        further = '{"temperature": null, "max_tokens": null, "max_completion_tokens": 800}'
        judge(tmp_path, [sampled("甲", "乙乙")], "--request", further)
    assert {key for body in server.bodies for key in body} == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize("request_text", ["{", "[]", '{"stream": true}', '{"n": 2}'])
def test_parameters_that_would_break_the_reading_are_refused(
    tmp_path: Path, named: Named, capsys: Any, request_text: str
) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        assert judge(tmp_path, [sampled("甲", "乙乙")], "--request", request_text)[0] == 2
    assert "request: is no JSON object of parameters" in capsys.readouterr().err


def test_without_an_address_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert judge(tmp_path, [sampled("甲", "乙")])[0] == 2
    assert "OPENAI_BASE_URL: is not set" in capsys.readouterr().err


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(['{"better":', '"A"', "}", "{", '"score":', "7", "]", " "])).map("".join))
def test_any_text_is_a_verdict_or_malformed(text: str) -> None:
    for read in (read_comparison, read_rating):
        try:
            verdict = read(text)
        except Malformed:
            continue
        assert verdict in ("first", "second", "tie") or 1 <= verdict <= 10  # type: ignore[operator]


def test_half_an_emoji_in_an_answer_is_judged_like_any_other(tmp_path: Path, named: Named) -> None:
    with stand_in(prefers_longer) as server:
        named(server)
        file = tmp_path / "sampled.jsonl"
        file.write_text('{"prompt": "hi", "answers": ["a", "b\\ud83d"]}\n', encoding="utf-8")
        words = ["data", "judge", str(file), "--output_file", str(tmp_path / "o.jsonl"), "--model", "m"]
        assert main([*words, "--max_cost", "1", "--prompt_price", "1"]) == 0
    assert read_rows(tmp_path / "o.jsonl")[0]["scores"] == [0.0, 1.0]

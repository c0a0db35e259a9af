"""Conversations cut out of scripts, and placeholders filled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Workshop
from tests.curation.stand_in import read_rows, write_rows

import duiqi
from duiqi.cli.main import main
from duiqi.curation.dialogue import DialogueReport, Windows, dialogue_file, merged, samples
from duiqi.curation.fill import fill_file, parse_fill
from duiqi.curation.script import Line, read_script, stopword_share
from duiqi.data.encoding import encode_conversation, token_budget
from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec
from duiqi.data.templates import get_template
from duiqi.errors import DataError, SettingsError
from duiqi.models.loading import load_tokenizer

TWELVE_LINES = """\
甲：今天早上的海风很大。
甲：船也许出不了港口了。
乙：那我们改在岸上画画吧。
（风声）
甲：好。
乙：你带颜料了没有，我的快用完了。
甲：带了两盒，蓝色的还没开封。
乙：太好了，画海正缺蓝色呢。
甲：天空也是，今天蓝得像假的。
乙：画完我们去吃碗热汤面吧。
甲：去老周那一家，汤最鲜。
乙：说定了，谁先画完谁请客。
"""


def cut(tmp_path: Path, script: str, **settings: Any) -> tuple[DialogueReport, list[list[tuple[str, str]]]]:
    file, out = tmp_path / "script.txt", tmp_path / f"out{len(list(tmp_path.iterdir()))}.jsonl"
    file.write_text(script, encoding="utf-8")
    report = dialogue_file(str(file), str(out), **settings)
    return report, [[(m["role"][0], m["content"]) for m in row["messages"]] for row in read_rows(out)]


def test_twelve_lines_give_four_conversations_counted_by_hand(tmp_path: Path) -> None:
    """Eleven are spoken, one of them (好。) is short; the first two are one turn, and so are 乙's around the short one.

    So there are eight turns of 21, 27, 13, 12, 13, 12, 11 and 12 characters. Windows of at least 25 are 21+27, 13+12
    and 13+12, which the rest of 11+12 joins: 48, 25 and 48 characters. Samples of at most 75 that share a window are
    the turns 0 to 3 and the turns 2 to 7, both parities of each.
    """
    report, made = cut(tmp_path, TWELVE_LINES, window_characters=25, sample_characters=75)
    assert (report.lines, report.unspoken, report.slight, report.rows) == (11, 1, 1, 4)
    turns = [
        "今天早上的海风很大。\n船也许出不了港口了。",
        "那我们改在岸上画画吧。\n你带颜料了没有，我的快用完了。",
        "带了两盒，蓝色的还没开封。",
        "太好了，画海正缺蓝色呢。",
        "天空也是，今天蓝得像假的。",
        "画完我们去吃碗热汤面吧。",
        "去老周那一家，汤最鲜。",
        "说定了，谁先画完谁请客。",
    ]
    places = [[0, 1, 2, 3], [1, 2], [2, 3, 4, 5, 6, 7], [3, 4, 5, 6]]
    assert made == [[("ua"[at % 2], turns[place]) for at, place in enumerate(row)] for row in places]


def test_parities_together_learn_every_turn_but_the_first_once(tmp_path: Path) -> None:
    report, made = cut(tmp_path, TWELVE_LINES)
    turns = [text for _, text in made[0]]
    assert [text for role, text in made[0] if role == "a"] == turns[1::2]
    assert [text for role, text in made[1] if role == "a"] == turns[2::2]
    assert report.turns_learned == len(turns) - 1


def test_a_character_s_lines_are_learned_and_nobody_else_s(tmp_path: Path) -> None:
    report, made = cut(tmp_path, TWELVE_LINES, character="乙", system="你是{character}。")
    (only,) = made
    assert only[0] == ("s", "你是乙。")
    spoken = [line.removeprefix("乙：") for line in TWELVE_LINES.splitlines() if line.startswith("乙")]
    assert [text for role, text in only if role == "a" for text in text.split("\n")] == spoken
    assert report.turns_learned == 4


def test_several_others_are_told_apart_by_name(tmp_path: Path) -> None:
    script = "甲：你们两个都来了吗？\n乙：我已经到门口了。\n丙：我还在路上走着。\n甲：那就先等等丙再走。\n"
    _, made = cut(tmp_path, script, character="甲")
    assert made == [[("u", "乙：我已经到门口了。\n丙：我还在路上走着。"), ("a", "那就先等等丙再走。")]]


def test_scenes_are_kept_apart(tmp_path: Path) -> None:
    line = "甲：这是一句不短的话。\n乙：这是一句回答的话。\n"
    for between in ("\n", "---\n", "\n\n***\n\n"):
        _, made = cut(tmp_path, line + between + line)
        assert [len(each) for each in made] == [2, 2]


TURNS = st.lists(st.integers(1, 60), max_size=30).map(
    lambda sizes: [Line("甲乙"[place % 2], chr(0x4E00 + place) * size) for place, size in enumerate(sizes)]
)


@settings(deadline=None)
@given(TURNS, st.integers(1, 80), st.integers(0, 120), st.integers(0, 3))
def test_windows_cover_every_turn_in_order_and_stay_within_their_size(
    turns: list[Line], window: int, more: int, overlap: int
) -> None:
    shape = Windows(window, window + more, overlap)
    made = list(samples(turns, shape))
    seen: list[Line] = []
    for sample in made:
        begin = turns.index(sample[0])
        assert sample == turns[begin : begin + len(sample)]
        assert begin <= len(seen)
        if overlap == 0:
            assert begin == len(seen)
        seen += [turn for turn in sample if turn not in seen]
    assert seen == turns
    for sample in made[:-1]:
        size = sum(len(turn.text) for turn in sample)
        assert size >= window
        assert size <= shape.sample or size - len(sample[-1].text) < window


def test_the_overlap_is_a_window() -> None:
    turns = [Line("甲乙"[number % 2], f"{number}" * 10) for number in range(8)]
    told = [[turn.text[0] for turn in sample] for sample in samples(turns, Windows(20, 40, 1))]
    assert told == [list("0123"), list("2345"), list("4567")]


def test_the_printed_sha1_is_that_of_the_file_and_the_same_every_time(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "script.txt"
    file.write_text(TWELVE_LINES, encoding="utf-8")
    for name in ("a", "b"):
        assert main(["data", "dialogue", str(file), "--output_file", str(tmp_path / f"{name}.jsonl")]) == 0
        assert f"sha1 {hashlib.sha1((tmp_path / f'{name}.jsonl').read_bytes()).hexdigest()}" in capsys.readouterr().out
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_every_turn_of_a_conversation_is_learned(workshop: Workshop, tmp_path: Path) -> None:
    cut(tmp_path, TWELVE_LINES, character="乙")
    (out,) = tmp_path.glob("out*.jsonl")
    (example,) = load_examples([DatasetSpec(str(out))], dataset_dir=".", need="demonstration", seed=0).examples
    tokenizer = load_tokenizer(workshop.base)
    template = get_template("zh_qa", tokenizer)
    encoded = encode_conversation(template, tokenizer, example=example, budget=token_budget(2048), train_on="all")
    is_learned = encoded.answer_mask
    spans = sum(now and not before for before, now in zip([False, *is_learned], is_learned, strict=False))
    assert spans == 4
    settings = workshop.settings("sft", tmp_path / "sft", dataset=str(out), max_steps=1)
    assert duiqi.run("sft", **settings).steps == 1


def test_rows_are_scripts_too(tmp_path: Path) -> None:
    rows = [{"speaker": "A", "text": f"line number {n}", "scene": n // 2} for n in range(4)]
    script = read_script(write_rows(tmp_path / "s.jsonl", rows))
    assert [[line.text for line in scene] for scene in script.scenes] == [
        ["line number 0", "line number 1"],
        ["line number 2", "line number 3"],
    ]
    with pytest.raises(DataError, match=r"s\.jsonl:1: speaker: found nothing, expected text"):
        read_script(write_rows(tmp_path / "s.jsonl", [{"text": "x"}]))


def test_lines_of_stopwords_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    script = "甲：嗯嗯嗯嗯啊啊啊啊。\n乙：明天早上六点出发。\n甲：带上雨伞和地图吧。\n"
    report, _ = cut(tmp_path, script)
    assert report.slight == 0
    report, made = cut(tmp_path, script, max_stopword_share=0.5)
    assert report.slight == 1
    assert made == [[("u", "明天早上六点出发。"), ("a", "带上雨伞和地图吧。")]]
    words = tmp_path / "words.txt"
    words.write_text("明天\n早上\n六点\n", encoding="utf-8")
    with pytest.raises(DataError, match="no conversation came out"):
        cut(tmp_path, script.replace("带上雨伞和地图吧", "明天早上六点"), max_stopword_share=0.5, stopwords=str(words))


def test_shares_of_stopwords_by_hand() -> None:
    words = frozenset({"the", "那个", "嗯"})
    assert stopword_share("The cat.", words) == 0.5  # 3 of 6 letters
    assert stopword_share("嗯，那个……好", words) == 0.75
    assert stopword_share("……", words) == 1.0
    assert stopword_share("theatre", words) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"character": "丙"}, "'丙' does not speak in this script"),
        ({"system": "你是{character}"}, "stands for nobody"),
        ({"window_characters": 100, "sample_characters": 50}, "hold no window"),
        ({"stopwords": "x.txt"}, "stopwords: has no effect with max_stopword_share=1"),
        ({"stopwords": "x.txt", "max_stopword_share": 0.5}, "stopwords: x.txt: cannot be read"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        cut(tmp_path, TWELVE_LINES, **settings)


def test_a_text_in_which_nobody_speaks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nobody speaks in it"):
        cut(tmp_path, "从前有座山。\n山上有座庙。\n")


def test_merging_needs_neighbours() -> None:
    lines = [Line("甲", "1"), Line("甲", "2"), Line("乙", "3"), Line("甲", "4")]
    assert merged(lines) == [Line("甲", "1\n2"), Line("乙", "3"), Line("甲", "4")]


INTRODUCTIONS: list[dict[str, Any]] = [
    {"instruction": "你是谁？", "output": "我是[NAME]，由 <AUTHOR> 开发。", "history": [["hi", "I am {{name}}"]]},
    {"messages": [{"role": "user", "content": "[INST] [NAME]?"}], "id": 7},
]


class TestFill:
    def test_every_placeholder_in_every_text_is_filled(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "in.jsonl", INTRODUCTIONS)
        report = fill_file(file, str(tmp_path / "out.json"), fill="NAME=小对,AUTHOR=我们")
        assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [
            {"instruction": "你是谁？", "output": "我是小对，由 我们 开发。", "history": [["hi", "I am 小对"]]},
            {"messages": [{"role": "user", "content": "[INST] 小对?"}], "id": 7},
        ]
        assert report.lines() == ["2 rows; filled: AUTHOR ×1, NAME ×3", "left as they are: [INST] ×1"]

    def test_a_name_that_is_not_given_is_refused_with_its_place(self, tmp_path: Path, capsys: Any) -> None:
        file = write_rows(tmp_path / "in.jsonl", INTRODUCTIONS)
        out = tmp_path / "out.jsonl"
        assert main(["data", "fill", file, "--fill", "NAME=小对", "--output_file", str(out)]) == 2
        assert f"nothing is given for <AUTHOR> at {file}:1\n  -> add AUTHOR=..." in capsys.readouterr().err
        assert not out.exists()

    def test_a_name_that_stands_nowhere_is_refused(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "in.jsonl", [{"text": "[NAME]"}])
        with pytest.raises(DataError, match="NAEM stands nowhere"):
            fill_file(file, str(tmp_path / "out.jsonl"), fill="NAME=小对,NAEM=x")

    def test_values_may_hold_commas_and_signs(self) -> None:
        assert parse_fill("NAME=小对,AUTHOR=甲,乙和丙, DATE = 2023=1") == {
            "NAME": "小对",
            "AUTHOR": "甲,乙和丙",
            "DATE": "2023=1",
        }

    @pytest.mark.parametrize("text", ["", "NAME", "=x", "名=x", "NAME=a,NAME=b"])
    def test_what_names_nothing_is_refused(self, text: str) -> None:
        with pytest.raises(SettingsError):
            parse_fill(text)

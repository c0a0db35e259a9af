"""What a tokenizer and its template do to rows: faults that only show in tokens, each planted alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from planted import LINE, demonstrations, rankings, write
from tests.inspection.tokenizers_to_try import CHATML, THINKING, TWICE_BEGUN

from duiqi.data.named_templates import Segment
from duiqi.inspection.check import Inspection, check_dataset
from duiqi.inspection.doctor import QUESTIONS
from duiqi.inspection.findings import Finding
from duiqi.inspection.lens import Lens, LensSettings, open_lens
from duiqi.inspection.token_checks import Lengths, length_table
from duiqi.inspection.token_look import look_through
from duiqi.types import Message

Make = Callable[..., str]


def look(path: Path, model: str, **settings: Any) -> Inspection:
    lens = open_lens(model, LensSettings(**{"cutoff_len": 2048, **settings}))
    return check_dataset(str(path), dataset_dir=".", look=partial(look_through, lens))


def by_kind(inspection: Inspection) -> dict[str, Finding]:
    return {finding.kind: finding for finding in inspection.findings}


def test_a_clean_file_and_a_sound_tokenizer_have_neither_errors_nor_warnings(
    tmp_path: Path, tokenizer_dir: Make
) -> None:
    model = tokenizer_dir("tiny-chat")
    for rows in (demonstrations(), rankings()):
        inspection = look(write(tmp_path / "rows.jsonl", rows), model)
        assert (inspection.count("error"), inspection.count("warning")) == (0, 0)
        assert inspection.look.answers.keys() == QUESTIONS.keys()
        assert all(answer.is_fine for answer in inspection.look.answers.values()), inspection.look.answers


def test_a_special_token_is_told_once_and_an_unknown_mark_as_a_mark(tmp_path: Path, tokenizer_dir: Make) -> None:
    rows = demonstrations()
    rows[4]["output"] += "<|im_end|>"
    rows[7]["output"] += "<|eot_id|>"
    findings = by_kind(look(write(tmp_path / "rows.jsonl", rows), tokenizer_dir()))
    assert [place.line for place in findings["special_token"].places] == [5]
    assert [place.line for place in findings["marker"].places] == [8]


def test_pairs_that_are_the_same_once_they_are_cut(tmp_path: Path, tokenizer_dir: Make) -> None:
    rows = rankings()
    same = "The bees fly from one flower to another. " * 8
    rows[LINE - 1] |= {"chosen": same + "Then home.", "rejected": same + "Then away."}
    path = write(tmp_path / "rows.jsonl", rows)
    findings = by_kind(look(path, tokenizer_dir(), cutoff_len=300))
    assert [str(place) for place in findings["identical_after_cut"].places] == [f"{path}:{LINE}"]
    assert "identical_after_cut" not in by_kind(look(path, tokenizer_dir("another"), cutoff_len=600))


def test_letters_that_the_tokenizer_does_not_know(tmp_path: Path, tokenizer_dir: Make) -> None:
    rows = [row for row in demonstrations() if row["output"].isascii()]
    letters = tuple(
        sorted({letter for row in rows for letter in row["instruction"] + row["output"]} | set("usertanio\n"))
    )
    rows[5]["output"] += " 茶"
    path = write(tmp_path / "rows.jsonl", rows)
    finding = by_kind(look(path, tokenizer_dir(words=letters)))["unknown_token"]
    assert [(place.line, "茶" in place.excerpt) for place in finding.places] == [(6, True)]


def test_answers_that_the_tokenizer_changes(tmp_path: Path, tokenizer_dir: Make) -> None:
    rows = [row for row in demonstrations() if not row["output"].isascii()]
    rows[5]["output"] += "OK"
    path = write(tmp_path / "rows.jsonl", rows)
    finding = by_kind(look(path, tokenizer_dir(lowers=True)))["changed_by_tokenizer"]
    assert [(place.line, "becomes" in place.excerpt) for place in finding.places] == [(6, True)]


def test_half_a_character_cannot_be_written_as_tokens(tmp_path: Path, tokenizer_dir: Make) -> None:
    rows = demonstrations()
    rows[LINE - 1]["output"] += "\ud83d"
    findings = by_kind(look(write(tmp_path / "rows.jsonl", rows), tokenizer_dir()))
    assert [place.line for place in findings["half_character"].places] == [LINE]
    assert [place.line for place in findings["unencodable"].places] == [LINE]


def test_rows_that_the_template_refuses_are_told_with_its_reason(tmp_path: Path, tokenizer_dir: Make) -> None:
    refusing = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system, please') }}"
        "{% endif %}{% endfor %}" + CHATML
    )
    rows = demonstrations()
    rows[LINE - 1]["system"] = "Be brief."
    path = write(tmp_path / "rows.jsonl", rows)
    finding = by_kind(look(path, tokenizer_dir(chat_template=refusing)))["unencodable"]
    assert [place.line for place in finding.places] == [LINE]
    assert "no system, please" in finding.places[0].excerpt


@pytest.mark.parametrize(
    ("kind", "tokenizer", "settings"),
    [
        ("no_template", {"chat_template": None}, {}),
        ("end_is_padding", {"has_padding": False}, {}),
        ("double_bos", {"chat_template": TWICE_BEGUN}, {}),
        ("double_bos", {"chat_template": None, "adds_bos": True}, {"template": "zh_qa", "source_prefix": "<s>"}),
        ("no_bos", {"adds_bos": True}, {}),
        ("no_answer_opening", {"chat_template": THINKING}, {}),
        ("history_not_learned", {"chat_template": THINKING}, {}),
        ("split_marker", {"marks": False}, {}),
        ("unknown_in_template", {"words": ("a", "b")}, {"template": "qa"}),
        ("base_with_chat_template", {"name": "tiny-base"}, {}),
        ("chat_without_its_template", {"name": "tiny-chat"}, {"template": "qa"}),
    ],
)
def test_a_bad_answer_of_tokenizer_or_template_is_a_finding(
    kind: str, tokenizer: dict[str, Any], settings: dict[str, str], tmp_path: Path, tokenizer_dir: Make
) -> None:
    inspection = look(write(tmp_path / "rows.jsonl", demonstrations()), tokenizer_dir(**tokenizer), **settings)
    assert not inspection.look.answers[kind].is_fine
    assert by_kind(inspection)[kind].detail == inspection.look.answers[kind].text


def test_an_end_that_is_no_token_is_never_learned(tokenizer_dir: Make) -> None:
    lens = open_lens(tokenizer_dir(), LensSettings())
    assert lens.tokenizer.unk_token_id is not None
    lost = replace(lens.needed_template(), stop_tokens=("<|bye|>",), stop_token_ids=(lens.tokenizer.unk_token_id,))
    assert QUESTIONS["end_not_learned"][1](lens, lost) == (False, "<|bye|> is no token of this tokenizer")


class Moody:
    """A style that never writes a prompt the same way twice."""

    learns_history = True

    def __init__(self) -> None:
        self.count = 0

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        self.count += 1
        return [Segment(f"{self.count}: {messages[-1].content}", learned=False)]

    def answer(self, _messages: Sequence[Message], text: str) -> Segment:
        return Segment(text, learned=True)

    def identity(self) -> str:
        return "moody"


def test_a_prompt_that_differs_between_stages_is_told(tokenizer_dir: Make) -> None:
    lens = open_lens(tokenizer_dir(), LensSettings())
    moody = replace(lens.needed_template(), style=Moody())
    is_fine, text = QUESTIONS["prompts_differ"][1](lens, moody)
    assert (is_fine, text) == (False, "the stages write the same prompt differently")


def test_a_run_that_was_trained_with_another_template_is_told(workshop: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", demonstrations())
    assert "other_template" not in by_kind(look(path, workshop.sft))
    for settings in ({"template": "qa"}, {"system": "Be brief."}, {"source_prefix": "Now: "}):
        finding = by_kind(look(path, workshop.sft, **settings))["other_template"]
        assert finding.severity == "error"
        assert "the templates differ in" in finding.detail


def _with_file(model: str, name: str, contents: dict[str, Any]) -> Lens:
    (Path(model) / name).write_text(json.dumps(contents), encoding="utf-8")
    return open_lens(model, LensSettings())


def test_other_tools_that_would_not_stop_are_told(tokenizer_dir: Make) -> None:
    stops, other = tokenizer_dir("one"), tokenizer_dir("two")
    end = open_lens(stops, LensSettings()).needed_template().stop_token_ids[0]
    ask = QUESTIONS["other_stop"][1]
    fine = _with_file(stops, "generation_config.json", {"eos_token_id": [99, end]})
    assert ask(fine, fine.needed_template())[0]
    bad = _with_file(other, "generation_config.json", {"eos_token_id": 1})
    assert ask(bad, bad.needed_template()) == (
        False,
        "generation_config.json stops at </s>, answers end with <|im_end|>",
    )


def test_tokens_without_a_row_are_told(tokenizer_dir: Make) -> None:
    ask = QUESTIONS["no_row_for_token"][1]
    enough = _with_file(tokenizer_dir("one"), "config.json", {"model_type": "llama", "vocab_size": 1000})
    assert ask(enough, enough.needed_template())[0]
    few = _with_file(tokenizer_dir("two"), "config.json", {"model_type": "llama", "vocab_size": 100})
    is_fine, text = ask(few, few.needed_template())
    assert not is_fine
    assert "the embedding only 100 rows" in text


def test_what_the_tokenizer_lacked_is_told(tmp_path: Path, tokenizer_dir: Make) -> None:
    model = tokenizer_dir()
    file = Path(model) / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["pad_token"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    finding = by_kind(look(write(tmp_path / "rows.jsonl", demonstrations()), model))["tokenizer_mended"]
    assert "names no padding token" in finding.detail


def test_many_tokens_for_few_characters_are_told(tmp_path: Path, tokenizer_dir: Make) -> None:
    chinese = [row for row in demonstrations() if not row["output"].isascii()]
    finding = by_kind(look(write(tmp_path / "rows.jsonl", chinese), tokenizer_dir()))["costly_tokens"]
    assert float(finding.detail.split()[0]) == pytest.approx(3.0, abs=0.5)


def test_the_table_of_lengths_by_hand() -> None:
    rows = [Lengths((100,), (50,)), Lengths((300,), (20, 400)), Lengths((10,), (10,)), Lengths((500, 90), (166,))]
    table = length_table(rows, LensSettings(cutoff_len=300))
    assert [row.cutoff_len for row in table] == [256, 300, 512, 1024]
    at_256 = table[0]
    # 256: of 300 prompt tokens 128 stay, which leaves 128 for answers of 20 and 400; of 500 tokens the last round of
    # 90 stays, which leaves 166
    assert (at_256.prompts_cut, at_256.answers_cut, at_256.tokens_lost) == (2, 1, 172 + 272 + 410)
    assert at_256.tokens == 100 + 50 + 300 + 420 + 20 + 666
    assert table[-1].tokens_lost == 0


def test_the_table_of_lengths_agrees_with_what_a_stage_cuts(tmp_path: Path, tokenizer_dir: Make) -> None:
    rows = demonstrations()
    for number in (2, 5):
        rows[number]["output"] *= 5
    rows[11]["instruction"] *= 9
    rows[7]["history"] = [["So? " * 40, "Yes."], ["And? " * 30, "No."]]
    inspection = look(write(tmp_path / "rows.jsonl", rows), tokenizer_dir(), cutoff_len=512)
    row = next(row for row in inspection.look.lengths if row.cutoff_len == 512)
    findings = by_kind(inspection)
    assert row.answers_cut == findings["cut_answer"].count == 2
    assert row.prompts_cut == findings["cut_prompt"].count == 2


def test_plain_text_needs_no_template(tmp_path: Path, tokenizer_dir: Make) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"这是第{n}行，写的是一件小事。\n" for n in range(30)), encoding="utf-8")
    inspection = look(path, tokenizer_dir(chat_template=None))
    assert inspection.count("error") == 0
    assert inspection.look.answers == {}

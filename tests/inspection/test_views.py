"""What `duiqi data show` shows of a row is what the stages are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.inspection.tokenizers_to_try import THINKING

from duiqi.data.encoding import encode_conversation, encode_prompt, encode_ranking
from duiqi.errors import DataError, SettingsError
from duiqi.inspection.lens import Lens, LensSettings, open_lens
from duiqi.inspection.view_text import bare_text, heading, view_text
from duiqi.inspection.views import StageView, choose_rows, rows_at, views_of
from duiqi.types import Example, Message, Origin

Make = Callable[..., str]
HERE = Origin("pairs", "data/pairs.jsonl", 3)
TURNS = (Message("user", "在吗"), Message("assistant", "在。"), Message("user", "茶 tea?"))
DEMONSTRATION = Example("demonstration", TURNS, ("好的 fine 🍵",), HERE)
RANKING = Example("ranking", TURNS, ("好的 fine", "不"), HERE)
PROMPT = Example("prompt", TURNS, (), HERE)
TEXT = Example("text", (), ("从前有座山。",), HERE)


def lens_on(model: str, cutoff_len: int = 512) -> Lens:
    return open_lens(model, LensSettings(cutoff_len=cutoff_len))


def ids(view: StageView) -> list[int]:
    return [token for piece in view.pieces for token in piece.ids]


def learned(view: StageView) -> list[bool]:
    return [piece.learned for piece in view.pieces for _ in piece.ids]


def test_the_tokens_shown_are_those_that_the_stages_are_given(tokenizer_dir: Make) -> None:
    lens = lens_on(tokenizer_dir())
    template, tokenizer = lens.needed_template(), lens.tokenizer
    sft, ppo = views_of(DEMONSTRATION, lens)
    given = encode_conversation(template, tokenizer, example=DEMONSTRATION, budget=lens.budget, train_on="all")
    assert (ids(sft), learned(sft)) == (given.input_ids, given.answer_mask)
    assert ids(ppo) == encode_prompt(template, tokenizer, messages=TURNS)
    assert not any(learned(ppo))
    ranking = encode_ranking(template, tokenizer, example=RANKING)
    chosen, rejected, _ = views_of(RANKING, lens)
    assert [ids(chosen), ids(rejected)] == [ranking.prompt_ids + answer for answer in ranking.answers]
    assert sum(learned(rejected)) == len(ranking.answers[1])


def test_pieces_are_whole_characters_and_together_the_text(tokenizer_dir: Make) -> None:
    lens = lens_on(tokenizer_dir())
    view = views_of(DEMONSTRATION, lens)[0]
    assert "".join(piece.text for piece in view.pieces) == lens.tokenizer.decode(ids(view))
    assert not any("\ufffd" in piece.text for piece in view.pieces)
    assert ("🍵", 4) in [(piece.text, len(piece.ids)) for piece in view.pieces]


def test_without_colour_what_is_learned_stands_between_marks_and_ends_in_a_box(tokenizer_dir: Make) -> None:
    view = views_of(DEMONSTRATION, lens_on(tokenizer_dir()))[0]
    text = view_text(view, has_colour=False, shows_tokens=False).plain
    assert "⟦在。▕<|im_end|>▏⟧" in text
    assert text.endswith("⟦好的 fine 🍵▕<|im_end|>▏⟧")
    assert f"{view.tokens} tokens, {view.learned} learned" in text


def test_with_colour_there_are_no_marks_and_the_learned_part_is_bright(tokenizer_dir: Make) -> None:
    view = views_of(DEMONSTRATION, lens_on(tokenizer_dir()))[0]
    text = view_text(view, has_colour=True, shows_tokens=False)
    assert "⟦" not in text.plain
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert (styles["f"], styles["茶"]) == ("bold green", "dim")
    assert str(text.style) == ""


def test_bars_stand_between_tokens(tokenizer_dir: Make) -> None:
    view = views_of(Example("prompt", (Message("user", "ab"),), (), HERE), lens_on(tokenizer_dir()))[0]
    assert "│a│b│" in view_text(view, has_colour=False, shows_tokens=True).plain


def test_a_prompt_of_ppo_ends_where_the_answer_begins(tokenizer_dir: Make) -> None:
    (view,) = views_of(PROMPT, lens_on(tokenizer_dir()))
    assert view_text(view, has_colour=False, shows_tokens=False).plain.endswith("▕<|im_start|>▏assistant\n ▸")


def test_feedback_is_shown_with_what_was_thought_of_it(tokenizer_dir: Make) -> None:
    disliked = Example("feedback", TURNS, ("不",), HERE, liked=False)
    dpo, ppo = views_of(disliked, lens_on(tokenizer_dir()))
    assert (dpo.stage, ppo.stage) == ("dpo", "ppo")
    assert "not liked" in view_text(dpo, has_colour=False, shows_tokens=False).plain
    assert dpo.learned == 3 + 1
    assert "not liked: ⟦不⟧" in bare_text(disliked).plain


def test_plain_text_is_learned_to_its_end(tokenizer_dir: Make) -> None:
    (view,) = views_of(TEXT, lens_on(tokenizer_dir(chat_template=None)))
    assert view.stage == "pretrain"
    assert view.learned == view.tokens == 3 * 6 + 1


def test_what_was_cut_is_told_in_tokens(tokenizer_dir: Make) -> None:
    model = tokenizer_dir()
    long = Example("demonstration", (Message("user", "a" * 100),), ("b" * 100,), HERE)
    whole = views_of(long, lens_on(model))[0]
    cut = views_of(long, lens_on(model, cutoff_len=120))[0]
    assert whole.cut == ()
    assert cut.tokens == 120
    frame = whole.tokens - 200
    assert cut.cut == (
        f"the prompt had {100 + frame - 1} tokens: {100 + frame - 1 - 60} cut at its beginning",
        "the answer had 101 tokens: 41 cut at its end",
    )


def test_answers_that_are_the_same_once_cut_are_told(tokenizer_dir: Make) -> None:
    alike = Example("ranking", (Message("user", "a"),), ("b" * 100 + "c", "b" * 100 + "d"), HERE)
    (view,) = views_of(alike, lens_on(tokenizer_dir(), cutoff_len=80), "rm")
    assert view.cut[-1] == "fewer than two different answers are left: the row is dropped"


def test_what_a_template_writes_between_prompt_and_answer_is_shown_as_learned(tokenizer_dir: Make) -> None:
    view = views_of(DEMONSTRATION, lens_on(tokenizer_dir(chat_template=THINKING)))[0]
    assert "⟦<think>\n\n</think>\n\n好的" in view_text(view, has_colour=False, shows_tokens=False).plain


def test_a_stage_that_has_no_use_for_a_row_is_refused(tokenizer_dir: Make) -> None:
    lens = lens_on(tokenizer_dir())
    with pytest.raises(SettingsError, match="rm has no use for a demonstration"):
        views_of(DEMONSTRATION, lens, "rm")
    assert [view.stage for view in views_of(RANKING, lens, "dpo")] == ["dpo", "dpo"]


def test_a_row_without_a_tokenizer_is_shown_as_text() -> None:
    assert heading(RANKING, 3).plain.startswith("── row 3, ranking, data/pairs.jsonl:3 ")
    lines = bare_text(RANKING).plain.splitlines()
    assert lines == [
        "   user: 在吗",
        "   assistant: 在。",
        "   user: 茶 tea?",
        "   chosen: ⟦好的 fine⟧  (7 characters)",
        "   rejected: ⟦不⟧  (1 characters)",
    ]


def test_what_would_command_the_terminal_is_spelled_out(tokenizer_dir: Make) -> None:
    evil = Example("demonstration", (Message("user", "a\x1b[31m"),), ("b\x07\ud83d",), HERE)
    assert "\x1b" not in bare_text(evil).plain
    assert "a\\x1b[31m" in bare_text(evil).plain
    assert "b\\x07\\ud83d" in bare_text(evil).plain
    whole = Example("prompt", evil.prompt, (), HERE)
    (view,) = views_of(whole, lens_on(tokenizer_dir()))
    assert "a\\x1b[31m" in view_text(view, has_colour=True, shows_tokens=False).plain


def test_half_a_character_has_no_tokens_to_show(tokenizer_dir: Make) -> None:
    half = Example("prompt", (Message("user", "a\ud83d"),), (), HERE)
    with pytest.raises(DataError, match=r"data/pairs.jsonl:3: half of a character has no tokens"):
        views_of(half, lens_on(tokenizer_dir()))


def test_rows_are_found_by_the_line_at_which_they_begin() -> None:
    examples = [Example("text", (), ("a",), Origin("d", "f.json", line)) for line in (2, 8, 15)]
    assert rows_at(examples, "15, 2") == [2, 0]
    with pytest.raises(SettingsError, match="no row begins at line '3'"):
        rows_at(examples, "3")


def test_rows_are_chosen_by_number_in_order_or_at_random() -> None:
    assert choose_rows(5, num_rows=9) == [0, 1, 2, 3, 4]
    assert choose_rows(9, rows="2, 5-6") == [1, 4, 5]
    random = choose_rows(100, num_rows=3, seed=1)
    assert random == sorted(set(random)) == choose_rows(100, num_rows=3, seed=1)
    assert random != choose_rows(100, num_rows=3, seed=2)


@pytest.mark.parametrize("rows", ["0", "6", "2-9", "4-3", "two", ","])
def test_rows_that_are_not_there_are_refused(rows: str) -> None:
    with pytest.raises(SettingsError, match="names no row; there are 5"):
        choose_rows(5, rows=rows)

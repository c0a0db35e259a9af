"""Views stay within their room and say the end aloud."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from duiqi.journal.pace import Pace
from duiqi.journal.terminal import LINES_PER_STAGE, LiveView, PlainView, View


def plain_view() -> tuple[PlainView, io.StringIO]:
    out = io.StringIO()
    return PlainView(Console(file=out, soft_wrap=True, highlight=False)), out


def play(view: View, *, first: int, total: int, facts: int, notes: int, closing: int) -> None:
    view.stage("ppo", {f"fact{i}": "你好" for i in range(facts)})
    for i in range(notes):
        view.note(f"note {i}\nsecond line")
    for step in range(first, total + 1):
        view.progress(step, total, {"score": step / total, "kl": 0.1})
        view.sample(step, prompt="你好\n吗", answer="", score=0.5)
    view.done([f"closing {i}" for i in range(closing)])
    view.close()


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(1, 90), length=st.integers(0, 90), facts=st.integers(0, 30), notes=st.integers(0, 9),
    closing=st.integers(0, 12),
)  # fmt: skip
def test_plain_lines_keep_to_their_budget_and_show_the_last_step_and_the_end(
    first: int, length: int, facts: int, notes: int, closing: int
) -> None:
    view, out = plain_view()
    total = first + length
    play(view, first=first, total=total, facts=facts, notes=notes, closing=closing)
    lines = out.getvalue().splitlines()
    assert len(lines) <= LINES_PER_STAGE
    assert any(f"{total}/{total}" in line for line in lines)
    assert all(f"closing {i}" in out.getvalue() for i in range(closing))


@settings(max_examples=100)
@given(st.integers(1, 200), st.lists(st.integers(1, 200), max_size=12))
def test_a_warning_after_a_full_opening_is_shown_and_hides_nothing(total: int, at: list[int]) -> None:
    view, out = plain_view()
    view.stage("ppo", {f"fact {i}": "it is so" for i in range(LINES_PER_STAGE)})
    shown = [step for step in at if step <= total]
    for step in range(1, total + 1):
        for _ in range(shown.count(step)):
            view.note(f"warning: something at {step}")
        view.progress(step, total, {"loss": 0.5})
    view.done(["closing"])
    lines = out.getvalue().splitlines()
    assert len(lines) <= LINES_PER_STAGE + 6
    assert any(f"{total}/{total}" in line for line in lines)
    assert not shown or f"warning: something at {min(shown)}" in out.getvalue()


def test_a_second_stage_has_a_budget_of_its_own() -> None:
    view, out = plain_view()
    for _ in range(2):
        play(view, first=1, total=50, facts=20, notes=5, closing=2)
    assert out.getvalue().count("== ppo") == 2


def test_a_long_stage_shows_about_eight_progress_lines() -> None:
    view, out = plain_view()
    play(view, first=1, total=1000, facts=0, notes=0, closing=0)
    assert sum("/1000" in line for line in out.getvalue().splitlines()) == 8


def test_an_empty_answer_is_shown_as_empty() -> None:
    view, out = plain_view()
    play(view, first=1, total=1, facts=0, notes=0, closing=1)
    assert "你好 吗 -> ∅  score 0.5" in out.getvalue()


@pytest.mark.parametrize("width", [40, 120])
def test_the_live_panel_draws_and_gives_the_terminal_back(width: int) -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, force_terminal=True, width=width))
    play(view, first=1, total=3, facts=2, notes=1, closing=1)
    assert "closing 0" in out.getvalue()
    assert out.getvalue().rstrip().endswith("closing 0")


def test_the_time_left_counts_from_where_a_resumed_run_began() -> None:
    ticks = iter([100.0, 110.0])
    pace = Pace(clock=lambda: next(ticks))
    pace.mark(50)
    pace.mark(52)
    assert pace.remaining(60) == "40 s left"

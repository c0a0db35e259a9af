"""What a running stage shows: a live panel on a terminal, a few calm lines in a log, nothing in tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from duiqi.journal.numbers import brief
from duiqi.journal.pace import Pace

LINES_PER_STAGE = 25
_PROGRESS_LINES = 8
_CLOSING_LINES = 6
_OPENING_LINES = LINES_PER_STAGE - _PROGRESS_LINES - _CLOSING_LINES - 1
_WARNING_LINES = 6
_VALUES_PER_LINE = 5
_SAMPLE_CHARACTERS = 160


class View(Protocol):
    """Where a stage tells what it does. Calls come in the order stage, (note | progress | sample)*, done, close."""

    def stage(self, title: str, facts: Mapping[str, str]) -> None:
        """A stage begins; `facts` say from what, on what and how."""

    def note(self, text: str) -> None:
        """Something the user should read once."""

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """A step is done; `values` begin with what matters most."""

    def sample(self, step: int, *, prompt: str, answer: str, score: float | None = None) -> None:
        """An answer of the model as it is now."""

    def done(self, lines: Sequence[str]) -> None:
        """A stage ended; `lines` say what was made, where it is and what to do next."""

    def close(self) -> None:
        """Give the terminal back, however the stage ended; closing twice is harmless."""


class SilentView:
    """Shows nothing."""

    def stage(self, title: str, facts: Mapping[str, str]) -> None: ...

    def note(self, text: str) -> None: ...

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None: ...

    def sample(self, step: int, *, prompt: str, answer: str, score: float | None = None) -> None: ...

    def done(self, lines: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """Plain lines for logs and pipes: at most 25 per stage, however long it runs, and at most 6 warnings beside them.

    About eight progress lines are spread over the steps; the opening (facts and notes) and the closing have room of
    their own, so that neither a talkative stage nor a long one can hide the end.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._opening_left = _OPENING_LINES
        self._warnings_left = _WARNING_LINES
        self._progress_left = _PROGRESS_LINES
        self._next_due = 0
        self._latest_sample = ""
        self._pace = Pace()

    def stage(self, title: str, facts: Mapping[str, str]) -> None:
        self._opening_left, self._progress_left, self._next_due = _OPENING_LINES, _PROGRESS_LINES, 0
        self._warnings_left = _WARNING_LINES
        self._latest_sample = ""
        self._pace = Pace()
        self._open(f"== {title}")
        width = max((len(name) for name in facts), default=0)
        for name, fact in facts.items():
            self._open(f"   {name:<{width}}  {fact}")

    def note(self, text: str) -> None:
        if self._opening_left <= 1 and text.startswith("warning"):
            self._warnings_left -= 1
            if self._warnings_left >= 0:
                self._say(f"   {text}{'' if self._warnings_left else ' ... more of them are in events.jsonl'}")
            return
        for line in text.split("\n"):
            self._open(f"   {line}")

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._pace.mark(step)
        if step < self._next_due or self._progress_left == 0:
            return
        self._progress_left -= 1
        self._next_due = step + max(1, -(-(total - step) // max(1, self._progress_left)))
        numbers = "  ".join(f"{name} {brief(value)}" for name, value in list(values.items())[:_VALUES_PER_LINE])
        self._say(f"   {step:>{len(str(total))}}/{total}  {numbers}  {self._pace.remaining(total)}".rstrip())

    def sample(self, step: int, *, prompt: str, answer: str, score: float | None = None) -> None:
        self._latest_sample = f"   at step {step}: {_one_line(prompt, 60)} -> {_one_line(answer, 80)}{_scored(score)}"

    def done(self, lines: Sequence[str]) -> None:
        if self._latest_sample:
            self._say(self._latest_sample)
        room = _CLOSING_LINES - bool(self._latest_sample)
        shown = [*lines[: room - 1], "; ".join(lines[room - 1 :])] if len(lines) > room else lines
        for line in shown:
            self._say(f"   {line}")

    def close(self) -> None: ...

    def _open(self, line: str) -> None:
        """Say one of the lines before the end, as long as there is room; the last one says where the rest is."""
        self._opening_left -= 1
        if self._opening_left > 0:
            self._say(line)
        elif self._opening_left == 0:
            self._say("   ... the rest is in manifest.json")

    def _say(self, line: str) -> None:
        self._console.print(line.replace("\n", " "), markup=False, soft_wrap=True)


class LiveView:
    """A panel that is redrawn in place: progress bar, key numbers, and one sample that changes as answers come."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._pace = Pace()
        self._step, self._total = 0, 0
        self._values: Mapping[str, float] = {}
        self._sample: RenderableType = ""

    def stage(self, title: str, facts: Mapping[str, str]) -> None:
        self.close()
        self._pace, self._step, self._total, self._values, self._sample = Pace(), 0, 0, {}, ""
        self._console.print()
        self._console.print(Text(title, style="bold"))
        self._console.print(_aligned(facts))
        self._live = Live(
            console=self._console,
            get_renderable=self._panel,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
        )
        self._live.start()

    def note(self, text: str) -> None:
        self._console.print(Padding(Text(text), (0, 2)))

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._pace.mark(step)
        self._step, self._total, self._values = step, total, dict(values)

    def sample(self, step: int, *, prompt: str, answer: str, score: float | None = None) -> None:
        self._sample = Text.assemble(
            (f"\nat step {step}  ", "dim"),
            (_one_line(prompt, 60), "cyan"),
            ("\n", ""),
            _one_line(answer, _SAMPLE_CHARACTERS),
            (_scored(score), "dim"),
        )

    def done(self, lines: Sequence[str]) -> None:
        self.close()
        for line in lines:
            self._console.print(Padding(Text(line), (0, 2)))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _panel(self) -> RenderableType:
        position = Table.grid(padding=(0, 2))
        position.add_row(
            ProgressBar(total=max(self._total, 1), completed=self._step, width=36),
            f"{self._step}/{self._total}",
            Text(self._pace.remaining(self._total), style="dim"),
        )
        numbers = Table.grid(padding=(0, 3))
        cells = [Text.assemble((f"{name} ", "dim"), brief(value)) for name, value in self._values.items()]
        columns = max(1, min(4, self._console.width // 26))
        for start in range(0, len(cells), columns):
            numbers.add_row(*cells[start : start + columns])
        return Padding(Group(position, numbers, self._sample), (1, 2, 0, 2))


def make_view() -> View:
    """The live panel when stderr is a terminal, plain lines otherwise."""
    return LiveView() if sys.stderr.isatty() else PlainView()


def _aligned(facts: Mapping[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, style="dim"), Text(fact))
    return Padding(table, (0, 2))


def _one_line(text: str, room: int) -> str:
    """Text on one line, cut with an ellipsis; an empty answer is shown as such."""
    flat = " ".join(text.split()) or "∅"
    return flat if len(flat) <= room else flat[: room - 1] + "…"


def _scored(score: float | None) -> str:
    return "" if score is None else f"  score {brief(score)}"

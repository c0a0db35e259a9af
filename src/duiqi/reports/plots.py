"""PNG plots by the optional matplotlib: one file per family of metrics (`plot_loss: true`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from duiqi.errors import UserError
from duiqi.journal.files import writing
from duiqi.reports.families import Family, group, parse, words
from duiqi.reports.read import RunRecord, Series, load_run
from duiqi.reports.svg import smooth

_FILE_NAMES = {"Score": "reward", "KL from the reference": "kl", "Answer length": "length"}
"""The names that users of ChatGLM-Efficient-Tuning and LLaMA-Factory look for; others are the title in lower case."""


def write_plots(run_dir: str | Path) -> list[Path]:
    """Draw `plots/training_loss.png`, `training_reward.png` ... of a run. Returns the files, in order.

    Raises:
        UserError: matplotlib is not installed.
        RunError: there is no run in `run_dir`, or it cannot be written.
    """
    record = load_run(run_dir)
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise UserError(
            "plots need matplotlib, which is not installed",
            where="plot_loss",
            remedy="pip install duiqi[plot], or set plot_loss: false (duiqi report needs no matplotlib)",
        ) from error
    folder = record.path / "plots"
    with writing(folder):
        folder.mkdir(exist_ok=True)
        return [_draw(figures, record, family, names, folder) for family, names in group(record.series())]


def _draw(figures: Any, record: RunRecord, family: Family, names: list[str], folder: Path) -> Path:
    # A Figure of its own, not pyplot: no window system, no global state, nothing to close.
    figure = figures.Figure(figsize=(6.4, 4.0), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    series = record.series()
    for index, name in enumerate(sorted(names, key=parse)):
        _draw_line(axes, series[name], label=words(name), colour=f"C{index}", is_evaluation=parse(name).is_evaluation)
    axes.set(title=family.title, xlabel="step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(frameon=False)
    path = folder / f"training_{_file_name(family)}.png"
    figure.savefig(path)
    return path


def _draw_line(axes: Any, series: Series, *, label: str, colour: str, is_evaluation: bool) -> None:
    if is_evaluation or len(series.steps) < 16:
        axes.plot(series.steps, series.values, color=colour, marker="o", markersize=3.5, label=label)
        return
    trend = smooth(series.finite)
    axes.plot(series.steps, series.values, color=colour, alpha=0.3, linewidth=0.9)
    axes.plot([s for s, _ in trend], [v for _, v in trend], color=colour, linewidth=1.8, label=label)


def _file_name(family: Family) -> str:
    return _FILE_NAMES.get(family.title, family.title.lower().replace(" ", "_").replace("/", "_").replace("-", "_"))

"""PNG plots, when matplotlib is there and when it is not."""

from __future__ import annotations

import sys

import pytest
from tests.reports.conftest import WriteRun

from duiqi.errors import UserError
from duiqi.reports.plots import write_plots


def test_one_file_per_family_under_the_names_people_look_for(write_run: WriteRun) -> None:
    paths = write_plots(write_run("ppo"))
    assert [path.name for path in paths] == ["training_reward.png", "training_kl.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_missing_matplotlib_says_how_to_get_it(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install duiqi\[plot\]"):
        write_plots(write_run("ppo"))

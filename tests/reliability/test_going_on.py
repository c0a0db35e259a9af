"""Every stage goes on from a signal bit for bit, and from the checkpoint before a damaged one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import duiqi
from duiqi.cli.main import main
from duiqi.training.learner import Learner, NonFiniteStep
from duiqi.training.session import Session
from tests.conftest import Workshop

WEIGHTS = "adapter_model.safetensors"
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"lora_dropout": 0.1},
    "sft": {"lora_dropout": 0.1, "val_size": 0.2, "eval_steps": 2, "load_best_model_at_end": True},
    "rm": {"lora_dropout": 0.1, "eval_steps": 2},
    "dpo": {"eval_steps": 2},
    "ppo": {"kl_target": 1.0, "eval_steps": 2, "critic": "adapter", "watch": "warn"},
}


def write_recipe(shop: Workshop, stage: str, directory: Path, **changes: Any) -> str:
    path = directory.with_suffix(".yaml")
    settings = shop.settings(stage, directory, **{"save_steps": 1, **STAGES[stage], **changes})
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def metrics(directory: Path) -> list[dict[str, Any]]:
    """What was measured at every step, but for what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = ("seconds/", "tokens_per_second", "memory_gib")
    return [{name: value for name, value in line.items() if not name.startswith(clocks)} for line in lines]


def assert_same_end(one: Path, other: Path) -> None:
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    ours, theirs = (load_file(run / "last" / "trainer_state.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics(one) == metrics(other)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Lets something happen, once, while a step is recorded."""

    def arrange(step: int, happen: Callable[[], object]) -> None:
        record, happened = Session.record, []

        def record_and_more(self: Session, number: int, values: Mapping[str, float], *, samples: int) -> None:
            if number == step and not happened:
                happened.append(number)
                happen()
            record(self, number, values, samples=samples)

        monkeypatch.setattr(Session, "record", record_and_more)

    return arrange


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("pretrain", signal.SIGINT),
        ("sft", signal.SIGTERM),
        ("rm", signal.SIGUSR1),
        ("dpo", signal.SIGTERM),
        ("ppo", signal.SIGUSR1),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_to_the_same_end(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    at_step: Callable[[int, Callable[[], object]], None],
    stage: str,
    number: signal.Signals,
) -> None:
    assert main([stage, write_recipe(workshop, stage, tmp_path / "whole", save_steps=0)]) == 0
    at_step(2, lambda: signal.raise_signal(number))
    recipe = write_recipe(workshop, stage, tmp_path / "run", save_steps=0)
    assert main([stage, recipe]) == 0
    message = capsys.readouterr().err
    assert f"stopped by {number.name} after step 2 of 4; everything is saved" in message
    assert f"duiqi {stage} {tmp_path}/run/config.yaml resume_from_checkpoint=true" in message
    assert not (tmp_path / "run" / WEIGHTS).exists()
    assert main([stage, f"{tmp_path}/run/config.yaml", "resume_from_checkpoint=true"]) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_signal_in_the_last_step_changes_nothing(
    workshop: Workshop, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    at_step(4, lambda: signal.raise_signal(signal.SIGTERM))
    assert duiqi.run("sft", **workshop.settings("sft", tmp_path)).steps == 4
    assert (tmp_path / WEIGHTS).exists()


def test_a_second_signal_leaves_at_once_and_the_next_run_goes_on(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    at_step: Callable[[int, Callable[[], object]], None],
) -> None:
    recipe = write_recipe(workshop, "sft", tmp_path / "run")
    at_step(3, lambda: [signal.raise_signal(number) for number in (signal.SIGUSR1, signal.SIGINT)])
    assert main(["sft", recipe]) == 130
    message = capsys.readouterr().err
    assert "left at once; the last checkpoint is" in message
    assert "step-000002\n  -> go on with: duiqi sft" in message
    assert main(["sft", recipe, "resume_from_checkpoint=true"]) == 0
    assert main(["sft", write_recipe(workshop, "sft", tmp_path / "whole")]) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


class TestDamage:
    @pytest.fixture
    def stopped(self, workshop: Workshop, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]) -> Path:
        """A run that was stopped after step 3 of 4, with three checkpoints."""
        at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
        assert main(["sft", write_recipe(workshop, "sft", tmp_path / "run")]) == 0
        return tmp_path / "run"

    @staticmethod
    def spoil(checkpoint: Path, name: str = "trainer_state.safetensors") -> None:
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[:-7])

    @staticmethod
    def go_on(run: Path) -> int:
        return main(["sft", str(run / "config.yaml"), "resume_from_checkpoint=true"])

    def test_the_checkpoint_before_is_taken_and_said_so(self, workshop: Workshop, stopped: Path) -> None:
        self.spoil(stopped / "checkpoints" / "step-000003")
        assert self.go_on(stopped) == 0
        warnings = [event["text"] for event in events(stopped) if event["kind"] == "warning"]
        assert len(warnings) == 1
        assert warnings[0].startswith(
            "step-000003 is passed over: the checkpoint is damaged: trainer_state.safetensors"
        )
        assert main(["sft", write_recipe(workshop, "sft", stopped.parent / "whole")]) == 0
        assert_same_end(stopped, stopped.parent / "whole")

    def test_where_all_are_damaged_the_run_does_not_quietly_begin_anew(
        self, stopped: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for checkpoint in (stopped / "checkpoints").iterdir():
            self.spoil(checkpoint)
        assert self.go_on(stopped) == 2
        assert "none of 3 checkpoints can be resumed from" in capsys.readouterr().err

    def test_a_damaged_checkpoint_is_not_chatted_with(self, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.spoil(stopped / "last", WEIGHTS)
        assert main(["export", str(stopped / "last"), "--output_dir", str(stopped.parent / "out")]) == 2
        assert f"this checkpoint is damaged: {WEIGHTS} has" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("origin", {"stage": "dpo", "base_fingerprint": ""}, "is of a run of dpo"),
            ("origin", {"stage": "sft", "base_fingerprint": "0" * 16}, "is of another base"),
            ("origin", [], "holds something else than this run needs"),
            ("progress", {"loss_sum": "much"}, "holds something else than this run needs"),
            ("window", None, "holds something else than this run needs"),
            ("loss_scale", 5, None),
        ],
    )
    def test_the_state_of_another_run_is_refused_with_the_reason(
        self, stopped: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, said: str | None
    ) -> None:
        rewrite(stopped / "checkpoints" / "step-000003", lambda notes: {**notes, key: value})
        assert self.go_on(stopped) == (0 if said is None else 2)
        assert (said or "") in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
    def test_a_damaged_record_is_named(self, stopped: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
        recipe = shutil.copy(stopped / "config.yaml", stopped.parent / "recipe.yaml")
        (stopped / name).write_text("{'", encoding="utf-8")
        assert main(["sft", str(recipe), "resume_from_checkpoint=true"]) == 2
        assert f"{name}: not valid" in capsys.readouterr().err


def rewrite(checkpoint: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what a checkpoint notes, checksums included: as somebody would who knows how."""
    from duiqi.journal.checksums import write_checksums

    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps(change(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    write_checksums(checkpoint)


class TestSkippedSteps:
    """A step whose numbers are not finite is passed over, kept and counted, up to `max_skipped_steps`."""

    @pytest.fixture
    def bad_at(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
        def arrange(steps: set[int]) -> None:
            step = Learner.step

            def sometimes_bad(self: Learner, *args: Any, number: int, **kwargs: Any) -> Any:
                if number in steps:
                    raise NonFiniteStep("loss: 1 of 1 numbers are nan or inf", None, {"norms": {}})
                return step(self, *args, number=number, **kwargs)

            monkeypatch.setattr(Learner, "step", sometimes_bad)

        return arrange

    @pytest.mark.parametrize("stage", ["sft", "ppo"])
    def test_within_the_budget_the_run_goes_on(
        self, workshop: Workshop, tmp_path: Path, bad_at: Callable[[set[int]], None], stage: str
    ) -> None:
        bad_at({2, 4})
        result = duiqi.run(stage, **workshop.settings(stage, tmp_path, max_skipped_steps=2))  # type: ignore[arg-type]
        assert result.steps == 4
        assert json.loads((tmp_path / "anomaly/step-000002/finding.json").read_text())["finding"].startswith("loss: 1")
        assert metrics(tmp_path)[-1 if stage == "sft" else -2]["skipped_steps"] == 2
        assert [event["step"] for event in events(tmp_path) if event.get("name") == "non_finite"] == [2, 4]
        assert (tmp_path / WEIGHTS).exists()

    @pytest.mark.parametrize(("bad", "budget"), [({3}, 0), ({2, 3}, 1), ({1}, 3)], ids=["none", "used up", "at once"])
    def test_beyond_it_the_run_stops(
        self, workshop: Workshop, tmp_path: Path, bad_at: Callable[[set[int]], None], bad: set[int], budget: int
    ) -> None:
        bad_at(bad)
        recipe = write_recipe(workshop, "sft", tmp_path / "run", max_skipped_steps=budget)
        assert main(["sft", recipe]) == 3
        assert (tmp_path / "run" / "anomaly" / "finding.json").exists()

    def test_what_was_skipped_is_counted_across_a_resumption(
        self,
        workshop: Workshop,
        tmp_path: Path,
        bad_at: Callable[[set[int]], None],
        at_step: Callable[[int, Callable[[], object]], None],
    ) -> None:
        bad_at({2, 4})
        at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
        recipe = write_recipe(workshop, "sft", tmp_path / "run", max_skipped_steps=1)
        assert main(["sft", recipe]) == 0
        assert main(["sft", recipe, "resume_from_checkpoint=true"]) == 3


def test_a_base_in_float16_learns_with_a_loss_scale_that_survives(
    workshop: Workshop, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    assert main(["sft", write_recipe(workshop, "sft", tmp_path / "whole", dtype="float16")]) == 0
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    recipe = write_recipe(workshop, "sft", tmp_path / "run", dtype="float16")
    assert main(["sft", recipe]) == 0
    notes = json.loads((tmp_path / "run" / "last" / "trainer_state.json").read_text(encoding="utf-8"))
    assert notes["loss_scale"]["held"] == 2
    assert main(["sft", recipe, "resume_from_checkpoint=true"]) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert all(line["loss_scale"] >= 1 for line in metrics(tmp_path / "whole") if "loss" in line)


def test_a_disk_that_can_never_hold_the_run_is_refused_before_the_first_step(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(2**40, 2**40 - 100_000, 100_000)  # type: ignore[attr-defined]
    monkeypatch.setattr("duiqi.training.disk.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("duiqi.journal.run.check_free_space", lambda *_: None)
    assert main(["sft", write_recipe(workshop, "sft", tmp_path / "run")]) == 2
    assert "the disk is too small for this run: checkpoints take up to" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_changed_since_the_run_began_are_spoken_of(
    workshop: Workshop, tmp_path: Path, at_step: Callable[[int, Callable[[], object]], None]
) -> None:
    rows = tmp_path / "rows.jsonl"
    row = '{"instruction": "q", "output": "a"}\n'
    rows.write_text(row * 8, encoding="utf-8")
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    recipe = str(tmp_path / "recipe.yaml")
    settings = workshop.settings("sft", tmp_path / "run", dataset=str(rows))
    Path(recipe).write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["sft", recipe]) == 0
    rows.write_text(row * 9, encoding="utf-8")
    assert main(["sft", recipe, "resume_from_checkpoint=true"]) == 0
    warnings = [event["text"] for event in events(tmp_path / "run") if event["kind"] == "warning"]
    assert warnings == ["the data are not those that the run began with, so it goes on to other numbers"]

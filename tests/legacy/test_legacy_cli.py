"""`duiqi legacy` and `duiqi train` as they are typed: what is printed, what is run, how it ends."""

from __future__ import annotations

import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from duiqi.cli.main import main
from duiqi.types import StageResult, TrainingTotals

RM = "python src/train_rm.py --do_train --dataset pairs --output_dir runs/rm --learning_rate 1e-5 --fp16"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any, tuple[str, ...]]]:
    """What would have been trained: stage, config, words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    seen: list[tuple[str, Any, tuple[str, ...]]] = []

    def run(stage: str, config: Any, *, argv: tuple[str, ...], view: object) -> StageResult:
        assert view is not None
        seen.append((stage, config, argv))
        return StageResult(stage, config.run.output_dir, 2, TrainingTotals(1.0, 0.5, 2.0, 1.0, 0.1), best_step=None)

    module = types.ModuleType("duiqi.stages.launch")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "duiqi.stages.launch", module)
    return seen


def test_a_command_is_shown_and_run(runs: list[Any], capsys: Any) -> None:
    words = ["legacy", "max_steps=2", "--", *shlex.split(RM)]
    assert main(words) == 0
    ((stage, config, argv),) = runs
    assert (stage, config.data.dataset, config.optimizer.max_steps, config.model.dtype) == ("rm", "pairs", 2, "float16")
    assert argv == tuple(words)
    shown = capsys.readouterr().out
    assert "--learning_rate 1e-5" in shown
    assert "duiqi rm --dataset pairs" in shown
    assert "── rm done" in shown


def test_a_dry_run_runs_nothing_and_its_command_says_the_same(runs: list[Any], capsys: Any) -> None:
    assert main(["legacy", "--dry_run", "--", *shlex.split(RM)]) == 0
    assert not runs
    (command,) = (line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  duiqi rm "))
    assert main(shlex.split(command)[1:]) == 0
    assert main(["legacy", "--", RM]) == 0
    (_, typed, _), (_, translated, _) = runs
    assert typed == translated


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["legacy"], "write it behind --"),
        (["legacy", "--dry_run", "python", "src/train_rm.py"], "write it behind --"),
        (["legacy", "--"], "no script is named"),
        (["legacy", "lora_rnk=2", "--", RM], "`duiqi rm` has no such setting"),
        (["legacy", "--", f"{RM} --num_beams 4"], "--num_beams 4: answers are sampled or greedy"),
        (["legacy", "--", f"{RM} stray.txt"], "--fp16: expected true or false, found 'stray.txt'"),
        (["legacy", "--", "python src/train_rm.py notes.txt"], "'notes.txt' belongs to no flag"),
        (["legacy", "--", f"{RM} --learning_rate fast"], "learning_rate (from --learning_rate)"),
        (["train"], "recipe: required"),
    ],
)
def test_what_cannot_be_run_ends_with_status_two(runs: list[Any], capsys: Any, words: list[str], said: str) -> None:
    assert main(words) == 2
    assert not runs
    assert said in capsys.readouterr().err


def test_strict_false_goes_on_without_what_has_no_meaning(runs: list[Any], capsys: Any) -> None:
    command = f"{RM} --num_beams 4 --deepspeed ds.json"
    assert main(["legacy", "--", command]) == 2
    assert "2 settings have no meaning here (--strict false goes on without them)" in capsys.readouterr().err
    assert main(["legacy", "--strict", "false", "--", command]) == 0
    assert "left out" in capsys.readouterr().out
    assert len(runs) == 1


def test_the_command_line_tool_of_llama_factory_reads_a_file_with_changes(runs: list[Any], tmp_path: Path) -> None:
    text = "stage: sft\ndo_train: true\nmodel_name_or_path: m\ndataset: d\noutput_dir: o\nlora_rank: 4\n"
    (tmp_path / "r.yaml").write_text(text)
    assert main(["legacy", "--", "llamafactory-cli", "train", "r.yaml", "lora_rank=2", "learning_rate=1e-3"]) == 0
    ((_, config, _),) = runs
    assert (config.tuning.lora_rank, config.optimizer.learning_rate) == (2, 1e-3)


def test_a_recipe_in_our_own_words_runs_as_with_its_command(runs: list[Any], tmp_path: Path) -> None:
    settings = "model_name_or_path: m\ndataset: d\noutput_dir: o\nlora_rank: 4\n"
    (tmp_path / "own.yaml").write_text(settings)
    (tmp_path / "staged.yaml").write_text(f"stage: sft\n{settings}")
    assert main(["sft", "own.yaml", "learning_rate=1e-3"]) == 0
    assert main(["train", "staged.yaml", "learning_rate=1e-3"]) == 0
    (_, one, _), (_, other, _) = runs
    assert one == other


def test_old_flags_of_a_stage_are_shown_before_it_runs(runs: list[Any], capsys: Any) -> None:
    words = "sft model_name_or_path=m dataset=d output_dir=o --do_train --checkpoint_dir a"
    assert main(words.split()) == 0
    assert runs[0][1].model.adapter_name_or_path == "a"
    assert "adapter_name_or_path: a" in capsys.readouterr().out


def test_a_recipe_that_predicts_is_answered(
    runs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answered: list[dict[str, str]] = []

    def answer(_command: str, arguments: Any) -> None:
        answered.append({item.key: item.value for item in arguments.named("model", "file")})

    monkeypatch.setattr("duiqi.cli.legacy_runners.generate", answer)
    text = "stage: sft\ndo_predict: true\nmodel_name_or_path: m\neval_dataset: d\noutput_dir: o\ntemplate: qwen\n"
    (tmp_path / "r.yaml").write_text(text)
    assert main(["train", "r.yaml", "--dry_run"]) == 0
    assert not answered
    assert main(["train", "r.yaml"]) == 0
    (settings,) = answered
    assert (settings["model"], settings["file"]) == ("m", "d")
    assert not runs
    assert capsys.readouterr().out.count("duiqi generate m d") == 2


def test_nothing_heavy_is_imported_for_a_translation() -> None:
    code = (
        "import sys; from duiqi.cli.main import main\n"
        f"assert main(['legacy', '--dry_run', 'model_name_or_path=m', '--', {RM!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

"""The command line: its help, what it hands to the rooms below, and its exit statuses."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.evaluation.exams import make_exam

import duiqi
from duiqi.cli.commands import COMMANDS
from duiqi.cli.looking_commands import LOOKING_COMMANDS
from duiqi.cli.main import main
from duiqi.cli.options import CONFIGS, settings_of
from duiqi.errors import GuardStop, Interrupted, RunError
from duiqi.serving.export import Exported
from duiqi.settings.stages import StageName
from duiqi.types import Sampling, StageResult, TrainingTotals

Fake = Callable[..., Any]
BASE = ["model_name_or_path=base", "dataset=data.json", "output_dir=runs/it"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Fake], None]:
    """Put a function in the place of `module:function`, without importing the real module."""

    def put(path: str, function: Fake) -> None:
        name, attribute = path.split(":")
        module = types.ModuleType(name)
        setattr(module, attribute, function)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def calls(fake: Callable[[str, Fake], None]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What was handed to the work behind each command, which does nothing here."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(result: Any = None) -> Fake:
        def work(*args: Any, **keywords: Any) -> Any:
            seen.append((args, keywords))
            return result

        return work

    answered = types.SimpleNamespace(answers=7, lines=lambda: ["none of them is empty"])
    fake("duiqi.serving.generate:generate_file", record(answered))
    fake("duiqi.serving.score:score_file", record(7))
    fake("duiqi.serving.chat:chat", record())
    fake("duiqi.serving.export:export", record(Exported(Path("models/aligned"), merged=1, gap=1e-7, prompts=4)))
    fake("duiqi.reports.html:write_report", record())
    fake("duiqi.pipeline.demo:run_demo", record())
    fake("duiqi.pipeline.lab:run_lab", record())
    fake("duiqi.planning.printed:printed_plan", record("a plan"))
    examined = types.SimpleNamespace(
        exam=make_exam("C"), file=Path("runs/rm/exam.json"), page=Path("runs/rm/exam.html")
    )
    fake("duiqi.serving.exam:examine", record(examined))
    report = types.SimpleNamespace(lines=lambda: ["a report"], told=lambda: ["a report"])
    fake("duiqi.curation.sample:sample_file", record(report))
    fake("duiqi.curation.pair:pair_file", record(report))
    fake("duiqi.curation.judge:judge_file", record(types.SimpleNamespace(lines=["judged"], missing=None)))
    fake("duiqi.curation.translate:translate_file", record(types.SimpleNamespace(lines=["translated"], missing=None)))
    fake("duiqi.curation.labels:export_labels", record(12))
    fake("duiqi.curation.dialogue:dialogue_file", record(report))
    fake("duiqi.curation.fill:fill_file", record(report))
    return seen


def stage_result(stage: str) -> StageResult:
    totals = TrainingTotals(1.0, 0.5, 200.0, 1.0, 0.1)
    return StageResult(stage, "runs/my run", 20, totals, best_step=10, metrics={"eval_loss": 1.23456})


def fail_with(error: BaseException) -> Fake:
    def work(*_: Any, **__: Any) -> StageResult:
        raise error

    return work


class TestHelp:
    def test_the_overview_imports_nothing_heavy_and_answers_at_once(self) -> None:
        code = (
            "import sys, time; began = time.perf_counter()\n"
            "from duiqi.cli.main import main; status = main(['--help'])\n"
            "heavy = {'torch', 'transformers', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
            "print(status, sorted(heavy), time.perf_counter() - began < 0.5, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "0 [] True"
        assert "\x1b" not in done.stdout

    def test_help_of_a_stage_imports_no_torch(self) -> None:
        code = "import sys; from duiqi.cli.main import main; main(['ppo', '--help']); assert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "\x1b" not in done.stdout

    @pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
    def test_the_overview_lists_every_command_on_one_line(
        self, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        assert main(words) == 0
        text = capsys.readouterr().out
        assert len(COMMANDS) == 29
        for name, command in COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(command.summary)}$", text, re.MULTILINE), name
        assert [
            group for group in ("Start here", "Train", "Use", "Look", "Exit codes", "Examples") if group in text
        ] == [
            "Start here",
            "Train",
            "Use",
            "Look",
            "Exit codes",
            "Examples",
        ]
        assert all(len(line) <= 80 for line in text.splitlines())

    @pytest.mark.parametrize("name", COMMANDS)
    @pytest.mark.parametrize("columns", ["40", "80", "200"])
    def test_help_of_a_command_shows_every_setting_within_the_terminal(
        self, name: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        assert main([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        for setting in settings_of(name):
            assert re.search(rf"^  --{setting.name}( |$)", text, re.MULTILINE), setting.name
        beside_commands = text[: text.index("\nExample")]
        assert all(len(line) <= int(columns) for line in beside_commands.splitlines())

    def test_a_setting_is_shown_with_help_type_default_and_condition(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "110")
        main(["ppo", "--help"])
        text = capsys.readouterr().out
        assert "[number from 0 to 1; default 0.95; only with advantage=gae]" in " ".join(text.split())
        assert "only with pref_loss" not in text
        assert text.index("\nRequired") < text.index("--reward_model") < text.index("\nModel\n") < text.index("\nPPO\n")
        assert text.rstrip().endswith("--output_dir runs/ppo")

    def test_the_example_of_a_command_is_one_that_it_accepts(
        self, calls: list[Any], fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        monkeypatch.chdir(tmp_path)
        Path("recipe.yaml").write_text("\n".join(["stage: sft", *BASE]).replace("=", ": "))
        fake("duiqi.stages.launch:run", lambda stage, _config, **_: stage_result(stage))
        for name, command in COMMANDS.items():
            if name != "env" and name not in LOOKING_COMMANDS:  # tests/cli/test_cli_looking.py runs those on data
                assert main(command.example.split()[1:]) == 0, name
        assert len(calls) == 17

    def test_the_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"duiqi {duiqi.__version__}\n"

    def test_every_command_has_settings_and_every_stage_a_command(self) -> None:
        assert COMMANDS.keys() == CONFIGS.keys()
        assert set(get_args(StageName)) <= COMMANDS.keys()


class TestStages:
    def test_a_stage_gets_its_config_and_the_words_typed(self, fake: Any, tmp_path: Path, capsys: Any) -> None:
        seen = []

        def run(stage: str, config: Any, *, argv: Any, view: Any) -> StageResult:
            seen.append((stage, config, argv, view))
            return stage_result(stage)

        fake("duiqi.stages.launch:run", run)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("learning_rate: 1e-5\nlora_rank: 4\n")
        words = ["sft", str(recipe), *BASE, "--lora-rank", "2", "--plot_loss"]
        assert main(words) == 0
        (stage, config, argv, view) = seen[0]
        assert stage == "sft"
        assert argv == tuple(words)
        assert view is not None
        assert (config.optimizer.learning_rate, config.tuning.lora_rank, config.run.plot_loss) == (1e-5, 2, True)
        assert capsys.readouterr().out.splitlines()[1:] == [
            "made      an adapter after 20 steps, best at step 10",
            "where     runs/my run",
            "how good  eval_loss 1.235",
            "took      3 min 20 s",
            "next      duiqi chat 'runs/my run'",
        ]

    @pytest.mark.parametrize(
        ("stage", "made", "following"),
        [
            ("pretrain", "a model after", "duiqi sft --model_name_or_path 'runs/my run' --dataset DEMONSTRATIONS"),
            ("rm", "a reward model after", "duiqi ppo --model_name_or_path base --adapter_name_or_path SFT_RUN"),
            ("dpo", "a model after", "duiqi chat 'runs/my run'"),
        ],
    )
    def test_a_stage_closes_with_what_it_made_and_what_is_next(
        self, fake: Any, capsys: Any, stage: str, made: str, following: str
    ) -> None:
        fake("duiqi.stages.launch:run", lambda stage, _config, **_: stage_result(stage))
        assert main([stage, *BASE, "finetuning_type=full"]) == 0
        text = capsys.readouterr().out
        assert f"made      {made}" in text
        assert f"next      {following}" in text

    def test_python_runs_a_stage_under_the_same_names(self, fake: Any) -> None:
        fake("duiqi.stages.launch:run", lambda stage, config: (stage, config.tuning.lora_rank))
        settings = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "lora_rank": 2}
        assert duiqi.run("sft", **settings) == ("sft", 2)

    def test_the_python_names_are_found_when_they_are_used(self) -> None:
        code = "import sys, duiqi; assert duiqi.run; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert all(callable(getattr(duiqi, name)) for name in duiqi.__all__ if name != "__version__")

    def test_a_name_that_is_not_there(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
            duiqi.load_modle  # noqa: B018


class TestOtherCommands:
    def test_generate(self, calls: list[Any], capsys: Any) -> None:
        words = ["generate", "runs/ppo", "p.jsonl", "--output_file", "a.jsonl", "--temperature", "0.5", "--seed=3"]
        assert main([*words, "--template", "qwen", "batch_size=4", "--max-samples", "9"]) == 0
        positional, named = calls[0]
        assert positional == ("runs/ppo", "p.jsonl", "a.jsonl")
        assert named == {
            "sampling": Sampling(temperature=0.5, seed=3),
            "num_repeats": 1,
            "template": "qwen",
            "system": None,
            "source_prefix": None,
            "max_samples": 9,
            "dataset_dir": ".",
            "batch_size": 4,
            "dtype": "auto",
            "device": "auto",
        }
        assert capsys.readouterr().out == "7 answers written to a.jsonl\nnone of them is empty\n"

    def test_score(self, calls: list[Any]) -> None:
        assert main(["score", "runs/rm", "pairs.json", "--output_file=s.jsonl", "--device", "cpu"]) == 0
        positional, named = calls[0]
        assert positional == ("runs/rm", "pairs.json", "s.jsonl")
        assert named == {"batch_size": 16, "max_samples": None, "dataset_dir": ".", "dtype": "auto", "device": "cpu"}

    def test_chat_samples_by_default(self, calls: list[Any]) -> None:
        assert main(["chat", "runs/ppo", "--system", "Be brief."]) == 0
        positional, named = calls[0]
        assert positional == ("runs/ppo",)
        assert named["system"] == "Be brief."
        assert asdict(named["sampling"]) == asdict(Sampling(max_new_tokens=512, temperature=0.7))

    def test_report(self, calls: list[Any]) -> None:
        assert main(["report", "runs/sft", "runs/ppo", "-o", "page.html"]) == 0
        assert calls[0] == ((("runs/sft", "runs/ppo"), "page.html"), {"title": ""})

    def test_report_without_runs(self, capsys: Any) -> None:
        assert main(["report"]) == 2
        assert capsys.readouterr().err == (
            "error: runs: required, but not given\n  -> runs=...: The run directories to compare.\n"
        )

    def test_exam(self, calls: list[Any], capsys: Any) -> None:
        assert main(["exam", "runs/rm", "--dataset", "pairs.json", "--max-samples", "50", "--seed=3"]) == 0
        positional, named = calls[0]
        assert positional == ("runs/rm",)
        assert (named["dataset"], named["max_samples"], named["seed"], named["output_dir"]) == (
            "pairs.json",
            50,
            3,
            None,
        )
        text = capsys.readouterr().out
        assert "runs/rm: grade C" in text
        assert text.rstrip().endswith("written to runs/rm/exam.json and runs/rm/exam.html")

    @pytest.mark.parametrize(("lowest", "status"), [("A", 3), ("B", 3), ("C", 0), ("F", 0)])
    def test_an_examination_below_the_lowest_grade_that_passes_ends_with_exit_3(
        self, calls: list[Any], capsys: Any, lowest: str, status: int
    ) -> None:
        assert main(["exam", "runs/rm", "--min_grade", lowest]) == status
        assert len(calls) == 1
        seen = capsys.readouterr()
        assert "grade C" in seen.out
        assert seen.err.startswith("error: runs/rm has grade C") == bool(status)

    def test_demo(self, calls: list[Any]) -> None:
        assert main(["demo", "--quick", "--output_dir", "d", "--seed", "4"]) == 0
        assert calls[0] == ((Path("d"),), {"seed": 4, "quick": True})

    def test_env_names_versions_and_device(self, capsys: Any) -> None:
        assert main(["env"]) == 0
        names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert {"python", "torch", "transformers", "cpu", "memory", "device", "bfloat16"} <= set(names)


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["pppo"], "there is no command 'pppo'\n  -> did you mean ppo?"),
            (["qqq"], "there is no command 'qqq'\n  -> `duiqi --help` lists the commands"),
            (["sft", *BASE, "--lora_rnk", "8"], "--lora_rnk: unknown setting\n  -> did you mean lora_rank or"),
            (["sft", *BASE, "--lora_rank", "eight"], "--lora_rank: expected an integer above 0, found 'eight'\n  -> "),
            (["sft", *BASE, "--clip-range", "1"], "--clip-range: has no effect in `sft`; it belongs to ppo\n  -> "),
            (["sft", *BASE, "--output_dir"], "--output_dir: needs a value\n  -> "),
            (["sft", *BASE, "no.yaml"], "no.yaml: there is no such recipe\n  -> "),
            (["sft", "a.yaml", "b.yaml"], "command line: 'b.yaml' is one word too many\n  -> "),
            (["sft"], "3 settings cannot be used\n  model_name_or_path: required, but not given -> "),
            (["generate", "runs/sft"], "2 settings cannot be used\n  file: required, but not given -> "),
            (["generate", "m", "f", "-o", "x"], "2 settings cannot be used\n  -o: unknown setting -> "),
            (["chat", "m", "--temperature", "hot"], "--temperature: expected a number of at least 0, found 'hot'\n"),
            (["chat", "m", "--dtype", "float23"], "--dtype: expected one of auto, float32, bfloat16, float16, found"),
            (["demo", "--quik"], "--quik: unknown setting\n  -> did you mean quick?"),
            (["env", "--all"], "--all: unknown setting\n  -> remove it; `duiqi env --help` lists"),
        ],
    )
    def test_what_the_user_can_mend_is_one_message_and_exit_2(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(words) == 2
        seen = capsys.readouterr()
        assert seen.err.startswith(f"error: {message}")
        assert seen.out == ""
        assert "Traceback" not in seen.err

    @pytest.mark.parametrize(
        ("error", "status", "message"),
        [
            (RunError("holds a run", where="runs/it", remedy="choose another"), 2, "error: runs/it: holds a run\n"),
            (GuardStop("loss is nan", remedy="see anomaly/"), 3, "error: loss is nan\n  -> see anomaly/\n"),
            (Interrupted("saved at step 5; go on with resume_from_checkpoint=true"), 0, "saved at step 5; go on"),
            (KeyboardInterrupt(), 130, "interrupted before there was anything to save\n"),
            (OSError(errno.ENOSPC, "full", "runs/it/x"), 2, "error: runs/it/x: no space left on the device\n  -> free"),
            (RuntimeError("IoError: No space left on device (28)"), 2, "error: no space left on the device\n  -> free"),
        ],
    )
    def test_each_ending_has_its_exit_status(
        self, fake: Any, capsys: Any, error: BaseException, status: int, message: str
    ) -> None:
        fake("duiqi.stages.launch:run", fail_with(error))
        assert main(["sft", *BASE]) == status
        seen = capsys.readouterr().err
        assert seen.startswith(message)
        assert "Traceback" not in seen

    def test_a_bug_shows_its_traceback_and_asks_for_a_report(self, fake: Any, capsys: Any) -> None:
        fake("duiqi.stages.launch:run", fail_with(KeyError("oops")))
        assert main(["sft", *BASE]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-2:] == [
            "KeyError: 'oops'",
            "this is a bug in duiqi: please report it with the lines above and the output of `duiqi env`",
        ]

    def test_debug_shows_the_traceback_of_a_user_s_error(self, capsys: Any) -> None:
        assert main(["sft", "no.yaml", "--debug"]) == 2
        seen = capsys.readouterr().err
        assert seen.startswith("Traceback")
        assert seen.endswith("error: no.yaml: there is no such recipe\n  -> give the path of a YAML file\n")

    def test_a_reader_that_leaves_early_is_no_error(self) -> None:
        command = f"{sys.executable} -m duiqi ppo --help | head -n 1"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("duiqi ppo: ")
        assert done.stderr == ""


def test_a_llama_factory_recipe_fails_naming_only_the_keys_without_meaning(tmp_path: Path, capsys: Any) -> None:
    recipe = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": "base",
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset": "identity,alpaca",
        "cutoff_len": 2048,
        "max_samples": 1000,
        "preprocessing_num_workers": 16,
        "output_dir": "saves",
        "logging_steps": 10,
        "save_steps": 500,
        "plot_loss": True,
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-4,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "val_size": 0.1,
        "eval_steps": 500,
    }
    file = tmp_path / "llama.json"
    file.write_text(json.dumps(recipe, indent=1))
    assert main(["sft", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines[1:]] == ["do_train", "preprocessing_num_workers"]

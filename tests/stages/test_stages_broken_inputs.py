"""What goes wrong for users: every broken input ends with exit 2 and a message that names place and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import Workshop
from transformers import LlamaConfig, LlamaForCausalLM

import duiqi
from duiqi.cli.main import main

ROW = {"instruction": "a", "input": "", "output": "b"}


@dataclass
class Bench:
    """One broken run: its settings and the directory they live in."""

    shop: Workshop
    root: Path
    settings: dict[str, Any]
    words: list[str] = field(default_factory=list)

    def write(self, name: str, text: str) -> str:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return str(path)


Break = Callable[[Bench], None]


def missing_file(bench: Bench) -> None:
    bench.settings["dataset"] = str(bench.root / "nowhere.json")


def bad_json_on_line_7(bench: Bench) -> None:
    lines = [json.dumps(ROW)] * 6 + ['{"instruction": "a", "output": }'] + [json.dumps(ROW)] * 3
    bench.settings["dataset"] = bench.write("rows.jsonl", "\n".join(lines))


def wrong_column(bench: Bench) -> None:
    bench.settings["dataset"] = bench.write("rows.jsonl", json.dumps({"frage": "a", "antwort": "b"}))


def empty_file(bench: Bench) -> None:
    bench.settings["dataset"] = bench.write("rows.jsonl", "")


def not_utf8(bench: Bench) -> None:
    path = bench.root / "rows.jsonl"
    path.write_bytes('{"instruction": "你好", "output": "好"}'.encode("gb18030"))
    bench.settings["dataset"] = str(path)


def output_is_a_number(bench: Bench) -> None:
    rows = [ROW, ROW, {**ROW, "output": 7}]
    bench.settings["dataset"] = bench.write("rows.jsonl", "\n".join(json.dumps(row) for row in rows))


def unknown_dataset(bench: Bench) -> None:
    bench.settings["dataset"] = "stf"


def rankings_for_sft(bench: Bench) -> None:
    bench.settings["dataset"] = "rm"


def unknown_setting(bench: Bench) -> None:
    bench.settings["lora_rnk"] = 8


def unknown_flag(bench: Bench) -> None:
    bench.words += ["--learning-rat", "1e-4"]


def wrong_type(bench: Bench) -> None:
    bench.settings["lora_rank"] = "eight"


def setting_of_another_stage(bench: Bench) -> None:
    bench.settings["ppo_epochs"] = 4


def setting_without_effect(bench: Bench) -> None:
    del bench.settings["adapter_name_or_path"]
    bench.settings |= {"finetuning_type": "full", "lora_rank": 4}


def unknown_template(bench: Bench) -> None:
    bench.settings["template"] = "chatlm"


def other_template_than_the_adapter(bench: Bench) -> None:
    bench.settings["template"] = "zh_qa"


def other_prefix_than_the_adapter(bench: Bench) -> None:
    bench.settings["source_prefix"] = "现在你扮演医生。"


def missing_base(bench: Bench) -> None:
    bench.settings["model_name_or_path"] = str(bench.root / "no-model")


def not_a_model(bench: Bench) -> None:
    (bench.root / "folder").mkdir()
    bench.settings["model_name_or_path"] = str(bench.root / "folder")


def adapter_of_another_base(bench: Bench) -> None:
    other = bench.root / "other-base"
    shutil.copytree(bench.shop.base, other)
    LlamaForCausalLM(LlamaConfig.from_pretrained(other)).save_pretrained(other)
    bench.settings["model_name_or_path"] = str(other)


def reward_model_as_policy(bench: Bench) -> None:
    bench.settings["adapter_name_or_path"] = bench.shop.rm


def missing_adapter(bench: Bench) -> None:
    bench.settings["adapter_name_or_path"] = str(bench.root / "no-adapter")


def damaged_adapter(bench: Bench) -> None:
    damaged = bench.root / "damaged"
    shutil.copytree(bench.shop.sft, damaged, symlinks=True)
    weights = damaged / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[: len(data) // 2])
    bench.settings["adapter_name_or_path"] = str(damaged)


def unknown_lora_target(bench: Bench) -> None:
    del bench.settings["adapter_name_or_path"]
    bench.settings["lora_target"] = "query_proj"


def output_dir_in_use(bench: Bench) -> None:
    bench.settings["output_dir"] = bench.shop.sft


def output_dir_is_a_file(bench: Bench) -> None:
    bench.settings["output_dir"] = bench.write("taken", "x")


def missing_required(bench: Bench) -> None:
    del bench.settings["dataset"]


def validation_larger_than_the_data(bench: Bench) -> None:
    bench.settings["val_size"] = 1000


def prompt_budget_leaves_no_answer(bench: Bench) -> None:
    bench.settings |= {"cutoff_len": 32, "max_source_length": 32}


def unknown_device(bench: Bench) -> None:
    bench.settings["device"] = "gpu0"


BROKEN: list[tuple[Break, str, str]] = [
    (missing_file, "nowhere.json", "give a path"),
    (bad_json_on_line_7, "rows.jsonl:7", "JSON"),
    (wrong_column, "rows.jsonl:1", "found the columns frage, antwort"),
    (empty_file, "rows.jsonl", "empty"),
    (not_utf8, "rows.jsonl", "UTF-8"),
    (output_is_a_number, "rows.jsonl:3", "found the value 7"),
    (unknown_dataset, "stf", "did you mean sft?"),
    (rankings_for_sft, "rm.json", "rm and dpo stages"),
    (unknown_setting, "recipe.yaml:", "did you mean lora_rank"),
    (unknown_flag, "--learning-rat", "did you mean learning_rate"),
    (wrong_type, "recipe.yaml:", "expected an integer above 0, found 'eight'"),
    (setting_of_another_stage, "ppo_epochs", "no effect in `sft`"),
    (setting_without_effect, "lora_rank", "finetuning_type"),
    (unknown_template, "template", "did you mean chatglm"),
    (other_template_than_the_adapter, "template", "was trained with another template"),
    (other_prefix_than_the_adapter, "template", "source_prefix"),
    (missing_base, "no-model", "there is no such directory"),
    (not_a_model, "folder", "give a model directory"),
    (adapter_of_another_base, "sft", "was trained on"),
    (reward_model_as_policy, "rm", "start from an sft run"),
    (missing_adapter, "no-adapter", "give the output_dir of a finished run"),
    (damaged_adapter, "damaged", "copy the adapter again"),
    (unknown_lora_target, "lora_target", "q_proj"),
    (output_dir_in_use, "sft", "overwrite_output_dir: true"),
    (output_dir_is_a_file, "taken", "set another output_dir"),
    (missing_required, "dataset", "required"),
    (validation_larger_than_the_data, "val_size: 1000", "choose another val_size"),
    (prompt_budget_leaves_no_answer, "cutoff_len", "raise cutoff_len"),
    (unknown_device, "device", "try auto"),
]


@pytest.mark.parametrize(("breakage", "place", "remedy"), BROKEN, ids=[b.__name__ for b, _, _ in BROKEN])
def test_broken_input(
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    breakage: Break,
    place: str,
    remedy: str,
) -> None:
    settings = workshop.settings("sft", tmp_path / "out", adapter_name_or_path=workshop.sft)
    bench = Bench(workshop, tmp_path, settings)
    breakage(bench)
    recipe = bench.write("recipe.yaml", yaml.safe_dump(bench.settings))
    assert main(["sft", recipe, *bench.words]) == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1
    assert place in message
    assert remedy in message
    assert "Traceback" not in message


def test_no_disk_space(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duiqi.journal.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(workshop.settings("sft", tmp_path / "out")), encoding="utf-8")
    assert main(["sft", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "free on this disk" in message
    assert "set output_dir on another disk" in message


def test_a_full_disk_in_the_middle_keeps_the_last_checkpoint(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from duiqi.training import checkpoint

    real, calls = checkpoint.save_file, []

    def fill_up(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", fill_up)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(workshop.settings("sft", tmp_path / "out", save_steps=1)), encoding="utf-8")
    assert main(["sft", str(recipe)]) == 2
    assert "no space is left on this disk" in capsys.readouterr().err
    assert [path.name for path in checkpoint.complete_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-000001"]


def test_bad_rows_can_be_skipped_and_are_kept_apart(workshop: Workshop, tmp_path: Path) -> None:
    rows = [ROW] * 5 + [{**ROW, "output": 7}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    settings = workshop.settings("sft", tmp_path / "out", dataset=str(data), max_bad_rows=1, max_steps=1)
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["sft", str(recipe)]) == 0
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [6]


def test_a_full_disk_that_safetensors_reports_is_told_the_same_way(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from duiqi.errors import RunError
    from duiqi.training import checkpoint

    def refuse(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(RunError, match="the checkpoint could not be written"):
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "out", max_steps=1))

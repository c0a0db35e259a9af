"""`duiqi exam` from end to end: on a run, on a classifier's rows, on a function; and what PPO makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop

import duiqi
from duiqi.cli.main import main
from duiqi.data.encoding import encode_conversation, encode_spelled_out, token_budget
from duiqi.data.templates import get_template
from duiqi.errors import DataError, RunError, SettingsError
from duiqi.evaluation.exam_file import weights_digest
from duiqi.models.loading import load_tokenizer
from duiqi.rollouts.standalone import open_reward_model
from duiqi.serving.exam import examine, find_pairs
from duiqi.settings.resolve import resolve
from duiqi.types import Example, Message, Origin


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rm(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workshop's reward model, to write into."""
    return Path(shutil.copytree(workshop.rm, tmp_path_factory.mktemp("examined") / "rm", symlinks=True))


@pytest.fixture(scope="module")
def record(rm: Path) -> dict[str, Any]:
    """What its examination wrote."""
    assert main(["exam", str(rm), "--max_samples", "8", "--min_grade", "F"]) == 0
    found: dict[str, Any] = json.loads((rm / "exam.json").read_text(encoding="utf-8"))
    return found


def test_a_run_is_examined_on_the_rows_that_it_held_out(rm: Path, record: dict[str, Any]) -> None:
    assert record["about"]["dataset"] == "rm_heldout"
    assert record["about"]["prompts"] == 8
    assert record["about"]["digest"] == weights_digest(str(rm))
    assert {probe["kind"] for probe in record["probes"] if probe["beats_best"]["trials"]} >= {"end_at_once", "filler"}
    assert (rm / "exam.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_score_does_not_depend_on_padding_or_company(record: dict[str, Any]) -> None:
    assert record["stability"]["batch"] < 1e-3
    assert record["stability"]["order"] < 1e-3
    assert record["stability"]["other_precision"] == "bfloat16"


def test_the_exit_status_is_3_below_the_lowest_grade(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    words = ["exam", workshop.rm, "--max_samples", "8", "--output_dir", str(tmp_path), "--min_grade", "A"]
    assert main(words) == 3  # four steps of training make no A
    assert "is the lowest that passes (min_grade)" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"exam.json", "exam.html"}


def test_a_function_is_examined_on_pairs_that_are_named(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "taste.py"
    file.write_text("def brief(prompts, answers):\n    return [-float(len(a)) for a in answers]\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"dataset: .*does not say what it was trained on"):
        examine(f"{file}:brief")
    found = examine(f"{file}:brief", dataset="rm_heldout", dataset_dir=workshop.data)
    assert found.file == tmp_path / "taste.brief.exam.json"
    assert found.exam.grade == "F"
    assert found.exam.stability.precision is None
    assert main(["exam", f"{file}:brief", "--dataset", "rm_heldout", "--dataset_dir", workshop.data]) == 3


def test_a_fully_tuned_reward_model_is_examined_too(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("rm", tmp_path / "rm", finetuning_type="full", max_steps=1)
    duiqi.run("rm", **settings)
    assert examine(str(tmp_path / "rm"), max_samples=4).file == tmp_path / "rm" / "exam.json"


def test_rows_that_were_trained_on_are_the_last_resort_and_said_to_be(workshop: Workshop) -> None:
    values = workshop.settings("rm", Path("unused"))
    held_out = find_pairs(resolve("rm", values=values), "rm", dataset=None, dataset_dir=None)
    assert (len(held_out.examples), held_out.notes) == (12, ())
    del values["eval_dataset"]
    split = find_pairs(resolve("rm", values={**values, "val_size": 6}), "rm", dataset=None, dataset_dir=None)
    assert len(split.examples) <= 6
    seen = find_pairs(resolve("rm", values=values), "rm", dataset=None, dataset_dir=None)
    assert len(seen.examples) == 48
    assert "learned from these very rows" in seen.notes[0]
    with pytest.raises(DataError, match="cannot be read any more"):
        find_pairs(resolve("rm", values={**values, "dataset": "gone.json"}), "rm", dataset=None, dataset_dir=None)


def test_a_policy_is_no_reward_model(workshop: Workshop, capsys: Any) -> None:
    words = ["exam", workshop.sft, "--dataset", "rm_heldout", "--dataset_dir", workshop.data]
    assert main([*words, "--output_dir", "unused"]) == 2
    assert "this is the policy of a sft run, not a reward model" in capsys.readouterr().err


class TestSpecialTokensAsText:
    def test_they_are_read_letter_by_letter_and_never_end_an_answer(self, workshop: Workshop) -> None:
        scorer = open_reward_model(workshop.rm, name="rm", cutoff_len=160, spell_out=True)
        tokenizer = load_tokenizer(workshop.rm)
        row = scorer.row((Message("user", "你好"),), "<|end|> <|user|>")
        assert tokenizer.eos_token in scorer.marks
        assert row.count(tokenizer.eos_token_id) == 1
        assert row[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[:-1]).endswith("<|end|> <|user|>")

    @pytest.mark.parametrize("answer", ["", "我住在灯塔旁。", "I am a baker. " * 20])
    def test_other_answers_are_read_as_always(self, workshop: Workshop, answer: str) -> None:
        tokenizer = load_tokenizer(workshop.rm)
        template, budget = get_template(None, tokenizer), token_budget(60)
        prompt = (Message("user", "阿海，你住在哪里？"),)
        example = Example("demonstration", prompt, (answer,), Origin("test"))
        usual = encode_conversation(template, tokenizer, example=example, budget=budget).input_ids
        spelled = encode_spelled_out(template, tokenizer, messages=prompt, answer=answer, budget=budget)
        assert spelled == usual


class TestPPO:
    def fail(self, rm: Path) -> None:
        verdict = {"grade": "F", "about": {"digest": weights_digest(str(rm))}}
        (rm / "exam.json").write_text(json.dumps(verdict), encoding="utf-8")

    @pytest.fixture
    def own(self, workshop: Workshop, tmp_path: Path) -> Path:
        return Path(shutil.copytree(workshop.rm, tmp_path / "rm", symlinks=True))

    def settings(self, workshop: Workshop, tmp_path: Path, rm: Path, **changes: Any) -> dict[str, Any]:
        return workshop.settings("ppo", tmp_path / "ppo", reward_model=str(rm), max_steps=1, **changes)

    def test_one_that_failed_is_refused_with_exit_2_unless_it_is_accepted(
        self, workshop: Workshop, tmp_path: Path, own: Path
    ) -> None:
        self.fail(own)
        with pytest.raises(
            SettingsError, match=r"failed its examination \(grade F\)[^>]*-> read .*exam\.html"
        ) as caught:
            duiqi.run("ppo", **self.settings(workshop, tmp_path, own))
        assert caught.value.exit_code == 2
        duiqi.run("ppo", **self.settings(workshop, tmp_path, own, accept_weak_reward_model=True))
        manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["parents"]["reward"] == f"{own} (grade F)"

    def test_the_grade_of_another_state_is_not_believed(self, workshop: Workshop, tmp_path: Path, own: Path) -> None:
        self.fail(own)
        config = json.loads((own / "adapter_config.json").read_text(encoding="utf-8"))
        (own / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}), encoding="utf-8")
        duiqi.run("ppo", **self.settings(workshop, tmp_path, own))
        manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["parents"]["reward"] == f"{own} (examined in another state: `duiqi exam {own}`)"

    def test_a_damaged_examination_is_named(self, workshop: Workshop, tmp_path: Path, own: Path) -> None:
        (own / "exam.json").write_text("{", encoding="utf-8")
        with pytest.raises(RunError, match=r"exam\.json: this is not the file of an examination"):
            duiqi.run("ppo", **self.settings(workshop, tmp_path, own))


def test_training_against_degenerate_answers_and_with_balanced_lengths(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("rm", tmp_path, probe_negatives=0.25, length_bias="balanced", max_steps=2)
    duiqi.run("rm", **settings)
    notes = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["notes"]
    assert "probe_negatives: 12 rows added to 48, a degenerate answer as the worse one" in notes
    assert any(note.startswith("the longer answer wins in") for note in notes)
    assert lines(tmp_path / "metrics.jsonl")


def test_a_run_that_is_written_over_loses_its_examination(workshop: Workshop, tmp_path: Path) -> None:
    duiqi.run("rm", **workshop.settings("rm", tmp_path, max_steps=1))
    (tmp_path / "exam.json").write_text("{}")
    duiqi.run("rm", **workshop.settings("rm", tmp_path, max_steps=1, overwrite_output_dir=True))
    assert not (tmp_path / "exam.json").exists()

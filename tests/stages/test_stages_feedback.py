"""`duiqi dpo pref_loss=kto`: the same numbers as TRL's KTOTrainer, whatever the split; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tests.conftest import Workshop
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

import duiqi
from duiqi.data.loading import load_examples
from duiqi.data.order import BatchPlan
from duiqi.data.registry import DatasetSpec
from duiqi.errors import DataError, SettingsError
from duiqi.planning.rehearsal import rehearse
from duiqi.planning.rows import count_rows
from duiqi.planning.sketch import sketch
from duiqi.settings.resolve import resolve

ROWS = 8
BETA, LIKED, DISLIKED = 0.3, 1.5, 0.7


@pytest.fixture(scope="module")
def rows(workshop: Workshop) -> list[dict[str, Any]]:
    """Ranked answers of the workshop, the best one liked or the worst one not."""
    ranked = load_examples([DatasetSpec("rm")], dataset_dir=workshop.data, need="ranking", seed=0).examples
    return [
        {
            "prompt": [{"role": message.role, "content": message.content} for message in example.prompt],
            "completion": [{"role": "assistant", "content": example.answers[0 if number % 3 else -1]}],
            "label": bool(number % 3),
        }
        for number, example in enumerate(ranked)
    ]


@pytest.fixture(scope="module")
def feedback(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("feedback") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def other_sft(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy that is some way from the workshop's, so that the baseline is above 0 from the first step on."""
    directory = tmp_path_factory.mktemp("other") / "sft"
    duiqi.run("sft", **workshop.settings("sft", directory, seed=7, max_steps=8, learning_rate=1e-2))
    return str(directory)


def settings(workshop: Workshop, directory: Path, feedback: str, **changes: Any) -> dict[str, Any]:
    return workshop.settings(
        "dpo", directory, dataset=feedback, eval_dataset=None, pref_loss="kto", pref_beta=BETA, **changes
    )


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def oracle(
    workshop: Workshop, rows: list[dict[str, Any]], other_sft: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float]:
    def adapted(adapter: str, *, learns: bool) -> PeftModel:
        model = AutoModelForCausalLM.from_pretrained(workshop.base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter, is_trainable=learns)

    order = BatchPlan(ROWS, batch_size=ROWS, seed=42).rows(0)  # the answer that a prompt borrows depends on it
    args = KTOConfig(
        str(tmp_path_factory.mktemp("kto")),
        beta=BETA,
        desirable_weight=LIKED,
        undesirable_weight=DISLIKED,
        max_length=None,
        per_device_train_batch_size=ROWS,
        train_sampling_strategy="sequential",
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=1e9,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
    )
    trainer = KTOTrainer(
        adapted(other_sft, learns=True),
        ref_model=adapted(workshop.sft, learns=False).merge_and_unload(),
        args=args,
        train_dataset=Dataset.from_list([rows[row] for row in order]),
        processing_class=AutoTokenizer.from_pretrained(workshop.base),
    )
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "grad_norm" in entry)


@pytest.mark.parametrize("split", [4096, 300, 64])
def test_a_step_equals_trl_however_it_is_split(
    workshop: Workshop,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    other_sft: str,
    oracle: dict[str, float],
    split: int,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:ROWS]), encoding="utf-8")
    changes = {
        "adapter_name_or_path": other_sft,
        "ref_model": workshop.sft,
        "kto_chosen_weight": LIKED,
        "kto_rejected_weight": DISLIKED,
        "per_device_train_batch_size": ROWS,
        "tokens_per_micro_batch": split,
        "max_steps": 1,
        "learning_rate": 0.0,
        "reuse_reference": False,
    }
    duiqi.run("dpo", **settings(workshop, tmp_path / "kto", str(path), **changes))
    ours = next(row for row in metrics(tmp_path / "kto") if "grad_norm" in row)
    assert oracle["kl"] > 0.01
    assert ours["kl"] == pytest.approx(oracle["kl"], rel=1e-3)
    assert ours["loss"] == pytest.approx(oracle["loss"], rel=1e-4)  # TRL rounds what it logs
    assert ours["grad_norm"] == pytest.approx(oracle["grad_norm"], rel=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert ours[name] == pytest.approx(oracle[name], rel=1e-3)


def test_liked_answers_come_to_be_preferred(workshop: Workshop, feedback: str, tmp_path: Path) -> None:
    changes = {"max_steps": 24, "learning_rate": 1e-2, "val_size": 8, "eval_steps": 24}
    duiqi.run("dpo", **settings(workshop, tmp_path, feedback, **changes))
    first, *_, last = [row for row in metrics(tmp_path) if "grad_norm" in row]
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)  # the reference is the policy, so z0 is 0
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)
    assert last["loss"] < 0.45
    assert last["rewards/chosen"] - last["rewards/rejected"] > 0.3
    assert "eval_loss" in metrics(tmp_path)[-1] or any("eval_loss" in row for row in metrics(tmp_path))
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert any("answers liked" in note for note in manifest["notes"])


def test_it_can_be_planned_and_costs_more_than_one_pass_of_each(
    workshop: Workshop, feedback: str, tmp_path: Path
) -> None:
    config = resolve("dpo", values=settings(workshop, tmp_path, feedback, device="cpu"))
    found = sketch(config)
    rows = count_rows(config, found.start)
    assert (rows.num_rows, {len(family.answers) for family in rows.families}) == (48, {1})
    pairs = resolve("dpo", values=workshop.settings("dpo", tmp_path, device="cpu", eval_dataset=None))
    per_token = [
        sum(rehearse(one, drawn, count_rows(one, drawn.start)).work.values())
        for one, drawn in ((config, found), (pairs, sketch(pairs)))
    ]
    assert per_token[0] > 1.3 * per_token[1]


def test_rankings_and_feedback_are_not_taken_for_each_other(workshop: Workshop, feedback: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one answer per row and whether it was liked"):
        duiqi.run("dpo", **settings(workshop, tmp_path / "a", "rm"))
    for stage in ("dpo", "rm"):
        with pytest.raises(DataError, match="is in feedback format") as caught:
            duiqi.run(stage, **workshop.settings(stage, tmp_path / stage, dataset=feedback, eval_dataset=None))  # type: ignore[arg-type]
        assert "pref_loss: kto" in (caught.value.remedy or "")


def test_a_step_of_one_row_is_refused(workshop: Workshop, feedback: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a step of one row has no answer to another prompt"):
        duiqi.run("dpo", **settings(workshop, tmp_path, feedback, per_device_train_batch_size=1))

"""Old command lines run: two steps of each on networks of 2023, tiny, with rows under the names of the old datasets."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import Workshop
from tests.legacy.commands import COMMANDS, Cell, cells
from tests.models.ports.chatglm_oracle import randomised
from tests.models.ports.tiny_releases import RELEASES

from duiqi.cli.main import main
from duiqi.models.adapter_files import read_adapter
from duiqi.models.ports.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

ROWS = [
    {"instruction": "你好，今天天气怎么样？", "input": "", "output": "今天天气很好。"},
    {"instruction": "我们去公园吧。", "input": "", "output": "好，我们去公园吧。"},
    {"instruction": "一加一等于几？", "input": "", "output": "等于二。", "history": [["你好", "你好，你好。"]]},
    {"instruction": "Hello, how are you?", "input": "", "output": "I am well, thank you."},
]
PAIRS = [{**row, "output": [row["output"], "。"]} for row in ROWS]
TOPICS = [{"content": row["instruction"], "summary": row["output"]} for row in ROWS]
DEMONSTRATIONS = (
    "koikake_yui_train", "koikake_yui_desc", "koikake_all_train", "koikake_all_test", "belle_multiturn",
    "alpaca_gpt4_zh", "covid_train", "covid_test", "self_cognition", "hc3_chatgpt_zh_specific_qa",
)  # fmt: skip
RANKINGS = ("comparison_gpt4_en", "comparison_gpt4_zh", "rlhf-reward-single-round-trans_chinese")


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """ChatGLM-6B with its 28 layers, each of them tiny, and in half precision as it was released."""
    directory = tmp_path_factory.mktemp("chatglm-6b")
    RELEASES["ChatGLM-6B"].write(directory)
    released = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    deep = ChatGLMConfig(**{**released, "num_layers": 28})
    randomised(ChatGLMForConditionalGeneration(deep)).half().save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    keys = {key: released[key] for key in ("architectures", "auto_map")}
    (directory / "config.json").write_text(json.dumps({**config, **keys}), encoding="utf-8")
    return str(directory)


@pytest.fixture(scope="module")
def baichuan(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("baichuan-7B")
    RELEASES["Baichuan-7B"].write(directory)
    weights = {name: weight.half() for name, weight in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is run: `data` has rows for every name in the old commands."""
    root = tmp_path_factory.mktemp("work")
    (root / "data").mkdir()
    files = {
        **dict.fromkeys(DEMONSTRATIONS, ROWS),
        **dict.fromkeys(RANKINGS, PAIRS),
        **dict.fromkeys(("adgen_train", "adgen_dev"), TOPICS),
    }
    registry = {}
    for name, rows in files.items():
        (root / "data" / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        registry[name] = {"file_name": f"{name}.json"}
        if name.startswith("adgen"):
            registry[name]["columns"] = {"prompt": "content", "response": "summary"}  # type: ignore[assignment]
    (root / "data" / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def legacy(command: str, **later: object) -> None:
    """Run an old command; what is said beside it keeps it tiny."""
    words = [f"{name}={value}" for name, value in later.items()]
    assert main(["legacy", *words, "--", command]) == 0


def steps_of(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line)["step"] for line in lines)


def trained(name: str, place: Path, **later: object) -> Path:
    """Run a command of the corpus for two steps, in a directory that no other test has."""
    command = COMMANDS[name]
    words = shlex.split(command.replace("\\\n", " "))
    out = place / (words[words.index("--output_dir") + 1] if "--output_dir" in words else "runs/rm")
    legacy(command, max_steps=2, overwrite_output_dir="true", logging_steps=1, **later)
    assert steps_of(out) == 2
    return out


@pytest.mark.parametrize("name", ["S3-1", "S3-2", "S3-3", "S3-4", "S3-5", "S3-6", "N-0510", "C-adgen", "C-self"])
def test_sft_of_the_persona_and_of_the_case_studies(name: str, place: Path, glm: str) -> None:
    run = trained(name, place, model_name_or_path=glm)
    layers = {path.split(".")[2] for path in read_adapter(run).low_rank}
    expected = {"S3-2": 3, "S3-3": 3, "S3-4": 3, "S3-5": 3, "S3-6": 3}
    assert len(layers) == expected.get(name, 28)
    if name == "C-adgen":
        assert main(["legacy", "max_new_tokens=4", "--", COMMANDS["C-adgen-eval"]]) == 0
        answers = (place / "adgen_eval" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["label"] for line in answers] == [row["summary"] for row in TOPICS]


KINDS = [cell for cell in cells() if not cell.has_general_data] + [cell for cell in cells() if cell.number in (2, 22)]


@pytest.mark.parametrize("cell", KINDS, ids=lambda cell: cell.directory)
def test_a_cell_of_the_matrix_trains_and_answers(cell: Cell, place: Path, glm: str) -> None:
    legacy(cell.train, max_steps=2, model_name_or_path=glm)
    saved = read_adapter(place / cell.directory)
    assert saved.kind == cell.method
    counts = {"last3": 3, "first3": 3, "whole": 28}
    if cell.method != "p_tuning":
        layers = {path.split(".")[2] for path in (*saved.low_rank, *saved.own)}
        assert len(layers) == counts[cell.layers]
    if cell.number in (1, 9, 21):
        legacy(cell.evaluation("koikake_all_test", "koikake"), max_new_tokens=2)


def test_rlhf_as_in_the_log_of_may_11(place: Path, glm: str) -> None:
    for name in ("N-0510", "S0-RM"):
        trained(name, place, model_name_or_path=glm)
    run = trained("S0-PPO", place, model_name_or_path=glm, max_new_tokens=8, accept_weak_reward_model="true")
    opening = (run / "events.jsonl").read_text(encoding="utf-8")
    assert '"kl": 0.0' in opening  # the reference is the SFT policy, not the bare base


def test_rlhf_as_in_the_readme(place: Path, glm: str) -> None:
    for name in ("S3-1", "S2-RM"):
        trained(name, place, model_name_or_path=glm)
    trained("S2-PPO", place, model_name_or_path=glm, max_new_tokens=8, accept_weak_reward_model="true")


def test_the_doctor_from_sft_to_prediction(place: Path, glm: str) -> None:
    for name in ("C-covid-sft", "C-covid-rm"):
        trained(name, place, model_name_or_path=glm, val_size=1)
    trained("C-covid-ppo", place, model_name_or_path=glm, max_new_tokens=8, accept_weak_reward_model="true")
    legacy(COMMANDS["C-covid-predict"], max_new_tokens=4)
    lines = (place / "covid_predict" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ROWS)
    assert (place / "covid_predict" / "generated_predictions.metrics.json").is_file()


def test_the_tutorial_on_baichuan(place: Path, baichuan: str) -> None:
    trained("S1-SFT", place, model_name_or_path=baichuan)
    trained("S1-RM", place, model_name_or_path=baichuan, template="raw")
    ppo = {"dataset": "alpaca_gpt4_zh", "report_to": "none", "template": "raw", "accept_weak_reward_model": "true"}
    trained("S1-PPO", place, model_name_or_path=baichuan, max_new_tokens=8, **ppo)


def test_the_exploration_of_dpo(place: Path, workshop: Workshop) -> None:
    changes = {"model_name_or_path": workshop.base, "adapter_name_or_path": workshop.sft, "template": "null"}
    run = trained("S4-DPO", place, **changes)
    first = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=2e-2)


def as_of_2023(run: Path, directory: Path) -> Path:
    """A run's adapter as trainers of 2023 left it: their files, a base on the hub, and nothing of duiqi."""
    directory.mkdir()
    weights = load_file(run / "adapter_model.safetensors")
    score = weights.pop("base_model.model.score.weight", None)
    torch.save(weights, directory / "adapter_model.bin")
    if score is not None:
        torch.save({"summary.weight": score, "summary.bias": torch.zeros(1)}, directory / "value_head.bin")
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    kept = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "fan_in_fan_out")
    fields = {key: config[key] for key in kept} | {"base_model_name_or_path": "THUDM/chatglm-6b"}
    (directory / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    torch.save({"finetuning_type": "lora"}, directory / "finetuning_args.bin")
    return directory


def test_ppo_and_prediction_from_what_trainers_of_2023_left(place: Path, glm: str) -> None:
    for name in ("S3-1", "S2-RM"):
        trained(name, place, model_name_or_path=glm)
    sft = as_of_2023(place / "yui_qkv", place / "old_sft")
    rm = as_of_2023(place / "path_to_rm_checkpoint", place / "old_rm")
    changes = {"adapter_name_or_path": sft, "reward_model": rm, "max_new_tokens": 8}
    run = trained("S2-PPO", place, model_name_or_path=glm, **changes)
    assert "is put on this one" in (run / "manifest.json").read_text(encoding="utf-8")
    assert '"kl": 0.0' in (run / "events.jsonl").read_text(encoding="utf-8")
    command = COMMANDS["C-covid-predict"].replace("THUDM/chatglm-6b", glm).replace("covid_ppo", "old_sft")
    legacy(command.replace("covid_predict", "old_predict"), max_new_tokens=4)
    lines = (place / "old_predict" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ROWS)

    ppo = as_of_2023(run, place / "old_ppo")
    stacked = command.replace("old_sft", f"{sft},{ppo}").replace("covid_predict", "stacked_predict")
    assert main(["legacy", "--", stacked]) == 2
    assert main(["export", f"{glm},{sft}", "--output_dir", str(place / "merged")]) == 0
    legacy(stacked.replace(glm, str(place / "merged")).replace(f"{sft},", ""), max_new_tokens=4)
    lines = (place / "stacked_predict" / "generated_predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ROWS)

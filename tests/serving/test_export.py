"""An exported model is the stack that was trained, and needs nothing of duiqi."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as LoRALinear
from tests.conftest import Workshop
from tests.models.ports.tiny_releases import RELEASES
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

import duiqi
from duiqi.cli.main import main
from duiqi.data.named_templates import TEMPLATES, NamedStyle
from duiqi.data.templates import get_template
from duiqi.errors import ModelError, RunError, SettingsError
from duiqi.models.loading import load_tokenizer
from duiqi.models.reward import load_standalone_reward
from duiqi.serving.export import export
from duiqi.serving.export_files import modelfile, with_chat_template
from duiqi.types import Message

IDS = torch.tensor([[5, 6, 7, 8, 9]])
STACKS: dict[str, dict[str, Any]] = {
    "a copy of sft trained further": {},
    "dpo above sft": {"create_new_adapter": True, "lora_rank": 2},
    "dora above sft": {"create_new_adapter": True, "use_dora": True},
    "rslora with the head": {"adapter_name_or_path": None, "use_rslora": True, "modules_to_save": "lm_head"},
    "layers trained whole above sft": {"create_new_adapter": True, "finetuning_type": "freeze"},
    "the whole model": {"adapter_name_or_path": None, "finetuning_type": "full"},
}  # fmt: skip


@pytest.fixture(params=STACKS)
def run(request: pytest.FixtureRequest, workshop: Workshop, tmp_path: Path) -> str:
    settings = workshop.settings("dpo", tmp_path / "run", max_steps=2, eval_dataset=None, **STACKS[request.param])
    duiqi.run("dpo", **settings)
    return str(tmp_path / "run")


@torch.no_grad()
def test_merged_logits_are_the_stack_s(run: str, tmp_path: Path) -> None:
    made = export(run, str(tmp_path / "plain"))
    assert made.gap < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not any(isinstance(module, LoRALinear) for module in plain.modules())
    ours = duiqi.load_model(run)(input_ids=IDS).logits
    assert torch.allclose(plain(input_ids=IDS).logits, ours, atol=1e-5)
    assert torch.allclose(duiqi.load_model(str(tmp_path / "plain"))(input_ids=IDS).logits, ours, atol=1e-5)


GREEDY = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
prompt = [{"role": "user", "content": sys.argv[2]}]
ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1]:]
assert not any(name.startswith("duiqi") for name in sys.modules)
print(json.dumps(tokenizer.decode(answer, skip_special_tokens=True)))
"""


def test_another_process_without_duiqi_gives_the_same_greedy_text(workshop: Workshop, tmp_path: Path) -> None:
    export(workshop.sft, str(tmp_path / "plain"))
    question = "What does Mei like?"
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"instruction": question, "output": ""}) + "\n")
    answers = tmp_path / "answers.jsonl"
    words = [workshop.sft, str(tmp_path / "prompts.jsonl"), "--output_file", str(answers), "--max_new_tokens", "12"]
    assert main(["generate", *words]) == 0
    ours = json.loads(answers.read_text(encoding="utf-8"))["predict"]
    command = [sys.executable, "-c", GREEDY, str(tmp_path / "plain"), question]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(theirs) == ours


@torch.no_grad()
def test_a_reward_model_opens_as_a_sequence_classifier(workshop: Workshop, tmp_path: Path) -> None:
    export(workshop.rm, str(tmp_path / "plain"))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    ours = load_standalone_reward(workshop.rm)(IDS, torch.ones_like(IDS, dtype=torch.bool))
    assert torch.allclose(theirs(input_ids=IDS).logits[:, 0], ours, atol=1e-5)
    assert not (tmp_path / "plain" / "Modelfile").exists()


@pytest.mark.parametrize("kind", ["ChatGLM-6B", "ChatGLM3-6B", "Baichuan2-7B"])
def test_networks_of_2023_open_in_duiqi(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    (tmp_path / "base").mkdir()
    RELEASES[kind].write(tmp_path / "base")
    changes = {"model_name_or_path": str(tmp_path / "base"), "template": RELEASES[kind].template, "cutoff_len": 640}
    for stage in ("sft", "rm"):
        settings = workshop.settings(stage, tmp_path / stage, **changes, max_steps=2, eval_dataset=None)
        duiqi.run(stage, **settings)  # type: ignore[arg-type]
        made = export(str(tmp_path / stage), str(tmp_path / f"plain {stage}"))
        assert made.gap < 1e-5
        assert "it opens with duiqi.load_model" in made.notes[-1]
    row = load_tokenizer(str(tmp_path / "sft"))("你好", return_tensors="pt")["input_ids"]
    ours, plain = (duiqi.load_model(str(tmp_path / name)) for name in ("sft", "plain sft"))
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=row).logits, ours(input_ids=row).logits, atol=1e-5)
    seen = torch.ones_like(row, dtype=torch.bool)
    score, again = (load_standalone_reward(str(tmp_path / name))(row, seen) for name in ("rm", "plain rm"))
    assert torch.allclose(again, score, atol=1e-5)


def test_precision_and_shards_are_chosen(workshop: Workshop, tmp_path: Path) -> None:
    made = export(workshop.sft, str(tmp_path / "plain"), dtype="bfloat16", max_shard_size="20KB")
    assert 0 < made.gap < 0.03
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 2
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain").dtype == torch.bfloat16


def test_what_is_written_beside_the_weights(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", workshop.sft, "--output_dir", str(tmp_path / "plain")]) == 0
    assert "1 adapter merged" in capsys.readouterr().out
    config = json.loads((tmp_path / "plain" / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer.eos_token_id in config["eos_token_id"]
    assert workshop.base in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "plain" / "Modelfile").read_text(encoding="utf-8").startswith('FROM .\nTEMPLATE """')


def test_a_merge_that_is_wrong_is_refused(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoRALinear, "merge", lambda *_, **__: None)
    with pytest.raises(ModelError, match="the merged model is not the one with adapters"):
        export(workshop.sft, str(tmp_path / "plain"))
    assert not (tmp_path / "plain").exists()


def test_what_reads_back_otherwise_leaves_nothing_behind(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = torch.zeros(1, 1, 1)
    monkeypatch.setattr("duiqi.serving.export._reread", lambda _directory, rows, *_: [wrong for _ in rows])
    with pytest.raises(ModelError, match="the merged model is not the one with adapters"):
        export(workshop.sft, str(tmp_path / "plain"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [".", "note.txt"])
def test_files_that_are_there_are_left_alone(workshop: Workshop, tmp_path: Path, place: str) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="there are files in it already"):
        export(workshop.sft, str(tmp_path / place))


def test_a_size_that_is_none_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="max_shard_size: 'lots' is no size"):
        export(workshop.sft, str(tmp_path / "plain"), max_shard_size="lots")


def test_a_whole_reward_model_has_nothing_to_merge(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"finetuning_type": "full", "max_steps": 1, "eval_dataset": None}
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "run", **changes))
    with pytest.raises(ModelError, match="a plain model already, there is nothing to merge"):
        export(str(tmp_path / "run"), str(tmp_path / "plain"))


def test_a_prefix_cannot_be_merged(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"finetuning_type": "p_tuning", "pre_seq_len": 2, "max_steps": 1}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "run", **changes))
    with pytest.raises(ModelError, match="a learned prefix is no weight"):
        export(str(tmp_path / "run"), str(tmp_path / "plain"))


PLAIN_TEMPLATES = [name for name, style in TEMPLATES.items() if isinstance(style, NamedStyle) and not style.needs]


@pytest.mark.parametrize("name", PLAIN_TEMPLATES)
@pytest.mark.parametrize("extras", [{}, {"system": '请说"好"。', "source_prefix": "'{%' 前缀\n"}])
def test_a_named_template_becomes_a_chat_template(workshop: Workshop, name: str, extras: dict[str, str]) -> None:
    assert len(PLAIN_TEMPLATES) == 8
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(workshop.base)
    template = get_template(name, tokenizer, **extras)
    assert with_chat_template(tokenizer, template) == ()
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(talk, tokenize=False))
    assert text.endswith(f"b{template.stop_tokens[0]}")


def test_a_modelfile_has_both_ways_to_begin(workshop: Workshop) -> None:
    template = get_template("zh_qa", load_tokenizer(workshop.base))
    text = modelfile(template)
    plain = "问：{{ .Prompt }}\n答："
    wanted = f"{{{{ if .System }}}}{{{{ .System }}}}\n\n{plain}{{{{ else }}}}{plain}{{{{ end }}}}{{{{ .Response }}}}"
    assert f'TEMPLATE """{wanted}"""' in text
    assert template.prompt_segments([Message("user", "x")])[0].text == "问：x\n答："


def test_dropout_of_an_adapter_has_no_part_in_the_comparison(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"lora_dropout": 0.5, "learning_rate": 1e-2}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "run", **changes))
    assert export(str(tmp_path / "run"), str(tmp_path / "plain")).gap < 1e-4

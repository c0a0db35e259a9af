"""Real Chinese data through the same commands: a Qwen2 with a tokenizer trained on the files, two steps a stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from duiqi.cli.main import main

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
FILES = ("oaast_sft_zh.json", "oaast_rm_zh.json", "alpaca_zh_demo.json")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the shared real data is not here")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(REAL / name) for name in FILES], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


def run(stage: str, base: Path, out: Path, data: str, *words: str) -> dict[str, float]:
    common = ["--model_name_or_path", str(base), "--output_dir", str(out), "--dataset", str(REAL / data)]
    short = ["--max_steps", "2", "--cutoff_len", "128", "--logging_steps", "1"]
    rows = [] if stage == "ppo" else ["--per_device_train_batch_size", "4"]
    assert main([stage, *common, *short, *rows, *words]) == 0
    results: dict[str, float] = json.loads((out / "all_results.json").read_text(encoding="utf-8"))
    return results


def test_every_stage_runs_on_real_data_with_no_code_written(
    qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft, rm = str(tmp_path / "sft"), str(tmp_path / "rm")
    run("sft", qwen, tmp_path / "sft", FILES[0], "--val_size", "16")
    results = run("rm", qwen, tmp_path / "rm", FILES[1], "--val_size", "0.05")
    assert 0.0 <= results["eval_accuracy"] <= 1.0
    assert "rows without two different answers (dropped; the first is" in capsys.readouterr().err
    ppo = ["--adapter_name_or_path", sft, "--reward_model", rm, "--max_new_tokens", "12", "--rollout_batch_size", "8"]
    results = run("ppo", qwen, tmp_path / "ppo", FILES[1], *ppo, "--mini_batch_size", "4", "--val_size", "8")
    assert results["eval_kl"] == pytest.approx(0.0, abs=0.5)
    results = run("dpo", qwen, tmp_path / "dpo", FILES[1], "--adapter_name_or_path", sft, "--val_size", "16")
    assert results["eval_loss"] == pytest.approx(0.693, abs=0.05)


def test_answers_and_scores_of_files(qwen: Path, tmp_path: Path) -> None:
    run("sft", qwen, tmp_path / "sft", FILES[0], "--max_samples", "16")
    run("rm", qwen, tmp_path / "rm", FILES[1], "--max_samples", "16")
    answers, scores = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    words = ["--max_samples", "5", "--max_new_tokens", "8"]
    assert main(["generate", str(tmp_path / "sft"), str(REAL / FILES[0]), "--output_file", str(answers), *words]) == 0
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5
    assert all(set(row) == {"prompt", "predict", "label"} for row in rows)
    words = ["--max_samples", "5"]
    assert main(["score", str(tmp_path / "rm"), str(REAL / FILES[1]), "--output_file", str(scores), *words]) == 0
    rows = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5
    assert all(isinstance(row["chosen_score"], float) for row in rows)

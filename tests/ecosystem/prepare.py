"""Runs for other tools to open: tiny, of every way to tune, with what duiqi itself computes from each.

python tests/ecosystem/prepare.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import duiqi
from duiqi.models.loading import load_tokenizer
from duiqi.models.reward import load_standalone_reward
from duiqi.playground.files import WorldSizes, write_world
from duiqi.playground.tokenizer import train_tokenizer
from duiqi.playground.world import World
from duiqi.serving.export import export

SIZES = WorldSizes(pretrain=60, demonstrations=48, preferences=48, held_out_pairs=8, prompts=16, held_out_prompts=8)
QUESTION = "What does Mei like?"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("sft", {"lora_rank": 4}),
    "rslora": ("sft", {"lora_rank": 4, "use_rslora": True}),
    "dora": ("sft", {"lora_rank": 4, "use_dora": True}),
    "lora_and_head": ("sft", {"lora_rank": 4, "modules_to_save": "embed_tokens,lm_head"}),
    "one_layer": ("sft", {"lora_rank": 4, "lora_target": "1.self_attn.q_proj,mlp@0"}),
    "freeze": ("sft", {"finetuning_type": "freeze", "freeze_trainable_layers": 1}),
    "p_tuning": ("sft", {"finetuning_type": "p_tuning", "pre_seq_len": 4}),
    "projected": ("sft", {"finetuning_type": "p_tuning", "pre_seq_len": 4, "prefix_projection": True}),
    "rm": ("rm", {"lora_rank": 4}),
    "rm_freeze": ("rm", {"finetuning_type": "freeze", "freeze_trainable_layers": 1}),
    "dpo": ("dpo", {"adapter_name_or_path": "lora", "create_new_adapter": True, "lora_rank": 2}),
}
"""Each run's stage and what is special in it."""
EXPORTS = ("lora", "lora_and_head", "freeze", "dpo", "rm")


def make_base(folder: Path) -> None:
    """A tiny random llama with the built-in world's tokenizer."""
    texts = [example.answers[0] for example in World(0).pretraining_texts(200)]
    tokenizer = train_tokenizer(texts, folder, vocab_size=500)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,  # vLLM has kernels for heads of 32 numbers and more
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@torch.no_grad()
def expectation(folder: Path, name: str, ids: list[int]) -> dict[str, Any]:
    """What duiqi computes from a run: a reward model's score, or the last logits and a greedy continuation."""
    row = torch.tensor([ids])
    if name.startswith("rm"):
        return {"score": float(load_standalone_reward(str(folder / name))(row, torch.ones_like(row, dtype=torch.bool)))}
    model = duiqi.load_model(str(folder / name))
    answer = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False)
    return {"logits": model(input_ids=row).logits[0, -1].tolist(), "greedy": answer[0, len(ids) :].tolist()}


def main(folder: Path) -> None:
    """Write everything into `folder`, and what is to be found there into expected.json."""
    make_base(folder / "base")
    write_world(folder / "data", 0, sizes=SIZES)
    common = {"model_name_or_path": str(folder / "base"), "dataset_dir": str(folder / "data"), "dtype": "float32"}
    for name, (stage, special) in RUNS.items():
        own = dict(special)
        if "adapter_name_or_path" in own:
            own["adapter_name_or_path"] = str(folder / own["adapter_name_or_path"])
        steps = {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "cutoff_len": 160}
        dataset = "sft" if stage == "sft" else "rm"
        duiqi.run(stage, dataset=dataset, output_dir=str(folder / name), **common, **steps, **own)  # type: ignore[arg-type]
    for name in EXPORTS:
        export(str(folder / name), str(folder / "export" / name))

    tokenizer = load_tokenizer(str(folder / "base"))
    prompt = [{"role": "user", "content": QUESTION}]
    ids = list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
    expected = {"ids": ids, "runs": {name: expectation(folder, name, ids) for name in RUNS}, "exports": EXPORTS}
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

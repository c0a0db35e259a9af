"""One stage on a base with a vocabulary of some size, in a process of its own: prints its peak memory in bytes.

python tests/stages/large_vocabulary.py make FOLDER TOKENS
python tests/stages/large_vocabulary.py run FOLDER STAGE
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS, TOKENS, HIDDEN = 8, 128, 64
"""Rows of a step, tokens of a row; the trunk is next to nothing beside the embedding."""
SPECIAL = ("<pad>", "<user>", "<assistant>", "<end>")
WORDS = [f"w{number}" for number in range(200)]
"""The tokenizer knows no more, so that it costs the same whatever the vocabulary of the base."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make(folder: Path, num_tokens: int) -> None:
    """Write a base, its tokenizer, and data for every stage."""
    words = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder / "base")
    config = LlamaConfig(
        vocab_size=num_tokens,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    (folder / "reward.py").write_text("def length(prompts, answers):\n    return [float(len(a)) for a in answers]\n")
    chance = random.Random(0)

    def text(count: int) -> str:
        return " ".join(chance.choices(WORDS, k=count))

    half = TOKENS // 2
    rows: dict[str, list[dict[str, Any]]] = {
        "sft": [{"prompt": text(TOKENS // 4), "response": text(TOKENS * 3 // 4 - 4)} for _ in range(ROWS)],
        "rm": [{"prompt": text(half), "chosen": text(half - 4), "rejected": text(half - 4)} for _ in range(ROWS)],
        "ppo": [{"prompt": text(half)} for _ in range(ROWS)],
    }
    for name, of_stage in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_stage)), encoding="utf-8")


def run(folder: Path, stage: Any) -> None:
    """Two steps of a stage."""
    import duiqi

    data = {"sft": "sft", "rm": "rm", "dpo": "rm", "ppo": "ppo"}[stage]
    settings: dict[str, Any] = {
        "model_name_or_path": str(folder / "base"),
        "dataset": str(folder / f"{data}.jsonl"),
        "output_dir": str(folder / stage),
        "cutoff_len": 2 * TOKENS,
        "device": "cpu",
        "dtype": "float32",
        "max_steps": 2,
    }
    if stage == "ppo":
        settings |= {
            "reward_model": f"{folder / 'reward.py'}:length",
            "rollout_batch_size": ROWS,
            "mini_batch_size": ROWS,
            "max_new_tokens": TOKENS // 2,
        }
    else:
        settings["per_device_train_batch_size"] = ROWS
    duiqi.run(stage, **settings)


def peak_bytes() -> int:
    """The most memory that this process ever had; getrusage would count its parent's, from before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process had")


if __name__ == "__main__":
    torch.set_num_threads(1)
    action, place, value = sys.argv[1:]
    if action == "make":
        make(Path(place), int(value))
    else:
        run(Path(place), value)
        sys.stdout.write(f"{peak_bytes()}\n")

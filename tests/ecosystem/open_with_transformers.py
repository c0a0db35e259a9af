"""Opens runs with PEFT and exports with transformers, in an environment without duiqi; prints what it saw as JSON.

python tests/ecosystem/open_with_transformers.py FOLDER
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TOLERANCE = 1e-4


@torch.no_grad()
def differences(folder: Path) -> dict[str, float]:
    """How far each run and export is from what is expected, in logits or scores; inf where greedy text differs."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    row = torch.tensor([expected["ids"]])
    found: dict[str, float] = {}
    for name, wanted in expected["runs"].items():
        if name == "dpo":
            continue  # a stack: its export is what other tools open
        kind: Any = AutoModelForSequenceClassification if "score" in wanted else AutoModelForCausalLM
        labels = {"num_labels": 1} if "score" in wanted else {}
        base = kind.from_pretrained(folder / "base", **labels)
        found[f"PEFT: {name}"] = difference(PeftModel.from_pretrained(base, folder / name).eval(), row, wanted)
    for name in expected["exports"]:
        wanted = expected["runs"][name]
        kind = AutoModelForSequenceClassification if "score" in wanted else AutoModelForCausalLM
        model = kind.from_pretrained(folder / "export" / name).eval()
        found[f"transformers: export of {name}"] = difference(model, row, wanted)
    tokenizer = AutoTokenizer.from_pretrained(folder / "export" / "lora")
    prompt = [{"role": "user", "content": "What does Mei like?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    found["transformers: chat template of the export"] = 0.0 if ids == expected["ids"] else float("inf")
    return found


def difference(model: Any, row: torch.Tensor, wanted: dict[str, Any]) -> float:
    if "score" in wanted:
        return abs(float(model(input_ids=row).logits[0, 0]) - wanted["score"])
    answer = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False)
    if answer[0, row.shape[1] :].tolist() != wanted["greedy"]:
        return float("inf")
    return float((model(input_ids=row).logits[0, -1] - torch.tensor(wanted["logits"])).abs().max())


if __name__ == "__main__":
    seen = differences(Path(sys.argv[1]))
    assert not any(name.startswith("duiqi") for name in sys.modules)
    versions = {name: version(name) for name in ("transformers", "peft", "torch", "safetensors")}
    print(json.dumps({"versions": versions, "tolerance": TOLERANCE, "differences": seen}))

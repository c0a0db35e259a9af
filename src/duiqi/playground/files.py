"""The built-in world written to disk as a user's datasets would be, with a dataset_info.json that names them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duiqi.playground.world import World
from duiqi.types import Example, Message


@dataclass(frozen=True, slots=True)
class WorldSizes:
    """How many rows of each kind."""

    pretrain: int = 16000
    demonstrations: int = 2400
    preferences: int = 3000
    held_out_pairs: int = 400
    prompts: int = 2000
    held_out_prompts: int = 200


@dataclass(frozen=True, slots=True)
class WorldFiles:
    """Where the datasets lie. The name of each field is its name in dataset_info.json."""

    directory: Path
    pretrain: Path
    sft: Path
    rm: Path
    rm_heldout: Path
    ppo_prompts: Path
    heldout_prompts: Path
    dataset_info: Path


def write_world(directory: Path, seed: int = 0, *, sizes: WorldSizes | None = None) -> WorldFiles:
    """Write every dataset of the world; the same seed and sizes give the same bytes."""
    sizes = sizes or WorldSizes()
    world = World(seed)
    directory.mkdir(parents=True, exist_ok=True)
    files = WorldFiles(
        directory=directory,
        pretrain=directory / "pretrain.jsonl",
        sft=directory / "sft.json",
        rm=directory / "rm.json",
        rm_heldout=directory / "rm_heldout.json",
        ppo_prompts=directory / "ppo_prompts.json",
        heldout_prompts=directory / "heldout_prompts.json",
        dataset_info=directory / "dataset_info.json",
    )
    texts = [{"text": example.answers[0]} for example in world.pretraining_texts(sizes.pretrain)]
    files.pretrain.write_text("".join(f"{_line(text)}\n" for text in texts), encoding="utf-8")
    _write_rows(files.sft, world.demonstrations(sizes.demonstrations))
    _write_rows(files.rm, world.preferences(sizes.preferences))
    _write_rows(files.rm_heldout, world.held_out_pairs(sizes.held_out_pairs))
    _write_rows(files.ppo_prompts, world.prompts(sizes.prompts))
    _write_rows(files.heldout_prompts, world.held_out_prompts(sizes.held_out_prompts))
    files.dataset_info.write_text(json.dumps(_dataset_info(files), indent=2) + "\n", encoding="utf-8")
    return files


def add_rankings(directory: Path, name: str, examples: Iterable[Example]) -> None:
    """Write one more dataset of rankings beside those of the world, under this name in dataset_info.json."""
    info_file = directory / "dataset_info.json"
    info = json.loads(info_file.read_text(encoding="utf-8"))
    info[name] = {**info["rm"], "file_name": f"{name}.json"}
    info_file.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    _write_rows(directory / f"{name}.json", examples)


def alpaca_row(example: Example) -> dict[str, Any]:
    """An example in the alpaca format: a ranking's `output` is the list of its answers, a prompt has no `output`."""
    messages = list(example.prompt)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    row: dict[str, Any] = {"instruction": messages.pop().content, "input": ""}
    if example.kind == "demonstration":
        row["output"] = example.answers[0]
    elif example.kind == "ranking":
        row["output"] = list(example.answers)
    return {**row, "history": _rounds(messages), "system": system}


def _rounds(messages: list[Message]) -> list[list[str]]:
    """Finished turns as [user, assistant] pairs."""
    return [[user.content, assistant.content] for user, assistant in zip(messages[::2], messages[1::2], strict=True)]


def _dataset_info(files: WorldFiles) -> dict[str, Any]:
    prompt = {"prompt": "instruction", "query": "input", "history": "history", "system": "system"}
    with_answer = {**prompt, "response": "output"}
    return {
        "pretrain": {"file_name": files.pretrain.name},
        "sft": {"file_name": files.sft.name, "columns": with_answer},
        "rm": {"file_name": files.rm.name, "ranking": True, "columns": with_answer},
        "rm_heldout": {"file_name": files.rm_heldout.name, "ranking": True, "columns": with_answer},
        "ppo_prompts": {"file_name": files.ppo_prompts.name, "columns": prompt},
        "heldout_prompts": {"file_name": files.heldout_prompts.name, "columns": prompt},
    }


def _write_rows(path: Path, examples: Iterable[Example]) -> None:
    """A JSON list with one row per line, so that an error's line number is the row's."""
    path.write_text("[\n" + ",\n".join(_line(alpaca_row(example)) for example in examples) + "\n]\n", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)

"""Preparing 100,000 alpaca rows: duiqi beside `datasets.map` with the same tokenizer and the same processes.

    make bench-data
    python benchmarks/data_preparation.py --rows 20000 --repeats 3

Both read the same .jsonl file, write each row as "问：...⏎答：..." and its answer with an end token, cut it to 1024
tokens, and keep ids and what is learned on disk; both leave the tokenizer its threads. `datasets.map` is called with
whole batches, the fastest way that it has. Then the same again with everything kept: what it costs to begin a second
run. Every measurement is a process of its own, by turns; imports and the loading of the tokenizer are not counted. The
rows are made up: half Chinese, half English, of 200 characters, with frequencies as words have them. The table is
printed, and everything is written to build/bench/data_preparation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, cast

from machine import peak_memory_mb, this_machine
from work import BENCH, BenchmarkError, main_guard, write_lines

CUTOFF, VOCABULARY = 1024, 16000
CHARACTERS = (60, 140)
"""Of a question and of its answer."""
SEED = 0
WAYS = ("duiqi", "datasets")


@dataclass(frozen=True)
class Cost:
    """What one process measured."""

    way: str
    is_cached: bool
    seconds: float
    cpu_seconds: float
    """Of all threads: what others do on the machine changes it little."""
    peak_mb: float
    before_mb: float
    """The peak after all imports, with the tokenizer loaded."""
    rows: int
    tokens: int


def texts(dice: Random) -> Any:
    """A function that makes up a text of so many characters."""
    ends = [first + vowel + last for first in "bcdfghklmnprstvw" for vowel in "aeiou" for last in ("", *"nrslt")]
    words = ["".join(dice.choices(ends, k=dice.choice((1, 1, 2, 2, 3)))) for _ in range(20000)]
    han = [chr(0x4E00 + number) for number in dice.sample(range(20000), 3500)]
    word_weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    han_weights = list(accumulate(1 / (rank + 10) for rank in range(len(han))))

    def make(length: int) -> str:
        if dice.random() < 0.5:
            return " ".join(dice.choices(words, cum_weights=word_weights, k=length // 4 + 1))[: length - 1] + "."
        signs = dice.choices(han, cum_weights=han_weights, k=length - 1)
        return "".join("，" if dice.random() < 0.08 else sign for sign in signs) + "。"

    return make


def make_up(folder: Path, rows: int) -> None:
    """Write rows.jsonl and a tokenizer for it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    make = texts(Random(SEED))
    data = [{"instruction": make(CHARACTERS[0]), "input": "", "output": make(CHARACTERS[1])} for _ in range(rows)]
    write_lines(folder / "rows.jsonl", data)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((row["instruction"] + "\n" + row["output"] for row in data[:8000]), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder / "tokenizer")


class Silent:
    """A journal that nobody reads."""

    def recorded(self, _name: str) -> None:
        return None

    def describe(self, **_facts: object) -> None:
        return None


def prepare_with_duiqi(folder: Path) -> tuple[int, int]:
    """Rows and tokens that are ready to be learned."""
    from duiqi.data.encoding import token_budget
    from duiqi.data.templates import get_template
    from duiqi.journal.run import Run
    from duiqi.settings.groups import CacheSettings, DataSettings
    from duiqi.stages.preparation import prepare_demonstrations

    prepared = prepare_demonstrations(
        DataSettings(dataset=str(folder / "rows.jsonl"), dataset_dir=str(folder), cutoff_len=CUTOFF),
        CacheSettings(data_cache_dir=str(folder / "duiqi")),
        cast(Run, Silent()),
        seed=SEED,
        template=get_template("zh_qa", loaded_tokenizer(folder)),
        tokenizer=loaded_tokenizer(folder),
        budget=token_budget(CUTOFF),
        train_on="all",
    )
    items = prepared.train.items
    return len(items), sum(len(items[row].input_ids) for row in range(0, len(items), len(items) // 100))


def prepare_with_datasets(folder: Path) -> tuple[int, int]:
    """The same."""
    from datasets import load_dataset

    tokenizer = loaded_tokenizer(folder)
    end, most_of_prompt = tokenizer.eos_token_id, CUTOFF // 2

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        questions = [f"{q}\n{more}" if more else q for q, more in zip(rows["instruction"], rows["input"], strict=True)]
        prompts = tokenizer([f"问：{question}\n答：" for question in questions], add_special_tokens=False)["input_ids"]
        answers = tokenizer(rows["output"], add_special_tokens=False)["input_ids"]
        ids, labels = [], []
        for whole, reply in zip(prompts, answers, strict=True):
            prompt = whole[-most_of_prompt:]
            answer = [*reply[: CUTOFF - len(prompt) - 1], end]
            ids.append(prompt + answer)
            labels.append([-100] * len(prompt) + answer)
        return {"input_ids": ids, "labels": labels}

    loaded = load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "hf"))
    items = loaded.map(encode, batched=True, remove_columns=loaded.column_names)
    return len(items), sum(len(items[row]["input_ids"]) for row in range(0, len(items), len(items) // 100))


_TOKENIZERS: dict[Path, Any] = {}


def loaded_tokenizer(folder: Path) -> Any:
    """The tokenizer, loaded once."""
    from transformers import AutoTokenizer

    if folder not in _TOKENIZERS:
        _TOKENIZERS[folder] = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return _TOKENIZERS[folder]


def measure(way: str, folder: Path, *, is_cached: bool) -> None:
    """Prepare the rows once, in this process; prints what it cost."""
    if way == "duiqi":
        import duiqi.stages.preparation  # noqa: F401
    else:
        import datasets

        datasets.disable_progress_bars()
    loaded_tokenizer(folder)
    before = peak_memory_mb()
    start, cpu_start = time.perf_counter(), time.process_time()
    rows, tokens = (prepare_with_duiqi if way == "duiqi" else prepare_with_datasets)(folder)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps(asdict(Cost(way, is_cached, seconds, cpu_seconds, peak_memory_mb(), before, rows, tokens))))


def measured(way: str, folder: Path, *, is_cached: bool) -> Cost:
    """The same in a process of its own; nothing is kept from before unless `is_cached`."""
    if not is_cached:
        for name in ("duiqi", "hf"):
            shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, __file__, "--folder", str(folder), "--one", way, *(["--cached"] if is_cached else [])]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BenchmarkError(f"{way} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def table(costs: Sequence[Cost]) -> str:
    """Medians, and duiqi's part of what `datasets.map` takes, of the runs that stood side by side."""
    lines = ["| | duiqi | datasets.map | ratio of times |", "|---|---|---|---|"]
    for is_cached, title in ((False, "nothing kept"), (True, "everything kept")):
        own = {way: [cost for cost in costs if (cost.way, cost.is_cached) == (way, is_cached)] for way in WAYS}
        cells = [
            f"{median(c.seconds for c in found):.2f} s, {median(c.cpu_seconds for c in found):.2f} s of cores, "
            f"{median(c.peak_mb for c in found):.0f} MB (imports: {median(c.before_mb for c in found):.0f})"
            for found in own.values()
        ]
        ratios = [ours.seconds / theirs.seconds for ours, theirs in zip(*own.values(), strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        lines.append(f"| {title} | {' | '.join(cells)} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=BENCH / "data_preparation")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cached", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one, args.folder, is_cached=args.cached)
        return
    if args.make:
        make_up(args.folder, args.rows)
        return
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    # in a process of its own: what a process starts begins with its parent's peak of memory
    making = [sys.executable, __file__, "--make", "--folder", str(args.folder), "--rows", str(args.rows)]
    subprocess.run(making, check=True)
    costs: list[Cost] = []
    for repeat in range(args.repeats):
        for way in WAYS if repeat % 2 else reversed(WAYS):
            costs += [measured(way, args.folder, is_cached=is_cached) for is_cached in (False, True)]
            print(costs[-2], costs[-1], sep="\n", flush=True)
    if len({cost.tokens for cost in costs}) != 1:
        raise BenchmarkError("the two ways do not give the same tokens")
    result = {"machine": asdict(this_machine()), "rows": args.rows, "costs": [asdict(cost) for cost in costs]}
    (BENCH / "data_preparation.json").write_text(json.dumps(result, ensure_ascii=False, indent=1))
    print(table(costs))


if __name__ == "__main__":
    main_guard(main)

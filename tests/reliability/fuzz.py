"""Gives mutated files to everything that reads files from elsewhere, for as long as is asked, and counts.

    python -m tests.reliability.fuzz --inputs 20000 --seed 0
    python -m tests.reliability.fuzz --inputs 20000 --engine atheris

What breaks the promise (see `targets`) is kept in build/fuzz, one file per input, and the exit status is 1.
atheris looks for inputs that reach new lines of duiqi; it is no dependency: `pip install atheris` where it has a wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

FOUND = Path("build/fuzz")
SHARES = {
    "dataset": 4,
    "registry": 6,
    "template": 2,
    "recipe": 3,
    "old_recipe": 3,
    "checkpoint": 4,
    "adapter": 4,
    "tokenizer": 1,
}
"""How the inputs are divided: fast targets get more."""


def keep(name: str, data: bytes, error: BaseException) -> None:
    """Write down what broke the promise."""
    FOUND.mkdir(parents=True, exist_ok=True)
    file = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    lines = traceback.format_exception(error)
    file.with_suffix(".txt").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    print(f"{file}: {lines[-1].strip()[:200]}", flush=True)


def with_mutation(name: str, inputs: int, seed: int) -> Counter[str]:
    """Inputs by our own mutation."""
    from tests.reliability.mutation import mutated
    from tests.reliability.targets import TARGETS, seeds, try_one

    dice, counts, kinds = random.Random(f"{seed}:{name}"), Counter[str](), set[str]()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(inputs):
            data = mutated(name, seeds()[name], dice)
            try:
                counts["taken" if try_one(TARGETS[name], Path(folder) / "x", data) else "refused"] += 1
            except Exception as error:
                counts["broken"] += 1
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} {last.filename}:{last.lineno}"
                if kind not in kinds:  # one of each kind is enough to mend it
                    kinds.add(kind)
                    keep(name, data, error)
    return counts


def run_atheris(name: str, inputs: int, seed: int) -> None:
    """The child's part: let atheris drive one target; it never returns."""
    import atheris

    with atheris.instrument_imports(include=["duiqi"]):
        from tests.reliability.targets import TARGETS, seeds, try_one

    root = Path(tempfile.mkdtemp())
    corpus = root / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds()[name]):
        (corpus / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        try:
            taken = try_one(TARGETS[name], root / "x", data)
        except Exception as error:
            keep(name, data, error)
            raise
        del taken

    words = [sys.argv[0], f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=4096", "-verbosity=1", str(corpus)]
    atheris.Setup(words, one)
    atheris.Fuzz()


def with_atheris(name: str, inputs: int, seed: int) -> Counter[str]:
    """Inputs by atheris, in a process of its own."""
    words = [sys.executable, "-m", "tests.reliability.fuzz", "--child", name, "--inputs", str(inputs)]
    done = subprocess.run([*words, "--seed", str(seed)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    match = re.search(r"Done (\d+) (?:runs )?in", said) or re.search(r"DONE.*?#(\d+)", said)
    lines = [int(number) for number in re.findall(r"^#(\d+)", said, re.MULTILINE)]
    counts = Counter({"tried": int(match[1]) if match else max(lines, default=0)})
    covered = [int(number) for number in re.findall(r"cov: (\d+)", said)]
    counts["branches reached"] = max(covered, default=0)
    if done.returncode:
        counts["broken"] += 1
        print(said[-3000:], flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description="give hostile files to everything that reads files")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["mutation", "atheris"], default="mutation")
    parser.add_argument("--targets", default=",".join(SHARES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_atheris(options.child, options.inputs, options.seed)
    names = options.targets.split(",")
    total = sum(SHARES[name] for name in names)
    engine = with_atheris if options.engine == "atheris" else with_mutation
    broken = 0
    for name in names:
        begin = time.monotonic()
        counts = engine(name, max(1, options.inputs * SHARES[name] // total), options.seed)
        broken += counts["broken"]
        figures = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"{name}: {figures} in {time.monotonic() - begin:.0f} seconds", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""The fixed work that everybody is measured on: where its files lie, how they are made, what is in them.

Knows no torch, so that what only starts processes stays small: on Linux a new process's peak memory counts from that
of the one that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BENCH = REPOSITORY / "build" / "bench"
"""Where the work files, the results and everybody's output go."""
PEERS = REPOSITORY.parent / "shared" / "bench"
"""The folder of the peers' scripts, unless another is named."""
SIZES = ("small", "medium")
WORKS = ("sft", "rm", "dpo", "ppo", "grpo")
DTYPES = ("fp32", "bf16")


class BenchmarkError(Exception):
    """Something the user can mend: what is wrong and what to do."""


def main_guard(main: Callable[[], None]) -> None:
    """Run a script's main; a `BenchmarkError` becomes one line and exit status 2."""
    try:
        main()
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def read_rows(root: Path, size: str, name: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a work file: sft, pairs or prompts.

    Raises:
        BenchmarkError: The file is missing, or shorter.
    """
    path = root / size / f"{name}.jsonl"
    if not path.is_file():
        raise BenchmarkError(f"{path} is missing: run `python benchmarks/compare.py --assets-only --size {size}`")
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if len(rows) < count:
        raise BenchmarkError(f"{path} has {len(rows)} rows, {count} are asked for: lower --samples or --iterations")
    return rows[:count]


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Rows as a .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def peer_script(peers: Path, name: str) -> Path:
    """A script in the peers' folder.

    Raises:
        BenchmarkError: The folder or the script is missing.
    """
    if not peers.is_dir():
        raise BenchmarkError(f"there is no folder {peers} with the peers' scripts: name it with --peers (make: PEERS=)")
    path = peers / name
    if not path.is_file():
        raise BenchmarkError(f"{name} is missing in {peers}: is this the folder of the peers' scripts?")
    return path


def make_assets(root: Path, size: str, peers: Path) -> None:
    """Make tokenizer, random-weight models and work files, unless they are there.

    Raises:
        BenchmarkError: The script that makes them is missing, or failed.
    """
    if (root / size / "summary.json").is_file():
        return
    script = peer_script(peers, "make_assets.py")
    command = [sys.executable, str(script), "--out", str(root), "--size", size]
    texts = peers.resolve().parent / "data" / "real"
    if texts.is_dir():
        command += ["--data", str(texts)]
    print(f"making models and work files ({size}) in {root} ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode:
        raise BenchmarkError(f"{script} failed:\n{done.stderr[-2000:]}")

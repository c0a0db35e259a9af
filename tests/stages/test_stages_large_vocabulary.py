"""A large vocabulary costs its weights and one chunk of logits, in every stage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from large_vocabulary import HIDDEN

from duiqi.algorithms.log_probs import CHUNK_LOGITS, SMALLEST_CHUNK

LARGE, SMALL = 250_000, 256
SCRIPT = Path(__file__).with_name("large_vocabulary.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux tells it"),
]


def in_a_process(*arguments: str, cache: Path) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same data for a base of many tokens and for one of few."""
    made = {size: tmp_path_factory.mktemp(f"tokens-{size}") for size in (LARGE, SMALL)}
    for size, folder in made.items():
        in_a_process("make", str(folder), str(size), cache=folder)
    return made


@pytest.mark.parametrize("stage", ["sft", "rm", "dpo", "ppo"])
def test_the_peak_is_below_1_3_times_the_weights_and_one_chunk_of_logits(stage: str, bases: dict[int, Path]) -> None:
    """What the same stage needs with hardly any vocabulary is the libraries' own footprint."""
    peaks = {
        size: int(in_a_process("run", str(folder), stage, cache=folder / "cache")) for size, folder in bases.items()
    }
    weights = 4 * LARGE * HIDDEN
    chunk = 4 * LARGE * max(1, CHUNK_LOGITS // LARGE // SMALLEST_CHUNK) * SMALLEST_CHUNK
    used = peaks[LARGE] - peaks[SMALL]
    said = f"{stage}: {used / 2**20:.0f} MiB, weights {weights / 2**20:.0f} MiB, a chunk {chunk / 2**20:.0f} MiB"
    sys.stdout.write(said + "\n")
    assert used < 1.3 * (weights + chunk), said

"""What a run needs to be repeated elsewhere: versions, source revision and hardware. Asking never fails a run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("duiqi", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "pydantic", "vllm")
_PATIENCE_SECONDS = 5


def versions() -> dict[str, str]:
    """The version of Python and of every installed package that can change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> dict[str, Any] | None:
    """The commit checked out in the working directory, and whether files differ from it; None outside a repository."""
    revision = _answer_of("git", "rev-parse", "HEAD")
    if not revision:
        return None
    return {"revision": revision, "modified": bool(_answer_of("git", "status", "--porcelain", "--untracked-files=no"))}


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory in GiB, and the names of NVIDIA GPUs."""
    gpus = _answer_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": gpus.splitlines(),
    }


def _answer_of(program: str, *arguments: str) -> str:
    """What a short command prints; empty when it is missing, slow or unhappy."""
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, errors="replace", timeout=_PATIENCE_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None

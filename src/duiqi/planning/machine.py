"""What this machine has: memory that is free, disk that is free, and how fast it multiplies matrices."""

from __future__ import annotations

import shutil
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from safetensors import safe_open

GEMM_SIZE = {"cpu": 1024, "cuda": 4096, "mps": 2048}
"""Rows and columns of the matrices whose product is timed."""


def resident_after_imports() -> int:
    """Bytes that Python and the libraries of a run take before there is a model. Call it first: it only grows."""
    import_module("duiqi.stages.launch")
    return resident()


def resident() -> int:
    """Bytes of this process that are in memory; 0 where nobody can say."""
    return _kibibytes(Path("/proc/self/status"), "VmRSS") * 1024


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run on this device could have; None where nobody can say.

    On a CPU what this process holds counts as free, for it will have ended; a limit of the container counts.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    free = _kibibytes(Path("/proc/meminfo"), "MemAvailable") * 1024
    if not free:
        return None
    limit = _container_room(Path("/sys/fs/cgroup"))
    return min(free, limit if limit is not None else free) + resident()


def _container_room(group: Path) -> int | None:
    """Bytes that the container may still take (control groups, version 2); None where there is no limit."""
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return int(limit) - used if limit.isdigit() else None


def _kibibytes(file: Path, name: str) -> int:
    """A number of a file in /proc; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    lines = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) for words in lines if words and words[0] == f"{name}:"), 0)


def free_disk(directory: str) -> int:
    """Bytes that are free where a directory is, or will be."""
    place = Path(directory).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def multiplication_speed(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """FLOPs a second of a matrix product, measured for about so long."""
    size = GEMM_SIZE.get(device.type, 1024)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = left @ right  # what happens once does not count
    _wait_for(device)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        torch.mm(left, right, out=out)
        count += 1
        _wait_for(device)
    return 2.0 * size**3 * count / (time.perf_counter() - begin)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def converted_bytes(path: str, dtype: torch.dtype) -> int:
    """Bytes of a model's files in another precision than `dtype`: while it is loaded, they are in memory beside what
    they become. 0 where the model lies on the hub, or its files are no safetensors.
    """
    total = 0
    for file in Path(path).expanduser().glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        if kinds != {_DTYPE_NAMES.get(dtype)}:
            total += file.stat().st_size
    return total


_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

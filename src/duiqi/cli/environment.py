"""`duiqi env`: what a report of a bug should say about the machine."""

from __future__ import annotations

import sys

from duiqi.cli.arguments import Arguments
from duiqi.cli.options import EnvironmentConfig
from duiqi.journal.provenance import hardware, versions
from duiqi.settings.resolve import build


def show_environment(command: str, arguments: Arguments) -> None:
    """Print versions, processor, memory and accelerator as a small table."""
    build(EnvironmentConfig, arguments.named(), command=command)
    machine = hardware()
    rows = {
        **versions(),
        "platform": machine["platform"],
        "cpu": f"{machine['cpu']}, {machine['cores']} cores",
        "memory": f"{machine['memory_gib']} GiB",
        **_accelerator(),
    }
    sys.stdout.write("".join(f"{name:<14}{value}\n" for name, value in rows.items()))


def _accelerator() -> dict[str, str]:
    """The device that `device: auto` takes, and whether it computes in bfloat16."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return {
            "device": f"cuda, {torch.cuda.device_count()} x {device.name}, {device.total_memory / 2**30:.0f} GiB",
            "bfloat16": "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no",
        }
    if torch.backends.mps.is_available():
        return {"device": "mps", "bfloat16": "yes"}
    return {"device": "cpu", "bfloat16": "yes, but on most processors slower than float32"}

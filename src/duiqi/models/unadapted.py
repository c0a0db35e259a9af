"""What LoRA leaves alone although a user may think otherwise: experts that are one 3-D matrix, layers PEFT refuses."""

from __future__ import annotations

from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from duiqi.models.adapters import left_out


def unadapted(model: nn.Module) -> Iterator[str]:
    """In plain sentences, what the adapters on a model do not reach; nothing where it has none."""
    adapted = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)})
    if not adapted:
        return
    if experts := stacked_experts(model):
        share = sum(experts.values()) / sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
        yield (
            f"LoRA adapts {', '.join(adapted)}; "
            f"the experts' matrices {', '.join(experts)} ({share:.0%} of the weights) stay as they are, "
            "for transformers keeps those of all experts in one"
        )
    missing = {name: why for name, why in left_out(model).items() if name not in adapted}
    for reason in sorted(set(missing.values())):
        names = sorted(name for name, why in missing.items() if why == reason)
        yield f"LoRA leaves {', '.join(names)} out: {reason}"


def stacked_experts(model: nn.Module) -> dict[str, int]:
    """Matrices of all experts of a layer in one parameter: short names, and how many numbers all layers have."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and path.rpartition(".")[2] == "experts":
                short = f"experts.{name}"
                found[short] = found.get(short, 0) + parameter.numel()
    return found

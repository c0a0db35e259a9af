"""What stands between a network's last hidden states and its logits, found and checked when a base is loaded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from duiqi.algorithms.log_probs import OutputHead
from duiqi.errors import ModelError
from duiqi.guards.culprit import bad_weights
from duiqi.models.layout import trunk_of
from duiqi.models.ports.norm_head import NormHead


def output_head_of(network: PreTrainedModel) -> OutputHead:
    """The output head of a network, with what its architecture does to the logits."""
    head, config = network.get_output_embeddings(), network.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        scale /= float(divisor)
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    weight = head.unit_rows() if isinstance(head, NormHead) else head.weight
    return OutputHead(weight, getattr(head, "bias", None), scale=scale, soft_cap=cap or None)


@torch.no_grad()
def check_head_splits(model: PreTrainedModel) -> None:
    """Assert once that trunk and head, called apart, give the model's own logits.

    Raises:
        ModelError: They do not, or weights that are nan or inf let nobody say.
    """
    ids = torch.arange(2, device=next(model.parameters()).device).unsqueeze(0)
    whole = model(input_ids=ids, use_cache=False).logits.float()
    split = output_head_of(model)(trunk_of(model)(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.isfinite(whole).all() and (bad := bad_weights([model])):
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ModelError(
            f"weight {bad[0]}{more} of the base holds nan or inf", remedy="copy the base again, or take another one"
        )
    if not torch.allclose(whole, split, rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(model).__name__} does something unknown between its last hidden state and its logits",
            where=str(model.config.name_or_path),
            remedy="please report the architecture; until then use another base model",
        )

"""A vocabulary with more tokens than the base has rows for."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def num_rows(model: PreTrainedModel) -> int:
    """Tokens that the embeddings have rows for."""
    return len(model.get_input_embeddings().weight)


@torch.no_grad()
def grow_vocabulary(model: PreTrainedModel, rows: int) -> None:
    """Give embeddings and output head (if there is one) so many rows, each new one the mean of the old (Hewitt 2021).

    The same base grows the same way every time, so adapters that learned nothing of it stay what they were.
    """
    old = num_rows(model)
    if rows <= old:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    for module in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        module.weight[old:] = module.weight[:old].float().mean(dim=0).to(module.weight.dtype)
    model.requires_grad_(False)

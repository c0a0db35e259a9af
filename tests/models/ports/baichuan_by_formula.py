"""Baichuan written down a second time, number by number from its formulae in float64, apart from the port."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from duiqi.models.ports.baichuan import BaichuanConfig, BaichuanForCausalLM

KINDS = {
    "Baichuan-7B": {"position_embedding": "rope", "norm_head": False, "num_attention_heads": 4},
    "Baichuan2-7B": {"position_embedding": "rope", "norm_head": True, "num_attention_heads": 3},
    "Baichuan-13B": {"position_embedding": "alibi", "norm_head": False, "num_attention_heads": 3},
    "Baichuan2-13B": {"position_embedding": "alibi", "norm_head": True, "num_attention_heads": 4},
}
"""Tiny models of every kind; the number of heads is a power of two or not."""

VOCAB, HIDDEN = 97, 24


def tiny_config(kind: str, **changes: object) -> BaichuanConfig:
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 20, "num_hidden_layers": 2}
    return BaichuanConfig(**{**shape, **KINDS[kind], "initializer_range": 0.3, **changes})


def tiny_model(kind: str, *, seed: int = 0, **changes: object) -> BaichuanForCausalLM:
    """A random model whose norms are not all ones."""
    torch.manual_seed(seed)
    model = BaichuanForCausalLM(tiny_config(kind, **changes)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def slopes_by_formula(n: int) -> list[float]:
    if n & (n - 1) == 0:
        s = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [s**i for i in range(1, n + 1)]
    p = 1
    while 2 * p < n:
        p = 2 * p
    return slopes_by_formula(p) + [slopes_by_formula(2 * p)[i] for i in range(0, 2 * p, 2)][: n - p]


def logits_by_formula(weights: Mapping[str, Tensor], config: BaichuanConfig, ids: list[int]) -> Tensor:
    """T x V in float64."""
    w = {name: value.detach().double() for name, value in weights.items()}
    n, h = config.num_attention_heads, config.hidden_size
    d = h // n
    x = [w["model.embed_tokens.weight"][token] for token in ids]
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}."
        q, k, v = [], [], []
        for place, state in enumerate(x):
            normed = _rms(state, w[at + "input_layernorm.weight"], config.rms_norm_eps)
            packed = w[at + "self_attn.W_pack.weight"] @ normed
            heads = [[packed[part * h + j * d : part * h + (j + 1) * d] for j in range(n)] for part in range(3)]
            if config.position_embedding == "rope":
                heads[:2] = [[_turned(head, place) for head in part] for part in heads[:2]]
            for into, part in zip((q, k, v), heads, strict=True):
                into.append(part)
        x = [state + w[at + "self_attn.o_proj.weight"] @ _attended(q, k, v, t, config) for t, state in enumerate(x)]
        for t, state in enumerate(x):
            normed = _rms(state, w[at + "post_attention_layernorm.weight"], config.rms_norm_eps)
            gate, up = (w[f"{at}mlp.{name}_proj.weight"] @ normed for name in ("gate", "up"))
            x[t] = state + w[at + "mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
    rows = [row / max(_length(row), 1e-12) if config.norm_head else row for row in w["lm_head.weight"]]
    last = [_rms(state, w["model.norm.weight"], config.rms_norm_eps) for state in x]
    return torch.stack([torch.stack([row @ state for row in rows]) for state in last])


def _length(row: Tensor) -> float:
    return math.sqrt(sum(number**2 for number in row.tolist()))


def _rms(u: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * u / math.sqrt(sum(number**2 for number in u.tolist()) / len(u) + eps)


def _turned(u: Tensor, place: int) -> Tensor:
    half, turned = len(u) // 2, u.clone()
    for j in range(half):
        angle = place * 10000.0 ** (-2 * j / len(u))
        turned[j] = u[j] * math.cos(angle) - u[j + half] * math.sin(angle)
        turned[j + half] = u[j + half] * math.cos(angle) + u[j] * math.sin(angle)
    return turned


def _attended(q: list, k: list, v: list, t: int, config: BaichuanConfig) -> Tensor:
    slopes = slopes_by_formula(config.num_attention_heads)
    heads = []
    for j in range(config.num_attention_heads):
        scores = [float(q[t][j] @ k[s][j]) / math.sqrt(len(q[t][j])) for s in range(t + 1)]
        if config.position_embedding == "alibi":
            scores = [score + slopes[j] * s for s, score in enumerate(scores)]
        powers = [math.exp(score - max(scores)) for score in scores]
        heads.append(sum(power / sum(powers) * v[s][j] for s, power in enumerate(powers)))
    return torch.cat(heads)

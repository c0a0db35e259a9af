"""Both ChatGLM networks for one row of tokens, number by number in float64: what the ports must agree with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
Slots = list[tuple[Array, Array]]
"""For each layer keys and values of a prefix: heads x P x D."""


def numbers(model: nn.Module) -> dict[str, Array]:
    """The weights by their names."""
    return {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}


def randomised(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """The model in float64 with weights that matter: norms and biases too are not what they begin with."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model


def slopes(loss: Callable[[], Tensor], parameter: Tensor, *, places: Sequence[int], step: float = 1e-5) -> list[float]:
    """Central differences of a loss at some places of a parameter."""
    found, flat = [], parameter.data.view(-1)
    for place in places:
        before = float(flat[place])
        ends = []
        for end in (before + step, before - step):
            flat[place] = end
            ends.append(float(loss().detach()))
        flat[place] = before
        found.append((ends[0] - ends[1]) / (2 * step))
    return found


def answer_loss(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The mean negative log-probability of an answer in float64 (transformers' own loss is in float32)."""
    ids = torch.tensor([[*prompt, *answer]])
    log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    return -log_probs[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None]).mean()


def attend(
    queries: Array, keys: Array, values: Array, sees: Callable[[int, int], bool], slots: tuple[Array, Array] | None
) -> Array:
    """One head: softmax(q k / sqrt(d)) v over the keys that a query sees, prefix slots included."""
    out = np.zeros_like(queries)
    for k, query in enumerate(queries):
        shown = [] if slots is None else list(zip(slots[0], slots[1], strict=True))
        shown += [(keys[s], values[s]) for s in range(len(keys)) if sees(k, s)]
        scores = [float(query @ key) / math.sqrt(len(query)) for key, _ in shown]
        weights = [math.exp(score - max(scores)) for score in scores]
        out[k] = sum(w * value for w, (_, value) in zip(weights, shown, strict=True)) / sum(weights)
    return out


# -- ChatGLM-6B --------------------------------------------------------------------------------------------------------


def layer_norm(rows: Array, weight: Array, bias: Array, eps: float) -> Array:
    out = np.zeros_like(rows)
    for k, row in enumerate(rows):
        mean = sum(row) / len(row)
        variance = sum((u - mean) ** 2 for u in row) / len(row)
        out[k] = (row - mean) / math.sqrt(variance + eps) * weight + bias
    return out


def turn_halves(u: Array, position: int) -> Array:
    """u * cos + [-second half; first half] * sin, frequencies rounded to half precision."""
    r = len(u)
    out = np.zeros(r)
    for j in range(r // 2):
        angle = position * float(np.float16(10000.0 ** (-2 * j / r)))
        a, b = u[j], u[j + r // 2]
        out[j] = a * math.cos(angle) - b * math.sin(angle)
        out[j + r // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def chatglm_logits(w: Mapping[str, Array], ids: Sequence[int], *, heads: int, layers: int, **keys: int | bool) -> Array:
    """Logits of the first ChatGLM. `keys`: sop, gmask, mask, and two_d (position_encoding_2d)."""
    slots: Slots | None = keys.pop("slots", None)  # type: ignore[assignment]
    c = ids.index(int(keys["sop"]))
    m = ids.index(int(keys["gmask"])) if keys["gmask"] in ids else ids.index(int(keys["mask"]))
    x = w["transformer.word_embeddings.weight"][list(ids)]
    alpha, eps, d = math.sqrt(56), 1e-5, x.shape[1] // heads

    def turned(u: Array, k: int) -> Array:
        if keys["two_d"]:
            p1, p2 = (k, 0) if k < c else (m, k - c + 1)
            return np.concatenate([turn_halves(u[: d // 2], p1), turn_halves(u[d // 2 :], p2)])
        return turn_halves(u, m if k >= c and keys["gmask"] not in ids else k)

    for i in range(layers):

        def at(name: str, i: int = i) -> Array:
            return w[f"transformer.layers.{i}.{name}"]

        a = layer_norm(x, at("input_layernorm.weight"), at("input_layernorm.bias"), eps)
        fused = a @ at("attention.query_key_value.weight").T + at("attention.query_key_value.bias")
        seen = []
        for h in range(heads):
            own = fused[:, 3 * d * h : 3 * d * (h + 1)]
            q = np.array([turned(u, k) for k, u in enumerate(own[:, :d])])
            key = np.array([turned(u, k) for k, u in enumerate(own[:, d : 2 * d])])
            own_slots = None if slots is None else (slots[i][0][h], slots[i][1][h])
            seen.append(attend(q, key, own[:, 2 * d :], lambda k, s: s <= k or s < c, own_slots))
        y = alpha * a + np.concatenate(seen, axis=1) @ at("attention.dense.weight").T + at("attention.dense.bias")
        z = layer_norm(y, at("post_attention_layernorm.weight"), at("post_attention_layernorm.bias"), eps)
        u = z @ at("mlp.dense_h_to_4h.weight").T + at("mlp.dense_h_to_4h.bias")
        g = 0.5 * u * (1 + np.tanh(0.7978845608028654 * u * (1 + 0.044715 * u * u)))
        x = alpha * z + g @ at("mlp.dense_4h_to_h.weight").T + at("mlp.dense_4h_to_h.bias")
    x = layer_norm(x, w["transformer.final_layernorm.weight"], w["transformer.final_layernorm.bias"], eps)
    return np.asarray(x @ w["transformer.word_embeddings.weight"].T)


# -- ChatGLM2-6B and ChatGLM3-6B ---------------------------------------------------------------------------------------


def rms_norm(rows: Array, weight: Array, eps: float) -> Array:
    return np.array([weight * row / math.sqrt(sum(u * u for u in row) / len(row) + eps) for row in rows])


def turn_pairs(u: Array, position: float, base: float) -> Array:
    out, rotated = u.copy(), len(u) // 2
    for j in range(rotated // 2):
        angle = position * base ** (-2 * j / rotated)
        a, b = u[2 * j], u[2 * j + 1]
        out[2 * j] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * j + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def chatglm2_logits(
    w: Mapping[str, Array],
    ids: Sequence[int],
    *,
    heads: int,
    groups: int,
    size: int,
    layers: int,
    slots: Slots | None = None,
    divide: float = 1.0,
    base: float = 10000.0,
) -> Array:
    """Logits of ChatGLM2 and 3, positions divided by `divide`."""
    x, eps = w["transformer.embedding.word_embeddings.weight"][list(ids)], 1e-5
    for i in range(layers):

        def at(name: str, i: int = i) -> Array:
            return w[f"transformer.encoder.layers.{i}.{name}"]

        a = rms_norm(x, at("input_layernorm.weight"), eps)
        fused = a @ at("self_attention.query_key_value.weight").T + at("self_attention.query_key_value.bias")
        seen = []
        for h in range(heads):
            group = h // (heads // groups)
            starts = (h, heads + group, heads + groups + group)
            q, key, value = (fused[:, size * start : size * (start + 1)] for start in starts)
            q, key = (np.array([turn_pairs(u, k / divide, base) for k, u in enumerate(rows)]) for rows in (q, key))
            own_slots = None if slots is None else (slots[i][0][group], slots[i][1][group])
            seen.append(attend(q, key, value, lambda k, s: s <= k, own_slots))
        y = x + np.concatenate(seen, axis=1) @ at("self_attention.dense.weight").T
        u = rms_norm(y, at("post_attention_layernorm.weight"), eps) @ at("mlp.dense_h_to_4h.weight").T
        gate, up = u[:, : u.shape[1] // 2], u[:, u.shape[1] // 2 :]
        x = y + (gate / (1 + np.exp(-gate)) * up) @ at("mlp.dense_4h_to_h.weight").T
    x = rms_norm(x, w["transformer.encoder.final_layernorm.weight"], eps)
    return np.asarray(x @ w["transformer.output_layer.weight"].T)

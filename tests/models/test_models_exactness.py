"""Packed = padded = one sequence at a time, and lean layers = transformers' and PEFT's: losses and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as AutoModel
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.mistral.modeling_mistral import MistralAttention as mistral_attention

from duiqi.models import lean
from duiqi.models.adapters import LoRASpec
from duiqi.models.attention_kernels import _CUDA
from duiqi.models.layout import Layout
from duiqi.models.measure import measure_answers, measure_scores, measure_values
from duiqi.models.shared_base import SharedBase
from duiqi.models.tree_attention import Plan, masked_attention, tree_attention
from duiqi.packing.batch import Family, PackedBatch, pack
from duiqi.packing.runs import Runs
from duiqi.packing.tree import SegmentTree

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.15}

GPT2_SMALL = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.15}

PACKED: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**LLAMA_LIKE),
    "qwen2": lambda: Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "mistral, window longer than the rows": lambda: MistralConfig(**LLAMA_LIKE, sliding_window=64),
    "mistral, window shorter than the rows": lambda: MistralConfig(**LLAMA_LIKE, sliding_window=6),
    "gpt2": lambda: GPT2Config(**GPT2_SMALL),
}
PADDED: dict[str, Callable[[], PreTrainedConfig]] = {
    "bloom": lambda: BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.15),
}
FAMILIES = [
    Family((5, 6, 7, 8, 9), [(10, 11, 12), (13, 14, 15, 16, 17, 18, 2), (19, 2)]),
    Family((), [tuple(range(20, 40))], [(False,) * 4 + (True,) * 16]),
    Family((41, 42), [(43, 44, 45, 2), (46, 2)]),
    Family((), [(50, 51, 52)]),
]


def model_of(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(config).to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)  # a bias of zero would hide a forgotten one
    return model


def seated(model: PreTrainedModel) -> SharedBase:
    """A base with a policy whose adapter does something, and a reward head."""
    base = SharedBase(model, name="tiny")
    base.seat_new_adapter("policy", LoRASpec(rank=4))
    generator = torch.Generator().manual_seed(1)
    for parameter in base.role_parameters("policy").values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    base.add_head("reward", torch.randn(1, base.hidden_size, generator=generator))
    base.rest_on("policy")
    base.disable_dropout()
    base.prepare_training(gradient_checkpointing=False)
    return base


Measured = tuple[Tensor, Tensor, dict[str, Tensor]]


def losses_and_gradients(base: SharedBase, batches: list[PackedBatch]) -> Measured:
    """Log-probabilities, scores, and the gradient of a loss of both, summed over batches."""
    parameters = base.trainable_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    log_probs, scores = [], []
    for batch in batches:
        found = measure_answers(base, batch).log_probs
        said = measure_scores(base, batch, "reward")
        (found * torch.linspace(0.5, 1.5, 97)[batch.targets]).sum().add((said**2).sum()).backward()
        log_probs.append(found.detach())
        scores.append(said.detach())
    return (
        torch.cat(log_probs),
        torch.cat(scores),
        {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None},
    )


def assert_same(
    found: tuple[Tensor, Tensor, dict[str, Tensor]], expected: tuple[Tensor, Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in found[2].items():
        gap = (gradient - expected[2][name]).norm() / expected[2][name].norm().clamp(min=1e-6)
        assert gap < 1e-4, f"{name}: {float(gap):.1e}"


def apart(families: list[Family]) -> list[PackedBatch]:
    """Every sequence in a batch of its own, its prompt with it."""
    batches = []
    for family in families:
        for i, answer in enumerate(family.answers):
            learned = family.learned[i] if family.learned is not None else [True] * len(answer)
            mask = [False] * len(family.prompt) + list(learned)
            batches.append(pack([Family((), [(*family.prompt, *answer)], [mask])]))
    return batches


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_with_shared_prompts_equal_padded_rows_and_sequences_apart(name: str) -> None:
    base = seated(model_of(PACKED[name]()))
    assert base.layout.is_packed, base.layout
    together = losses_and_gradients(base, [pack(FAMILIES)])
    split = losses_and_gradients(base, [pack(FAMILIES[:2]), pack(FAMILIES[2:])])
    base.layout = Layout(is_packed=False, is_lean=base.layout.is_lean)
    padded = losses_and_gradients(base, [pack(FAMILIES)])
    one_by_one = losses_and_gradients(base, apart(FAMILIES))
    assert_same(together, one_by_one)
    assert_same(split, one_by_one)
    assert_same(padded, one_by_one)


@pytest.mark.parametrize("name", [name for name in PACKED if name != "gpt2"])
def test_lean_layers_equal_those_of_transformers_and_peft(name: str) -> None:
    base = seated(model_of(PACKED[name]()))
    assert base.layout.is_lean, base.layout
    ours = losses_and_gradients(base, [pack(FAMILIES)])
    lean.restore(lean.llama_shaped_layers(base.model))
    theirs = losses_and_gradients(base, [pack(FAMILIES)])
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_a_copy_that_learns_reads_as_its_source_and_every_weight_of_it_has_a_gradient(name: str) -> None:
    base = seated(model_of({**PACKED, **PADDED}[name]()))
    base.seat_learning_copy("value", "policy")
    base.disable_dropout()
    head = base.add_head("value", base.heads["reward"].weight)
    batch = pack(FAMILIES)
    expected = head(base.read(batch))
    with base.role("value"):
        found = measure_values(base, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    copied = {n: p for n, p in base.trainable_parameters().items() if n.startswith("value.")}
    assert copied
    assert [n for n, p in copied.items() if p.grad is None] == []


@pytest.mark.parametrize("name", PADDED)
def test_an_architecture_that_cannot_be_packed_is_computed_in_padded_rows_and_says_so(name: str) -> None:
    base = seated(model_of(PADDED[name]()))
    assert not base.layout.is_packed
    assert str(base.layout).startswith("padded rows (eager attention")
    assert_same(losses_and_gradients(base, [pack(FAMILIES)]), losses_and_gradients(base, apart(FAMILIES)))


def test_an_architecture_that_cannot_compute_packed_rows_rightly_is_never_packed() -> None:
    """OPT takes its positions from the mask: whichever way is chosen must equal one sequence at a time."""
    config = OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128, init_std=0.15)
    base = seated(model_of(config))
    assert_same(losses_and_gradients(base, [pack(FAMILIES)]), losses_and_gradients(base, apart(FAMILIES)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_recomputed_activations_change_nothing(name: str) -> None:
    base = seated(model_of(PACKED[name]()))
    plain = losses_and_gradients(base, [pack(FAMILIES)])
    base.enable_checkpointing()
    base.model.train()
    assert_same(losses_and_gradients(base, [pack(FAMILIES)]), plain)


def test_in_half_precision_the_lean_layers_are_as_near_to_the_truth_as_transformers() -> None:
    exact = losses_and_gradients(seated(model_of(PACKED["qwen2"]())), [pack(FAMILIES)])
    base = seated(model_of(PACKED["qwen2"](), torch.bfloat16))
    ours = losses_and_gradients(base, [pack(FAMILIES)])
    lean.restore(lean.llama_shaped_layers(base.model))
    theirs = losses_and_gradients(base, [pack(FAMILIES)])

    def error(found: Measured) -> float:
        gaps = [(found[2][n] - g).norm() / g.norm() for n, g in exact[2].items()]
        return float(torch.stack(gaps).mean())

    assert error(ours) < 1.25 * error(theirs)


def test_lean_layers_remember_a_third_less() -> None:
    base = seated(model_of(LlamaConfig(**{**LLAMA_LIKE, "hidden_size": 64, "intermediate_size": 172})))
    own = {p.untyped_storage().data_ptr() for p in base.model.parameters()}

    def remembered() -> int:
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = base.read(pack(FAMILIES))
        assert hidden.requires_grad
        return sum(kept.values())

    ours = remembered()
    lean.restore(lean.llama_shaped_layers(base.model))
    assert ours < 0.67 * remembered()


def test_a_copy_of_the_base_computes_with_its_own_layers() -> None:
    base = seated(model_of(PACKED["llama"]()))
    twin = copy.deepcopy(base.model)
    before = base.read(pack(FAMILIES)).detach()
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(base.read(pack(FAMILIES)).detach(), before)
    for ours, theirs in zip(lean.llama_shaped_layers(base.model), lean.llama_shaped_layers(twin), strict=True):
        assert ours.forward.__self__ is ours
        assert theirs.forward.__self__ is theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_tree_attention_equals_masked_attention(dtype: torch.dtype, key_heads: int) -> None:
    """Deep trees, long segments, short ones of many lengths, and heads that share keys."""
    tree = SegmentTree.of([5, 3, 2, 4, 400, 7, 7, 9, 6], [None, 0, 1, 0, None, None, 5, 6, 5])
    generator = torch.Generator().manual_seed(0)

    def states(heads: int) -> Tensor:
        made = torch.randn(1, tree.num_tokens, heads, 16, generator=generator).to(dtype)
        return made.transpose(1, 2).requires_grad_()

    given = states(4), states(key_heads), states(key_heads)
    found = tree_attention(*given, Plan.of(tree, device=torch.device("cpu"), dtype=dtype), scale=0.3)
    expected = masked_attention(*given, tree, scale=0.3)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found, expected, **tolerance)
    gradient = torch.randn(found.shape, generator=generator).to(dtype)
    ours = torch.autograd.grad(found, given, gradient)
    theirs = torch.autograd.grad(expected, given, gradient)
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [[2, 9, 10, 40, 41, 42, 300, 413, 414, 420, 437], [0], [442], [*range(5, 440)]])
def test_attention_of_some_tokens_is_that_of_all_at_these(dtype: torch.dtype, places: list[int]) -> None:
    tree = SegmentTree.of([5, 3, 2, 4, 400, 7, 7, 9, 6], [None, 0, 1, 0, None, None, 5, 6, 5])
    asked, generator = Runs.of(places), torch.Generator().manual_seed(0)
    plan = Plan.of(tree, device=torch.device("cpu"), dtype=dtype, asked=asked)
    assert plan.places is not None
    assert plan.places.tolist() == sorted(places)

    def states(heads: int) -> Tensor:
        return torch.randn(tree.num_tokens, heads, 16, generator=generator).to(dtype).requires_grad_()

    q, k, v = states(4), states(2), states(2)
    found, lse = plan.attend(q[plan.places], k, v, 0.3)
    heads_first = (each.transpose(0, 1).unsqueeze(0) for each in (q, k, v))
    expected = masked_attention(*heads_first, tree, scale=0.3)[0].transpose(0, 1)[plan.places]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found, expected, **tolerance)
    gradient = torch.randn(found.shape, generator=generator).to(dtype)
    theirs = torch.autograd.grad(expected, (q, k, v), gradient)
    given = (each.detach().to(plan.backward_dtype(dtype)) for each in (q[plan.places], k, v, found))
    ours = tuple(torch.full(each.shape, torch.nan) for each in (q[plan.places], k, v))
    plan.attend_backward(*given, lse.detach(), gradient.float(), 0.3, ours)
    torch.testing.assert_close(ours, (theirs[0][plan.places], *theirs[1:]), check_dtype=False, **tolerance)


@pytest.mark.parametrize("places", [[2, 9, 10, 40, 41, 42], [0], [46], [*range(47)]])
def test_the_parts_of_the_kernel_for_gpus_show_every_asked_token_what_it_sees(places: list[int]) -> None:
    """The kernel itself needs a GPU; who is computed with whom does not."""
    tree, asked = SegmentTree.of([5, 3, 2, 4, 11, 7, 9, 6], [None, 0, 1, 0, None, None, 5, 5]), Runs.of(places)
    plan_tree = tree.cut([bound for span in asked.spans for bound in span])
    kernel, seen = _CUDA(torch.device("cpu")), torch.zeros(len(places), tree.num_tokens)
    queries, keys = torch.arange(len(places)), torch.arange(tree.num_tokens)
    for part in (*kernel.own(plan_tree, asked), *kernel.shared(plan_tree, asked)):
        assert part.bounds is not None
        query_bounds, key_bounds, longest_queries, longest_keys = part.bounds
        spans = [bounds.diff().tolist() for bounds in (query_bounds, key_bounds)]
        assert [max(lengths) for lengths in spans] == [longest_queries, longest_keys]
        own_queries, own_keys = part.queries_of(queries).split(spans[0]), part.keys_of(keys).split(spans[1])
        for some, others in zip(own_queries, own_keys, strict=True):
            pairs = torch.ones(len(some), len(others))
            seen[some[:, None], others] += pairs.tril() if part.is_causal else pairs
    wanted = torch.block_diag(*(tree.visible(root).float() for root in tree.roots))[places]
    assert torch.equal(seen, wanted), "once each"


@pytest.mark.parametrize("family", [Family((), [(5,)]), Family((1, 2), [(3,)], [(False,)])])
def test_where_nothing_is_learned_nothing_is_read(family: Family) -> None:
    base = seated(model_of(PACKED["llama"]()))
    assert base.read(pack([family])).shape == (0, base.hidden_size)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_the_last_layer_is_computed_where_it_is_read(
    name: str, ends: bool, recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, batch = seated(model_of(PACKED[name]())), pack(FAMILIES)
    base.prepare_training(gradient_checkpointing=recomputes)
    widths: list[int] = []
    norm = base.model.get_decoder().norm if base.layout.is_lean else torch.nn.Identity()
    norm.register_forward_hook(lambda _module, given, _found: widths.append(given[0].shape[1]))

    def read() -> tuple[Tensor, dict[str, Tensor]]:
        with base.training_mode(), base.role("policy"):
            states = base.read_ends(batch) if ends else base.read(batch)
            parameters = base.role_parameters("policy")
            for parameter in parameters.values():
                parameter.grad = None
            states.tanh().square().sum().backward()
        return states.detach(), {n: p.grad for n, p in parameters.items() if p.grad is not None}

    found, gradients = read()
    if base.layout.is_lean:
        runs = batch.ending if ends else batch.predicting
        assert widths == [runs.num_tokens] < [batch.num_tokens]
    monkeypatch.setattr("duiqi.models.shared_base.ASKED_SHARE", 0.0)
    expected, wanted = read()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    assert gradients
    for key, gradient in gradients.items():
        gap = (gradient - wanted[key]).norm() / wanted[key].norm().clamp(min=1e-6)
        assert gap < 1e-4, f"{key}: {float(gap):.1e}"


def test_a_sliding_window_that_the_attention_is_not_told_of_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are tried are shorter than any real window, so what counts is whether the layer passes it on."""
    attend = mistral_attention.forward
    monkeypatch.setattr(mistral_attention, "forward", lambda self, *a, **k: attend(_without_window(self), *a, **k))
    base = SharedBase(model_of(PACKED["mistral, window longer than the rows"]()), name="tiny")
    assert "keeps its sliding window to itself" in str(base.layout)


def _without_window(layer: torch.nn.Module) -> torch.nn.Module:
    blind = copy.copy(layer)
    blind.config = copy.copy(layer.config)
    blind.config.sliding_window = None
    return blind


def test_a_base_with_attention_dropout_learns_on_packed_rows_too() -> None:
    base = SharedBase(model_of(GPT2Config(**GPT2_SMALL, attn_pdrop=0.5)), name="tiny")
    base.seat_new_adapter("policy", LoRASpec(rank=4))
    base.rest_on("policy")
    still = base.read(pack(FAMILIES))
    base.prepare_training(gradient_checkpointing=False)
    torch.manual_seed(0)
    assert not torch.allclose(base.read(pack(FAMILIES)), still)


def with_critic(model: PreTrainedModel) -> SharedBase:
    """`seated`, and a critic with an adapter of another rank on fewer layers, which does something else."""
    base = seated(model)
    target = "q_proj,down_proj" if base.layout.is_lean else "c_fc"
    base.seat_new_adapter("value", LoRASpec(rank=3, target=target))
    generator = torch.Generator().manual_seed(2)
    for parameter in base.role_parameters("value").values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    base.seat_bare("reference")
    base.disable_dropout()
    return base


@pytest.mark.parametrize("name", PACKED)
def test_roles_read_together_read_what_they_read_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = with_critic(model_of(PACKED[name]()))
    batches = {"policy": pack(FAMILIES), "reference": pack(FAMILIES[1:3]), "value": pack(FAMILIES[:2])}

    def read(*, together: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        with monkeypatch.context() as patch:
            if not together:
                patch.setattr(base, "_together", lambda _: None)
            states = list(base.read_each(batches).values())
        parameters = base.trainable_parameters()
        for parameter in parameters.values():
            parameter.grad = None
        torch.stack([state.tanh().square().sum() for state in states]).sum().backward()
        return [state.detach() for state in states], {n: p.grad for n, p in parameters.items() if p.grad is not None}

    states, gradients = read(together=True)
    expected_states, expected = read(together=False)
    for found, wanted in zip(states, expected_states, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        gap = (gradient - expected[key]).norm() / expected[key].norm().clamp(min=1e-6)
        assert gap < 1e-4, f"{key}: {float(gap):.1e}"


@pytest.mark.parametrize(
    ("name", "is_one_pass"),
    [("llama", True), ("qwen3", True), ("mistral, window shorter than the rows", False), ("gpt2", False)],
)
def test_roles_share_a_pass_where_the_layers_can_tell_them_apart(
    name: str, is_one_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = with_critic(model_of(PACKED[name]()))
    passes = []
    trunk = base.trunk
    monkeypatch.setattr(base, "trunk", lambda ids, **given: passes.append(ids.shape) or trunk(ids, **given))
    base.read_each({"policy": pack(FAMILIES), "value": pack(FAMILIES)})
    assert len(passes) == (1 if is_one_pass else 2)

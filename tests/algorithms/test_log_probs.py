"""Log-probabilities and entropies, whole and in chunks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from duiqi.algorithms.log_probs import NEVER, Ban, OutputHead, head_log_probs, token_entropy, token_log_probs

NUM_POSITIONS, HIDDEN, VOCABULARY = 7, 4, 11


@pytest.fixture
def head() -> OutputHead:
    torch.manual_seed(0)
    layer = nn.Linear(HIDDEN, VOCABULARY)
    return OutputHead(layer.weight, layer.bias)


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(NUM_POSITIONS, HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(VOCABULARY, (NUM_POSITIONS,), generator=torch.Generator().manual_seed(2))


def test_log_probs_and_entropy_are_those_of_torch_distributions() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = torch.distributions.Categorical(logits=logits / 0.7)
    torch.testing.assert_close(token_log_probs(logits, targets, temperature=0.7), expected.log_prob(targets))
    torch.testing.assert_close(token_entropy(logits, temperature=0.7), expected.entropy())


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.zeros(1, 3, dtype=torch.bfloat16)
    found = token_log_probs(logits, torch.tensor([1]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-1.0986123, abs=1e-6)


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    assert token_log_probs(logits, torch.tensor([1, 0])).tolist() == [-1e4, -1e4]
    assert token_entropy(logits).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("impossible", [-torch.inf, -1e30])
def test_a_token_that_cannot_be_drawn_leaves_entropy_and_gradient_finite(impossible: float) -> None:
    logits = torch.tensor([[1.0, 1.0, impossible]], requires_grad=True)
    entropy = token_entropy(logits)
    entropy.sum().backward()
    assert entropy.tolist() == pytest.approx([0.6931472], abs=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def plainly(states: Tensor, targets: Tensor, head: OutputHead, temperature: float, ban: Ban | None) -> Tensor:
    """The same by torch's own distribution over all logits at once."""
    logits = (states @ head.weight.t() + head.bias) * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    if ban is not None:
        hidden = torch.zeros_like(logits, dtype=torch.bool)
        hidden[:, ban.token_ids] = True
        logits = logits.masked_fill(hidden & ban.positions.unsqueeze(1), NEVER)
    return torch.distributions.Categorical(logits=logits / temperature).log_prob(targets)


@pytest.mark.parametrize("chunk_size", [1, 3, 100, None])
@pytest.mark.parametrize(("scale", "soft_cap"), [(1.0, None), (0.3, None), (1.0, 1.5)])
@pytest.mark.parametrize("banned", [False, True])
def test_the_frozen_head_gives_values_and_gradients_in_one_pass(
    chunk_size: int | None, scale: float, soft_cap: float | None, banned: bool, hidden: Tensor, targets: Tensor
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(VOCABULARY, HIDDEN, generator=generator), torch.randn(VOCABULARY, generator=generator)
    head = OutputHead(weight, bias, scale=scale, soft_cap=soft_cap)
    forbidden = torch.tensor([token for token in range(VOCABULARY) if token not in targets.tolist()][:2])
    ban = Ban(torch.arange(NUM_POSITIONS) % 2 == 0, forbidden) if banned else None
    found = hidden.clone().requires_grad_()
    expected = hidden.clone().requires_grad_()
    ours = head_log_probs(found, targets, head, temperature=0.8, ban=ban, chunk_size=chunk_size).log_probs
    theirs = plainly(expected, targets, head, 0.8, ban)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(NUM_POSITIONS) - 2.0
    torch.testing.assert_close(
        torch.autograd.grad((ours * weights).sum(), found), torch.autograd.grad((theirs * weights).sum(), expected)
    )


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_a_head_that_learns_has_its_gradients_whatever_the_chunk(
    chunk_size: int, head: OutputHead, hidden: Tensor, targets: Tensor
) -> None:
    def gradients(measure: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
        states = hidden.clone().requires_grad_()
        log_probs, entropy = measure(states)
        total = (log_probs * torch.arange(NUM_POSITIONS)).sum() + 0.3 * entropy.sum()
        assert head.bias is not None
        return [log_probs, entropy, *torch.autograd.grad(total, [states, head.weight, head.bias])]

    def in_chunks(states: Tensor) -> tuple[Tensor, Tensor]:
        found = head_log_probs(states, targets, head, temperature=0.8, chunk_size=chunk_size, with_entropy=True)
        assert found.entropy is not None
        return found.log_probs, found.entropy

    def at_once(states: Tensor) -> tuple[Tensor, Tensor]:
        distribution = torch.distributions.Categorical(logits=head(states) / 0.8)
        return distribution.log_prob(targets), distribution.entropy()

    for found, expected in zip(gradients(in_chunks), gradients(at_once), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_no_logits_wait_for_the_backward_pass(
    with_entropy: bool, head: OutputHead, hidden: Tensor, targets: Tensor
) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        head_log_probs(hidden.requires_grad_(), targets, head, chunk_size=2, with_entropy=with_entropy)
    assert all(tensor.shape[-1:] != (VOCABULARY,) for tensor in kept)


def test_entropy_is_left_out_unless_asked_for(head: OutputHead, hidden: Tensor, targets: Tensor) -> None:
    assert head_log_probs(hidden, targets, head).entropy is None


@pytest.mark.parametrize("with_entropy", [False, True])
def test_no_positions_give_no_log_probs(head: OutputHead, with_entropy: bool) -> None:
    nothing = torch.zeros(0, HIDDEN), torch.zeros(0, dtype=torch.long)
    assert head_log_probs(*nothing, head, with_entropy=with_entropy).log_probs.shape == (0,)

"""Log-probabilities and entropies, whole and in chunks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from duiqi.algorithms.log_probs import chunked_log_probs, token_entropy, token_log_probs

NUM_POSITIONS, HIDDEN, VOCABULARY = 7, 4, 11


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(HIDDEN, VOCABULARY)


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


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_change_neither_values_nor_gradients(
    chunk_size: int, head: nn.Linear, hidden: Tensor, targets: Tensor
) -> None:
    def gradients(measure: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
        states = hidden.clone().requires_grad_()
        log_probs, entropy = measure(states)
        total = (log_probs * torch.arange(NUM_POSITIONS)).sum() + 0.3 * entropy.sum()
        return [log_probs, entropy, *torch.autograd.grad(total, [states, head.weight, head.bias])]

    def in_chunks(states: Tensor) -> tuple[Tensor, Tensor]:
        found = chunked_log_probs(states, targets, head, temperature=0.8, chunk_size=chunk_size, with_entropy=True)
        assert found.entropy is not None
        return found.log_probs, found.entropy

    def plainly(states: Tensor) -> tuple[Tensor, Tensor]:
        distribution = torch.distributions.Categorical(logits=head(states) / 0.8)
        return distribution.log_prob(targets), distribution.entropy()

    for found, expected in zip(gradients(in_chunks), gradients(plainly), strict=True):
        torch.testing.assert_close(found, expected)


def test_no_more_than_a_chunk_is_projected_at_once(head: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    projected: list[int] = []

    def project(states: Tensor) -> Tensor:
        projected.append(len(states))
        return torch.as_tensor(head(states))

    chunked_log_probs(hidden.requires_grad_(), targets, project, chunk_size=3).log_probs.sum().backward()
    assert projected[:3] == [3, 3, 1]
    assert sorted(projected[3:]) == [1, 3, 3], "each chunk again in the backward pass"


def test_no_logits_wait_for_the_backward_pass(head: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chunked_log_probs(hidden.requires_grad_(), targets, head, chunk_size=2, with_entropy=True)
    assert all(tensor.shape[-1:] != (VOCABULARY,) for tensor in kept)


def test_entropy_is_left_out_unless_asked_for(head: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    assert chunked_log_probs(hidden, targets, head).entropy is None


def test_no_positions_give_no_log_probs(head: nn.Linear) -> None:
    found = chunked_log_probs(torch.zeros(0, HIDDEN), torch.zeros(0, dtype=torch.long), head, with_entropy=True)
    assert found.log_probs.shape == (0,)
    assert found.entropy is not None
    assert found.entropy.shape == (0,)

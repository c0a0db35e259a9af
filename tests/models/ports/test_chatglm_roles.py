"""Both ChatGLM networks as a shared base: how batches are read, answers drawn, and adapters trained on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.ports import test_chatglm, test_chatglm2
from transformers import PreTrainedModel

from duiqi.models.adapters import LoRASpec, adapter_config
from duiqi.models.layout import trunk_of
from duiqi.models.measure import measure_answers
from duiqi.models.ports.chatglm import ChatGLMForConditionalGeneration
from duiqi.models.ports.chatglm2 import ChatGLM2ForConditionalGeneration
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family, pack
from duiqi.rollouts.decoder import Decoder
from duiqi.types import Sampling

Model = ChatGLMForConditionalGeneration | ChatGLM2ForConditionalGeneration
MODELS: dict[str, Callable[[], Model]] = {
    "chatglm": lambda: test_chatglm.model_of().float(),
    "chatglm2": lambda: test_chatglm2.model_of().float(),
}
PROMPTS = {
    "chatglm": (test_chatglm.PROMPT, test_chatglm.SHORT),
    "chatglm2": (test_chatglm2.PROMPT, test_chatglm2.SHORT),
}
ANSWERS = ([12, 13, 14, 15], [20, 21], [30])


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Model:
    return MODELS[name]()


def batch_of(name: str) -> list[Family]:
    first, second = PROMPTS[name]
    return [Family(first, ANSWERS[:2]), Family(second, ANSWERS[2:])]


def sequences_of(name: str) -> list[list[int]]:
    first, second = PROMPTS[name]
    return [[*first, *ANSWERS[0]], [*first, *ANSWERS[1]], [*second, *ANSWERS[2]]]


def test_the_first_is_computed_in_padded_rows_and_the_second_in_packed_ones(name: str, model: Model) -> None:
    base = SharedBase(model, name="tiny")
    assert base.layout.is_packed == (name == "chatglm2"), base.layout.reason
    if name == "chatglm":
        assert str(base.layout).endswith("a prompt sees itself in both directions)")
    assert not base.layout.is_lean


def test_a_batch_is_read_as_its_sequences_alone(name: str, model: Model) -> None:
    base = SharedBase(model, name="tiny")
    base.seat_bare("policy")
    with base.acting("policy"):
        ends, before = base.read_ends(pack(batch_of(name))), base.read(pack(batch_of(name)))
        alone = [trunk_of(model)(torch.tensor([ids])).last_hidden_state[0] for ids in sequences_of(name)]
    torch.testing.assert_close(ends, torch.stack([states[-1] for states in alone]), atol=1e-4, rtol=1e-4)
    expected = [states[-len(answer) - 1 : -1] for states, answer in zip(alone, ANSWERS, strict=True)]
    torch.testing.assert_close(before, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_answers_are_drawn_as_without_cache_and_padding(name: str, model: Model) -> None:
    base = SharedBase(model, name="tiny")
    base.seat_bare("policy")
    decoder = Decoder(base, decode=str, stop_token_ids=[2], pad_token_id=0, active=lambda: base.acting("policy"))
    long, short = PROMPTS[name]
    rollouts = decoder.generate([long, short, long], Sampling(max_new_tokens=6, temperature=0.0))
    for prompt, rollout in zip([long, short, long], rollouts, strict=True):
        ids = list(prompt)
        for token in rollout.answer_ids:
            assert token == int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            ids.append(token)


def test_every_linear_layer_but_the_head_can_carry_an_adapter(model: PreTrainedModel) -> None:
    names = adapter_config(LoRASpec(), model).target_modules
    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


@pytest.mark.parametrize("checkpoints", [False, True])
def test_an_adapter_learns_and_the_base_does_not(name: str, model: Model, checkpoints: bool) -> None:
    base = SharedBase(model, name="tiny")
    frozen = {key: weight.clone() for key, weight in model.state_dict().items()}
    base.seat_new_adapter("policy", LoRASpec(rank=2))
    base.rest_on("policy")
    base.prepare_training(gradient_checkpointing=checkpoints)
    parameters = base.trainable_parameters()
    assert len(parameters) == 2 * 4 * test_chatglm.LAYERS
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    batch, losses = pack(batch_of(name)), []
    for _ in range(8):
        with base.role("policy"):
            log_probs = measure_answers(base, batch).log_probs
        losses.append(-float(log_probs.mean().detach()))
        optimizer.zero_grad()
        (-log_probs.mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    now = {key.replace(".base_layer.", "."): weight for key, weight in model.state_dict().items() if "lora_" not in key}
    assert all(torch.equal(now[key], weight) for key, weight in frozen.items())


def test_a_critic_of_its_own_needs_no_output_head(name: str, model: Model) -> None:
    base = SharedBase(model, name="tiny")
    base.seat_bare("reward")
    base.seat_learning_copy("value", "reward")
    base.add_head("value")
    with base.role("value"):
        values = base.values(base.read(pack(batch_of(name))))
    assert values is not None
    (values - 1).square().mean().backward()
    assert base.heads["value"].weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_padding_or_not(name: str, model: Model, dtype: torch.dtype) -> None:
    long, short = PROMPTS[name]
    ids = torch.tensor([long, [0] * (len(long) - len(short)) + list(short)])
    mask = torch.tensor([[1] * len(long), [0] * (len(long) - len(short)) + [1] * len(short)])
    expected = model(ids, attention_mask=mask).logits
    found = model.to(dtype)(ids, attention_mask=mask).logits
    assert found.dtype == dtype
    assert found.isfinite().all()
    gap = (found.float() - expected)[mask.bool()].norm() / expected[mask.bool()].norm()
    assert gap < 0.05


def test_the_vocabulary_can_grow(model: Model, tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    model.resize_token_embeddings(67, mean_resizing=False)
    assert model.config.vocab_size == 67
    torch.testing.assert_close(model(ids).logits[..., :60], before)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_hidden_states_are_those_between_the_layers_and_the_last_after_the_norm(model: Model) -> None:
    ids = torch.tensor([[5, 6, 7]])
    output = model(ids, output_hidden_states=True)
    assert len(output.hidden_states) == test_chatglm.LAYERS + 1
    torch.testing.assert_close(output.hidden_states[0], model.get_input_embeddings()(ids))
    torch.testing.assert_close(output.hidden_states[-1], trunk_of(model)(ids).last_hidden_state)
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, output.logits[:, -1:])

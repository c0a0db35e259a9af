"""ChatGLM-6B: against an independent computation, and what must hold whatever the weights are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tests.models.ports.chatglm_oracle import answer_loss, chatglm_logits, numbers, randomised, slopes
from torch import Tensor

from duiqi.models.ports.chatglm import (
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    RotatedPositions,
    prompt_and_positions,
)
from duiqi.models.ports.chatglm_prefix import Seen

PAD, MASK, GMASK, SOP, EOP = 3, 50, 51, 54, 53
LAYERS, HEADS, WIDTH = 2, 2, 16
SHAPE = {"heads": HEADS, "layers": LAYERS, "sop": SOP, "gmask": GMASK, "mask": MASK}
PROMPT, ANSWER = [5, 7, 9, 11, GMASK, SOP], [12, 13, 14, EOP]
SHORT, REPLY = [8, 6, GMASK, SOP], [20, EOP]


def config_of(**changes: Any) -> ChatGLMConfig:
    return ChatGLMConfig(
        **{
            "vocab_size": 60,
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_attention_heads": HEADS,
            "inner_hidden_size": 24,
            "bos_token_id": SOP,
            "eos_token_id": EOP,
            "pad_token_id": PAD,
            "mask_token_id": MASK,
            "gmask_token_id": GMASK,
            **changes,
        }
    )


def model_of(**changes: Any) -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    model = randomised(ChatGLMForConditionalGeneration(config_of(**changes)))
    assert isinstance(model, ChatGLMForConditionalGeneration)
    return model


def row(ids: list[int]) -> Tensor:
    return torch.tensor([ids])


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    left = side == "left"
    ids = [[PAD] * (width - len(r)) * left + r + [PAD] * (width - len(r)) * (not left) for r in rows]
    mask = [[0] * (width - len(r)) * left + [1] * len(r) + [0] * (width - len(r)) * (not left) for r in rows]
    return torch.tensor(ids), torch.tensor(mask)


# -- against the formulas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two_d", [True, False])
@pytest.mark.parametrize(
    "ids",
    [
        PROMPT + ANSWER,
        [5, 7, MASK, 11, SOP, *ANSWER],
        [5, GMASK, 9, SOP, 12, GMASK, 14, SOP, 15],
        [GMASK, SOP, 4],
        [5, MASK, 9, GMASK, 11, SOP, *ANSWER],
    ],
    ids=["gmask", "mask", "what comes later is answer", "no text", "both: gmask counts"],
)
def test_logits_are_those_of_the_formulas(ids: list[int], two_d: bool) -> None:
    model = model_of(position_encoding_2d=two_d)
    expected = torch.from_numpy(chatglm_logits(numbers(model), ids, two_d=two_d, **SHAPE))
    torch.testing.assert_close(model(row(ids)).logits[0], expected, atol=1e-5, rtol=1e-5)


def test_rotary_frequencies_keep_the_rounding_to_half_precision() -> None:
    size, position = 128, 2000
    rotated = RotatedPositions(torch.tensor([[[position], [position]]]), head_size=size)
    exact = [10000.0 ** (-2 * j / 64) for j in range(32)]
    rounded = torch.tensor([math.cos(position * float(np.float16(f))) for f in exact])
    for share in range(2):
        torch.testing.assert_close(rotated.cos[0, 0, 0, share], rounded, atol=1e-3, rtol=0)
    assert (rounded - torch.tensor([math.cos(position * f) for f in exact])).abs().max() > 0.1


def test_positions_of_a_row_worked_out_by_hand() -> None:
    #                  pad pad  X  X  gM sop  Y  Y
    ids = torch.tensor([[3, 3, 5, 7, GMASK, SOP, 12, 13]])
    in_prompt, positions = prompt_and_positions(Seen(ids, ids != PAD, 0), config_of())
    assert positions[0, 0].tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert positions[0, 1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
    assert in_prompt[0].tolist() == [False, False, True, True, True, False, False, False]


def test_what_every_token_sees_worked_out_by_hand() -> None:
    ids = torch.tensor([[3, 5, GMASK, SOP, 12]])
    seen = Seen(ids, ids != PAD, num_slots=1)
    in_prompt, _ = prompt_and_positions(seen, config_of())
    assert seen.visible(5, prompt=in_prompt)[0, 0].int().tolist() == [
        [1, 1, 1, 1, 0, 0],  # padding: the slot, itself (so that a softmax has something), the prompt
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 1, 1, 1, 1],
    ]


def test_the_prompt_sees_itself_in_both_directions_and_the_answer_does_not() -> None:
    model = model_of()
    ids = PROMPT + ANSWER
    before = model.transformer(row(ids)).last_hidden_state[0]
    in_prompt = model.transformer(row([*ids[:3], 30, *ids[4:]])).last_hidden_state[0]
    in_answer = model.transformer(row([*ids[:-1], 30])).last_hidden_state[0]
    assert not torch.allclose(before[0], in_prompt[0])
    torch.testing.assert_close(before[:-1], in_answer[:-1])


def test_text_without_sop_is_causal() -> None:
    model = model_of()
    whole = model(row([5, 7, 9, 11])).logits
    torch.testing.assert_close(whole[:, :3], model(row([5, 7, 9])).logits)


# -- padding, masks and positions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_the_rows_alone(side: str) -> None:
    model = model_of()
    rows = [PROMPT + ANSWER, SHORT + REPLY, [5, MASK, SOP, 9]]
    ids, mask = padded(rows, side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for own, real, alone in zip(logits, mask.bool(), rows, strict=True):
        torch.testing.assert_close(own[real], model(row(alone)).logits[0])


def original_mask_and_positions(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """As ChatGLM-Efficient-Tuning's collator hands them over: padding on the left, True = not seen."""
    width = max(map(len, rows))
    mask, positions = torch.zeros(len(rows), 1, width, width, dtype=torch.bool), torch.zeros(len(rows), 2, width).long()
    for b, ids in enumerate(rows):
        pads, c, m = width - len(ids), ids.index(SOP), ids.index(GMASK)
        for k in range(width):
            for s in range(width):
                mask[b, 0, k, s] = s < pads or (s > k and s - pads >= c)
        for k in range(len(ids)):
            positions[b, 0, pads + k] = k if k < c else m
            positions[b, 1, pads + k] = 0 if k < c else k - c + 1
    return mask, positions


def test_masks_and_positions_as_the_original_has_them_are_taken() -> None:
    model = model_of()
    rows = [PROMPT + ANSWER, SHORT + REPLY]
    ids, mask = padded(rows, "left")
    dense, positions = original_mask_and_positions(rows)
    expected = model(ids, attention_mask=mask).logits[mask.bool()]
    both = model(ids, attention_mask=dense, position_ids=positions).logits[mask.bool()]
    torch.testing.assert_close(both, expected)
    torch.testing.assert_close(model(ids, attention_mask=dense).logits[mask.bool()], expected)
    prompts = [PROMPT, SHORT]
    ids, mask = padded(prompts, "left")
    dense, positions = original_mask_and_positions(prompts)
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    found = model.generate(ids, attention_mask=dense, position_ids=positions, max_new_tokens=4, do_sample=False)
    assert found.tolist() == wanted.tolist()


def test_positions_given_as_the_original_has_them_are_used() -> None:
    model = model_of()
    ids = row(PROMPT + ANSWER)
    _, positions = original_mask_and_positions([PROMPT + ANSWER])
    moved = positions + torch.tensor([[0], [1]]) * (positions > 0)
    assert not torch.allclose(model(ids, position_ids=moved).logits, model(ids).logits)


def test_what_does_not_fit_is_refused() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="9 wide; there are 4 tokens"):
        model(row(SHORT), attention_mask=torch.ones(1, 9))
    with pytest.raises(ValueError, match="must be boolean"):
        model(row(SHORT), attention_mask=torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="needs input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, WIDTH).double())


# -- decoding ----------------------------------------------------------------------------------------------------------


def greedy_without_cache(model: ChatGLMForConditionalGeneration, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model(row(ids), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_decoding_with_a_cache_is_decoding_without() -> None:
    model = model_of(eos_token_id=None)
    prompts = [PROMPT, SHORT, [9, 8, 5, MASK, SOP]]
    ids, mask = padded(prompts, "left")
    found = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, ids.shape[1] :]
    wanted = [greedy_without_cache(model, prompt, 6) for prompt in prompts]
    assert found.tolist() == wanted
    beams = model.generate(ids, attention_mask=mask, max_new_tokens=4, num_beams=3, do_sample=False)
    alone = [model.generate(row(p), max_new_tokens=4, num_beams=3, do_sample=False)[0, len(p) :] for p in prompts]
    assert beams[:, ids.shape[1] :].tolist() == [tokens.tolist() for tokens in alone]


def test_a_cache_read_in_two_passes_gives_the_logits_of_one() -> None:
    model = model_of()
    whole = model(row(PROMPT + ANSWER)).logits
    first = model(row(PROMPT), use_cache=True)
    second = model(row(ANSWER), past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)


# -- gradients ---------------------------------------------------------------------------------------------------------


def learned(ids: list[int], length: int) -> Tensor:
    return row([-100] * length + ids[length:])


def test_loss_is_the_mean_over_the_labels_of_the_next_token() -> None:
    model = model_of()
    ids = PROMPT + ANSWER
    output = model(row(ids), labels=learned(ids, len(PROMPT)))
    log_probs = output.logits[0].log_softmax(-1)
    own = [-log_probs[k - 1, ids[k]].item() for k in range(len(PROMPT), len(ids))]
    assert output.loss.item() == pytest.approx(sum(own) / len(own))


def test_gradients_of_lora_are_the_slopes() -> None:
    peft = get_peft_model(model_of(), LoraConfig(r=2, target_modules=["query_key_value", "dense"])).double().eval()
    torch.manual_seed(1)
    parameters = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    assert len(parameters) == 2 * 2 * LAYERS
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.3)

    def loss() -> Tensor:
        return answer_loss(peft, PROMPT, ANSWER)

    loss().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        places = [0, parameter.numel() // 2, parameter.numel() - 1]
        expected = slopes(loss, parameter, places=places)
        assert parameter.grad.view(-1)[places].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_gradients_are_the_same(use_reentrant: bool) -> None:
    ids = PROMPT + ANSWER
    model = model_of().train()
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.zero_grad()
        model(row(ids), labels=learned(ids, len(PROMPT))).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name])


# -- prefixes (P-Tuning v2) --------------------------------------------------------------------------------------------

SLOTS = 3


def slots_of(weights: Tensor) -> list[Any]:
    """Rows of P x 2L*heads*D numbers as keys and values of each layer."""
    table = weights.detach().double().numpy().reshape(SLOTS, 2 * LAYERS, HEADS, WIDTH // HEADS)
    return [(table[:, 2 * i].transpose(1, 0, 2), table[:, 2 * i + 1].transpose(1, 0, 2)) for i in range(LAYERS)]


@pytest.mark.parametrize("projects", [False, True])
def test_a_prefix_is_that_of_the_formulas(projects: bool) -> None:
    model = model_of(pre_seq_len=SLOTS, prefix_projection=projects)
    weights = numbers(model)
    table = weights["transformer.prefix_encoder.embedding.weight"]
    if projects:
        first, second = (f"transformer.prefix_encoder.trans.{number}" for number in (0, 2))
        inner = torch.from_numpy(table @ weights[f"{first}.weight"].T + weights[f"{first}.bias"]).tanh().numpy()
        table = inner @ weights[f"{second}.weight"].T + weights[f"{second}.bias"]
    ids = PROMPT + ANSWER
    expected = chatglm_logits(weights, ids, two_d=True, slots=slots_of(torch.from_numpy(table)), **SHAPE)
    for use_cache in (True, False):
        found = model(row(ids), use_cache=use_cache).logits[0]
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    rows = [PROMPT + ANSWER, SHORT + REPLY]
    batch, mask = padded(rows, "left")
    torch.testing.assert_close(model(batch, attention_mask=mask).logits[0], found)
    torch.testing.assert_close(
        model(batch, attention_mask=mask).logits[1][mask[1].bool()], model(row(rows[1])).logits[0]
    )
    wanted = [greedy_without_cache(model, prompt, 4) for prompt in (PROMPT, SHORT)]
    batch, mask = padded([PROMPT, SHORT], "left")
    model.generation_config.eos_token_id = None
    assert model.generate(batch, attention_mask=mask, max_new_tokens=4)[:, batch.shape[1] :].tolist() == wanted


@pytest.mark.parametrize("projects", [False, True])
def test_gradients_of_a_prefix_are_the_slopes(projects: bool) -> None:
    model = model_of(pre_seq_len=SLOTS, prefix_projection=projects)

    def loss() -> Tensor:
        return answer_loss(model, PROMPT, ANSWER)

    loss().backward()
    for name, parameter in model.transformer.prefix_encoder.named_parameters():
        assert parameter.grad is not None
        places = [0, parameter.numel() // 2, parameter.numel() - 1]
        expected = slopes(loss, parameter, places=places)
        assert parameter.grad.view(-1)[places].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def test_prefix_tuning_of_peft_is_the_models_own_prefix() -> None:
    own = model_of(pre_seq_len=SLOTS, eos_token_id=None)
    base = model_of(eos_token_id=None)
    base.load_state_dict({name: w for name, w in own.state_dict().items() if "prefix_encoder" not in name})
    peft = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=SLOTS)).double().eval()
    peft.prompt_encoder["default"].embedding.weight.data = own.transformer.prefix_encoder.embedding.weight.data.clone()
    ids, mask = padded([PROMPT + ANSWER, SHORT + REPLY], "left")
    expected = own(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(peft(input_ids=ids, attention_mask=mask).logits[mask.bool()], expected)
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    counted = peft(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    torch.testing.assert_close(counted, expected)
    for model in (own, peft):
        answer_loss(model, PROMPT, ANSWER).backward()
    learned_there, learned_here = peft.prompt_encoder["default"].embedding, own.transformer.prefix_encoder.embedding
    torch.testing.assert_close(learned_there.weight.grad, learned_here.weight.grad)
    ids, mask = padded([PROMPT, SHORT], "left")
    wanted = own.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert (
        peft.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False).tolist() == wanted.tolist()
    )

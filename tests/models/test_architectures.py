"""Whatever the architecture: rows computed together, padded or sampled are what each is by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from tests.models.architectures import ARCHITECTURES
from torch import Tensor

from duiqi.models.adapters import LoRASpec
from duiqi.models.measure import measure_answers, measure_scores
from duiqi.models.ports.registry import new_classifier
from duiqi.models.reward import StandaloneReward
from duiqi.models.shared_base import SharedBase
from duiqi.models.unadapted import unadapted
from duiqi.packing.batch import Family, pack
from duiqi.rollouts.decoder import Decoder
from duiqi.rollouts.prefix import Decoding
from duiqi.types import Sampling

VOCAB, STOPS = 97, [2, *range(80, 97)]
"""Many tokens end an answer, so that some end before others."""

FAMILIES = [
    Family((5, 6, 7, 8, 9), [(10, 11, 12), (13, 14, 15, 16, 17, 18, 2), (19, 2)]),
    Family((41, 42), [(43, 44, 45, 2), (46, 2)]),
    Family((), [tuple(range(50, 70))]),
]
PROMPTS = [(5, 6, 7, 8, 9), (5, 6, 7, 8, 9), (41, 42), (3,), tuple(range(11, 30)), (43, 44)]


@cache
def seated(name: str) -> SharedBase:
    """A base with a policy whose adapter does something, and a reward head; built once for all tests."""
    base = SharedBase(ARCHITECTURES[name].build(VOCAB), name=name)
    base.seat_new_adapter("policy", LoRASpec(rank=4))
    generator = torch.Generator().manual_seed(1)
    for parameter in base.role_parameters("policy").values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    base.add_head("reward", torch.randn(1, base.hidden_size, generator=generator))
    base.rest_on("policy")
    base.disable_dropout()
    return base


def decoder(base: SharedBase, decoding: Decoding | None = None, max_batch_rows: int = 8) -> Decoder:
    return Decoder(
        base,
        decode=str,
        stop_token_ids=STOPS,
        pad_token_id=0,
        max_batch_rows=max_batch_rows,
        active=lambda: base.acting("policy"),
        decoding=decoding,
    )


@pytest.fixture(params=ARCHITECTURES)
def base(request: pytest.FixtureRequest) -> SharedBase:
    return seated(request.param)


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    seated.cache_clear()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_how_an_architecture_is_computed_is_found_and_said(name: str) -> None:
    base, expected = seated(name), ARCHITECTURES[name]
    said = str(base.layout)
    assert (base.layout.is_packed, base.layout.is_lean) == (expected.layout != "padded", expected.layout == "lean")
    assert said.startswith("padded rows (" if expected.layout == "padded" else "packed rows")
    assert decoder(base).decoding is expected.decoding


def test_rows_computed_together_are_what_each_is_by_itself(base: SharedBase) -> None:
    apart = [pack([Family(family.prompt, [answer])]) for family in FAMILIES for answer in family.answers]
    with base.acting("policy"):
        together = measure_answers(base, pack(FAMILIES)).log_probs, measure_scores(base, pack(FAMILIES), "reward")
        log_probs = torch.cat([measure_answers(base, batch).log_probs for batch in apart])
        scores = torch.cat([measure_scores(base, batch, "reward") for batch in apart])
    torch.testing.assert_close(together[0], log_probs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_batch_rows", [8, 2])
def test_what_the_sampler_notes_is_what_the_trainer_finds(base: SharedBase, max_batch_rows: int) -> None:
    sampling = Sampling(max_new_tokens=8, min_new_tokens=0, temperature=1.0, seed=3)
    rollouts = decoder(base, max_batch_rows=max_batch_rows).generate(PROMPTS, sampling)
    batch = pack([Family(rollout.prompt_ids, [rollout.answer_ids]) for rollout in rollouts])
    with base.acting("policy"):
        computed = measure_answers(base, batch).log_probs
    noted = torch.tensor([value for rollout in rollouts for value in rollout.log_probs])
    torch.testing.assert_close(noted, computed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoding", list(Decoding))
@pytest.mark.parametrize("name", ["llama", "qwen3_next, gated delta rule"])
def test_every_way_to_decode_gives_the_same_answers(name: str, decoding: Decoding) -> None:
    base = seated(name)
    sampling = Sampling(max_new_tokens=6, min_new_tokens=0, temperature=1.0, repetition_penalty=1.2, seed=3)
    expected = decoder(base, Decoding.REREAD, max_batch_rows=1).generate(PROMPTS, sampling)
    found = decoder(base, decoding).generate(PROMPTS, sampling)
    assert [rollout.answer_ids for rollout in found] == [rollout.answer_ids for rollout in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_on_either_side_changes_no_score(name: str) -> None:
    """Of a reward model that is a network of its own: transformers' classifier, or one in its manner."""
    config = ARCHITECTURES[name].config(VOCAB)
    config.num_labels = 1
    torch.manual_seed(0)
    reward = StandaloneReward(new_classifier(config).eval())
    rows = [torch.tensor(row) for row in ([5, 6, 7, 8, 9, 2], [41, 2], [3, 4, 2])]
    alone = torch.cat([reward(row[None], torch.ones(1, len(row), dtype=torch.bool)) for row in rows])
    sides = ["right"] if name == "mamba" else ["right", "left"]
    for side in sides:
        ids, mask = (padded(values, side) for values in (rows, [torch.ones_like(row) for row in rows]))
        torch.testing.assert_close(reward(ids, mask.bool()), alone, rtol=1e-4, atol=1e-4)


def padded(rows: list[Tensor], side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)


EXPERTS = r"LoRA adapts {}; the experts' matrices experts.gate_up_proj, experts.down_proj \(\d\d% of the weights\) stay"
ATTENTION = "k_proj, o_proj, q_proj, v_proj"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", []),
        ("mixtral, experts", [EXPERTS.format(ATTENTION)]),
        (
            "qwen2_moe, a shared expert",
            [EXPERTS.format("down_proj, gate_proj, .*, up_proj, v_proj")],
        ),
        (
            "qwen3_next, gated delta rule",
            [
                EXPERTS.format("in_proj_ba, .*"),
                "leaves down_proj, gate_proj, up_proj out: .* takes the name",
            ],
        ),
        ("mamba", ["leaves out_proj out: fused kernels"]),
        ("falcon_h1, Mamba beside attention", ["leaves out_proj out: fused kernels"]),
    ],
)
def test_what_the_adapters_do_not_reach_is_said(name: str, said: list[str]) -> None:
    sentences = list(unadapted(seated(name).model))
    assert len(sentences) == len(said), sentences
    for sentence, pattern in zip(sentences, said, strict=True):
        assert re.search(pattern, sentence), sentence


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_adapter_on_all_is_on_linear_layers_and_nothing_else(name: str) -> None:
    """PEFT turns some names into others on mixtures of experts: what is trained is what was named."""
    base = seated(name)
    config = base.seat("policy").config
    assert not config.target_parameters
    owners = {parameter.partition(".lora_")[0] for parameter in base.role_parameters("policy")}
    assert {owner.rpartition(".")[2] for owner in owners} == set(config.target_modules)

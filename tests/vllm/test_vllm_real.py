"""The vLLM engine against vLLM itself: `make test-vllm`, which takes minutes. Everywhere else these are skipped.

DUIQI_VLLM_PYTHON names the interpreter of the environment that vLLM is installed in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from duiqi.errors import GuardStop
from duiqi.models.adapter_files import save_adapter
from duiqi.models.adapters import LoRASpec
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.decoder import Decoder
from duiqi.rollouts.sampling import adjust_logits, log_probs_of
from duiqi.rollouts.vllm_engine import PROBE_TOLERANCE, Probe, SyncedEngine, VLLMEngine, row_log_probs
from duiqi.rollouts.vllm_http import VLLMError
from duiqi.rollouts.vllm_server import ServerPlan, VLLMServer
from duiqi.types import Rollout, Sampling

PYTHON = os.environ.get("DUIQI_VLLM_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs an environment with vLLM: make test-vllm")

VOCAB, STOPS = 320, (2, 5)
PROMPTS = [[7, 8, 9, 10, 11], [40, 41], [100, 101, 102], [7, 8, 9, 10, 11], [250]]
SAMPLING = Sampling(max_new_tokens=48, min_new_tokens=3, temperature=0.7, seed=11)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SharedBase:
    """A tiny random llama on disk and in memory, whose policy is an adapter that changes much."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=3,  # no stop token of ours: vLLM must not stop at it, nor forbid it early on
        pad_token_id=0,
    )
    directory = tmp_path_factory.mktemp("base")
    network = LlamaForCausalLM(config)
    network.lm_head.weight.data[list(STOPS)] *= 2.0  # likely enough for answers to end
    network.save_pretrained(directory)
    base = SharedBase(network, name=str(directory))
    base.seat_new_adapter("policy", LoRASpec(rank=4))
    learn_something(base, seed=1)
    return base


def learn_something(base: SharedBase, *, seed: int) -> None:
    """Move the policy to another random adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.role_parameters("policy").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def server(base: SharedBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    plan = ServerPlan(
        python=PYTHON,
        model=base.name,
        dtype="float32",
        stop_token_ids=STOPS,
        max_tokens=128,
        lora_rank=4,
        memory_share=0.1,
        is_eager=True,
    )
    with VLLMServer.start(plan, tmp_path_factory.mktemp("vllm"), startup_seconds=600, note=print) as running:
        yield running


@pytest.fixture
def engine(base: SharedBase, server: VLLMServer) -> VLLMEngine:
    decoder = Decoder(base, decode=as_text, stop_token_ids=STOPS, pad_token_id=0, active=lambda: base.acting("policy"))
    opening = decoder.generate([PROMPTS[0]], Sampling(max_new_tokens=32, min_new_tokens=32))[0]
    return VLLMEngine(
        server.address,
        decode=as_text,
        stop_token_ids=STOPS,
        probe=Probe(
            opening.prompt_ids + opening.answer_ids,
            partial(row_log_probs, base, "policy"),
            PROBE_TOLERANCE[torch.float32],
        ),
    )


def hand_over(engine: VLLMEngine, base: SharedBase, directory: Path, *, step: int) -> float:
    """Give the server the policy as it is now; the gap that the probe found."""
    synced = SyncedEngine(engine, base, role="policy", directory=directory / "adapters", note=lambda *_: None)
    return synced.sync(step)


def write_policy(base: SharedBase, directory: Path) -> None:
    seat = base.seat("policy")
    assert seat.own is not None
    save_adapter(directory, seat.network, seat.own, base=base.name)


def as_text(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def teacher_forced(base: SharedBase, rollout: Rollout, sampling: Sampling) -> list[float]:
    """Log-probabilities of an answer as the trainer measures them: one pass, then the sampler's own distribution."""
    with base.acting("policy"):
        hidden, _ = base.trunk(torch.tensor([rollout.prompt_ids + rollout.answer_ids]))
        logits = base.logits(hidden[0, len(rollout.prompt_ids) - 1 : -1])
    logits = adjust_logits(
        logits,
        temperature=sampling.temperature,
        suppressed=torch.arange(len(logits)) < sampling.min_new_tokens,
        stop_token_ids=STOPS,
    )
    return [float(value) for value in log_probs_of(logits, torch.tensor(rollout.answer_ids))]


@contextmanager
def another_policy(base: SharedBase, *, seed: int) -> Iterator[None]:
    """Within this context the policy is another; afterwards it is the one before again."""
    before = {name: p.detach().clone() for name, p in base.role_parameters("policy").items()}
    learn_something(base, seed=seed)
    yield
    with torch.no_grad():
        for name, parameter in base.role_parameters("policy").items():
            parameter.copy_(before[name])


@pytest.mark.parametrize(
    "sampling",
    [SAMPLING, replace(SAMPLING, temperature=1.0, min_new_tokens=0), replace(SAMPLING, temperature=0.0)],
    ids=["tempered", "plain", "greedy"],
)
def test_log_probs_are_those_that_the_trainer_computes(
    engine: VLLMEngine, base: SharedBase, sampling: Sampling, tmp_path: Path
) -> None:
    assert hand_over(engine, base, tmp_path, step=0) < 1e-4
    rollouts = engine.generate(PROMPTS * 4, sampling, step=1)
    assert [list(r.prompt_ids) for r in rollouts] == PROMPTS * 4
    for rollout in rollouts:
        assert rollout.log_probs == pytest.approx(teacher_forced(base, rollout, sampling), abs=1e-4)
        assert rollout.finished == (rollout.answer_ids[-1] in STOPS)
        assert len(rollout.answer_ids) == sampling.max_new_tokens or rollout.finished
        assert not set(rollout.answer_ids[: sampling.min_new_tokens]) & set(STOPS)
        assert not set(rollout.answer_ids[:-1]) & set(STOPS)
    if sampling.temperature:
        assert {r.finished for r in rollouts} == {True, False}
        assert len({r.answer_ids for r in rollouts}) > len(PROMPTS)


def test_the_models_own_end_token_is_a_token_like_any_other(
    engine: VLLMEngine, base: SharedBase, tmp_path: Path
) -> None:
    hand_over(engine, base, tmp_path, step=0)
    hot = replace(SAMPLING, temperature=2.0, min_new_tokens=40)
    rollouts = engine.generate(PROMPTS * 8, hot)
    places = [at for r in rollouts for at, token in enumerate(r.answer_ids[:-1]) if token == 3]
    assert places, "among so many tokens it must occur"
    assert min(places) < 40, "also where an answer may not end yet"


def test_greedy_answers_are_those_of_our_own_decoder(engine: VLLMEngine, base: SharedBase, tmp_path: Path) -> None:
    hand_over(engine, base, tmp_path, step=0)
    greedy = replace(SAMPLING, temperature=0.0)
    decoder = Decoder(base, decode=as_text, stop_token_ids=STOPS, pad_token_id=0, active=lambda: base.acting("policy"))
    ours, theirs = decoder.generate(PROMPTS, greedy), engine.generate(PROMPTS, greedy)
    assert [(r.answer_ids, r.answer, r.finished) for r in theirs] == [
        (r.answer_ids, r.answer, r.finished) for r in ours
    ]


def test_the_same_seeds_give_the_same_answers_and_others_do_not(
    engine: VLLMEngine, base: SharedBase, tmp_path: Path
) -> None:
    hand_over(engine, base, tmp_path, step=0)
    first = [r.answer_ids for r in engine.generate(PROMPTS, SAMPLING, step=1)]
    assert [r.answer_ids for r in engine.generate(PROMPTS, SAMPLING, step=1)] == first
    assert [r.answer_ids for r in engine.generate(PROMPTS[:2], SAMPLING, step=1)] == first[:2]
    assert [r.answer_ids for r in engine.generate(PROMPTS, SAMPLING, step=2)] != first
    assert first[0] != first[3], "the same prompt twice"


def test_a_swap_while_it_runs_gives_the_new_adapters_log_probs_also_behind_cached_prompts(
    engine: VLLMEngine, base: SharedBase, tmp_path: Path
) -> None:
    long_prompts = [[*range(10, 90)]] * 3  # several blocks of vLLM's prefix cache
    hand_over(engine, base, tmp_path, step=0)
    before = engine.generate(long_prompts, SAMPLING)
    with another_policy(base, seed=2):
        assert hand_over(engine, base, tmp_path, step=1) < 1e-4
        after = engine.generate(long_prompts, SAMPLING)
        assert [r.answer_ids for r in after] != [r.answer_ids for r in before]
        for rollout in after:
            assert rollout.log_probs == pytest.approx(teacher_forced(base, rollout, SAMPLING), abs=1e-4)


def test_an_adapter_written_over_the_former_one_does_not_answer_from_its_cached_prompts(
    engine: VLLMEngine, base: SharedBase, tmp_path: Path
) -> None:
    long_prompts = [[*range(10, 90)]] * 3
    write_policy(base, tmp_path)
    engine.sync(tmp_path, 0)
    engine.generate(long_prompts, SAMPLING)
    with another_policy(base, seed=2):
        write_policy(base, tmp_path)
        engine.sync(tmp_path, 1)
        for rollout in engine.generate(long_prompts, SAMPLING):
            assert rollout.log_probs == pytest.approx(teacher_forced(base, rollout, SAMPLING), abs=1e-4)


def test_the_probe_catches_a_wrong_adapter_and_one_that_is_a_step_old(
    engine: VLLMEngine, base: SharedBase, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    write_policy(base, old)
    engine.sync(old, 0)
    with another_policy(base, seed=3), pytest.raises(GuardStop, match="does not sample from the policy"):
        engine.sync(old, 1)
    with torch.no_grad():  # what AdamW moves at once with a learning rate of 1e-3
        for parameter in base.role_parameters("policy").values():
            parameter.add_(1e-3 * torch.ones_like(parameter))
    try:
        with pytest.raises(GuardStop, match="does not sample from the policy"):
            engine.sync(old, 2)
    finally:
        learn_something(base, seed=1)
    engine.sync(old, 3)


def test_an_adapter_that_is_not_there_is_refused_and_the_server_lives(engine: VLLMEngine, tmp_path: Path) -> None:
    with pytest.raises(VLLMError, match=r"nowhere: vLLM does not take this adapter: .*No adapter found"):
        engine.sync(tmp_path / "nowhere", 0)
    engine._address.get("/health", timeout_seconds=30)


def test_a_prompt_too_long_for_the_server_is_refused_with_its_reason(
    engine: VLLMEngine, base: SharedBase, tmp_path: Path
) -> None:
    hand_over(engine, base, tmp_path, step=0)
    with pytest.raises(VLLMError, match="maximum context length is 128 tokens"):
        engine.generate([[9] * 200], SAMPLING)

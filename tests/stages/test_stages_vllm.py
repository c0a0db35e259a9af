"""PPO with answers from a vLLM server, here one of our own that speaks as vLLM does and samples from the same base."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Workshop
from tests.rollouts.fake_vllm import FakeVLLM, refusal, serving
from transformers import LlamaForCausalLM

import duiqi
from duiqi.errors import GuardStop, SettingsError
from duiqi.models.adapter_files import read_adapter
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.decoder import Decoder
from duiqi.rollouts.experience import assemble
from duiqi.rollouts.vllm_engine import row_log_probs
from duiqi.rollouts.vllm_http import VLLMError
from duiqi.stages.ppo_rollouts import make_probe, weighted_by_importance
from duiqi.types import Rollout, Sampling


@dataclass
class ServedPolicy(FakeVLLM):
    """A server that loads the base by itself, and answers from the adapters it is given."""

    base: SharedBase = field(kw_only=True)
    off_by: float = 0.0
    """Added to every log-probability of an answer: what other kernels, or a fault, would do."""

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["lora_name"]
        self.base.seat_saved_adapter(name, read_adapter(body["lora_path"]), trainable=False)
        self.adapters[name] = 0.0
        self.loaded.append(name)
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:  # one model, and requests come from many threads
            self.requests.append(body)
            if body["model"] not in self.adapters:
                return 404, refusal(f"The model `{body['model']}` does not exist.")
            if "prompt_logprobs" in body:
                found = row_log_probs(self.base, body["model"], body["prompt"])
                known = [{str(token): {"logprob": p}} for token, p in zip(body["prompt"][1:], found, strict=True)]
                return 200, {"choices": [{"prompt_logprobs": [None, *known]}]}
            return 200, {"choices": [self.answer(body)]}

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        decoder = Decoder(
            self.base,
            decode=str,
            stop_token_ids=body["stop_token_ids"],
            pad_token_id=0,
            active=lambda: self.base.acting(body["model"]),
        )
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body["min_tokens"],
            temperature=body["temperature"],
            seed=body["seed"] % 2**31,
        )
        rollout = decoder.generate([body["prompt"]], sampling)[0]
        return {
            "finish_reason": "stop" if rollout.finished else "length",
            "token_ids": list(rollout.answer_ids),
            "logprobs": {"token_logprobs": [value + self.off_by for value in rollout.log_probs]},
        }


@pytest.fixture
def served(workshop: Workshop) -> Iterator[ServedPolicy]:
    base = SharedBase(LlamaForCausalLM.from_pretrained(workshop.base), name=workshop.base)
    with serving(ServedPolicy(base=base)) as running:
        assert isinstance(running, ServedPolicy)
        yield running


@pytest.fixture
def settings(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: ServedPolicy
) -> Callable[..., dict[str, Any]]:
    """Settings of a short run on that server."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def make(name: str = "run", **changes: Any) -> dict[str, Any]:
        own = {"rollout_engine": "vllm", "vllm_url": served.url, "learning_rate": 1e-2}
        return workshop.settings("ppo", tmp_path / name, **own | changes)

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_a_run_learns_from_the_answers_of_a_server_that_follows_the_policy(
    settings: Callable[..., dict[str, Any]], served: ServedPolicy, tmp_path: Path, critic: str
) -> None:
    result = duiqi.run("ppo", **settings(critic=critic))
    assert result.steps == 4
    events = lines(tmp_path / "run" / "events.jsonl")
    syncs = [event for event in events if event["kind"] == "vllm_sync"]
    assert [event["step"] for event in syncs if event["step"]] == [1, 2, 3, 4]
    assert max(event["gap"] for event in syncs) < 1e-4
    assert len(served.loaded) == len(set(served.loaded)) == len(syncs)
    assert len(served.adapters) == 1, "those of former steps are unloaded"
    assert len(list((tmp_path / "run" / "vllm" / "adapters").iterdir())) == 1
    logged = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if "sampler_gap" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    for line in logged:
        assert line["sampler_gap"] < 1e-4
        assert line["importance_weight"] == pytest.approx(1.0, abs=1e-4)
        assert line["importance_capped"] == 0.0
    assert logged[0]["kl"] == 0.0
    assert abs(logged[-1]["kl"]) > 1e-3
    assert load_file(tmp_path / "run" / "value_head.safetensors")["value_head.weight"].abs().max() > 0


def test_answers_without_a_critic_are_learned_from_too(
    settings: Callable[..., dict[str, Any]], served: ServedPolicy
) -> None:
    result = duiqi.run("ppo", **settings(advantage="grpo", answers_per_prompt=2, max_steps=1))
    assert result.steps == 1
    asked = [body for body in served.requests if "prompt_logprobs" not in body]
    assert len({body["seed"] for body in asked}) == 8 + 4, "two evaluations of 4 answers with the same seeds, 8 answers"


def test_a_small_difference_is_weighted_and_a_large_one_stops_the_run(
    settings: Callable[..., dict[str, Any]], served: ServedPolicy, tmp_path: Path
) -> None:
    served.off_by = -5e-4
    duiqi.run("ppo", **settings(max_steps=1))
    line = next(line for line in lines(tmp_path / "run" / "metrics.jsonl") if "sampler_gap" in line)
    assert line["sampler_gap"] == pytest.approx(5e-4, rel=0.05)
    assert line["importance_weight"] == pytest.approx(1 + 5e-4, abs=5e-5)
    served.off_by = -5e-3
    with pytest.raises(GuardStop, match=r"sampler and trainer disagree: .*\n.*docs/vllm.md"):
        duiqi.run("ppo", **settings("other"))


def test_a_resumed_run_hands_over_the_policy_of_its_checkpoint(
    settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    duiqi.run("ppo", **settings(max_steps=2, save_steps=1, watch="warn"))
    resumed = duiqi.run("ppo", **settings(max_steps=3, resume_from_checkpoint=True, watch="warn"))
    assert resumed.resumed_step == 2
    assert len(list((tmp_path / "run" / "vllm" / "adapters").iterdir())) == 1


def test_a_new_run_in_the_same_place_removes_what_vllm_left(
    settings: Callable[..., dict[str, Any]], workshop: Workshop, tmp_path: Path
) -> None:
    duiqi.run("ppo", **settings(max_steps=1))
    assert (tmp_path / "run" / "vllm").is_dir()
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "run", max_steps=1, overwrite_output_dir=True))
    assert not (tmp_path / "run" / "vllm").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vllm_url": None}, "vllm_python, vllm_url: .*neither is given"),
        ({"vllm_python": "python"}, "vllm_python, vllm_url: .*both are given"),
        (
            {"finetuning_type": "full", "adapter_name_or_path": None},
            "rollout_engine: vLLM is handed low-rank adapters and nothing else",
        ),
        ({"use_dora": True, "adapter_name_or_path": None}, "use_dora: vLLM takes no DoRA"),
        ({"temperature": 2.5}, "temperature: vLLM samples at a temperature of 2 at most"),
        ({"top_p": 0.9}, "top_p, top_k, repetition_penalty: vLLM's log-probabilities"),
        ({"vllm_url": None, "vllm_python": "python", "vllm_args": "--x 'y"}, "vllm_args: cannot be read"),
        ({"vllm_url": None, "vllm_python": "nowhere/python"}, "vllm_python: nowhere/python: there is no such interp"),
    ],
)
def test_what_vllm_cannot_do_is_refused(
    settings: Callable[..., dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        duiqi.run("ppo", **settings(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "adapter_name_or_path": None},
        {"create_new_adapter": True, "lora_rank": 2},
    ],
)
def test_vllm_takes_no_start_that_is_more_than_one_adapter(
    settings: Callable[..., dict[str, Any]], workshop: Workshop, tmp_path: Path, changes: dict[str, Any]
) -> None:
    own = {"adapter_name_or_path": workshop.sft, "max_steps": 1, "eval_dataset": None, **changes}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **own))
    with pytest.raises(SettingsError, match="the policy starts from something else or from several"):
        duiqi.run("ppo", **settings(adapter_name_or_path=str(tmp_path / "sft")))


def test_an_address_where_nobody_listens_is_refused(settings: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(VLLMError, match="no vLLM server answers there"):
        duiqi.run("ppo", **settings(vllm_url="http://127.0.0.1:9"))


def test_a_probe_leaves_the_server_room_for_one_token(workshop: Workshop) -> None:
    base = SharedBase(LlamaForCausalLM.from_pretrained(workshop.base), name=workshop.base)
    base.seat_bare("policy")
    own = Decoder(base, decode=str, stop_token_ids=[2], pad_token_id=0, active=lambda: base.acting("policy"))
    assert len(make_probe(own, base, [5, 6, 7], max_tokens=10).token_ids) == 9
    probe = make_probe(own, base, [5, 6, 7], max_tokens=200)
    assert len(probe.token_ids) == 3 + 32
    assert len(probe.trainer_log_probs(probe.token_ids)) == 3 + 31


def test_a_token_that_the_trainer_finds_half_as_likely_counts_half_and_none_more_than_the_cap() -> None:
    def rollout(*log_probs: float) -> Rollout:
        ids = tuple(range(5, 5 + len(log_probs)))
        return Rollout(
            index=0, prompt_ids=(1, 2), answer_ids=ids, log_probs=log_probs, values=(), finished=False, answer=""
        )

    device = torch.device("cpu")
    sampled = assemble([rollout(-1.0, -2.0, -3.0), rollout(-1.0)], [0, 1], min_new_tokens=0, device=device)
    change = torch.tensor([[0.5, 1.0, 4.0], [1.5, 1.0, 1.0]]).log()
    experience = replace(
        sampled, old_log_probs=sampled.old_log_probs + change, advantages=torch.tensor([[2.0, 2.0, -2.0], [1.0, 0, 0]])
    )
    weighted, found = weighted_by_importance(experience, sampled, cap=2.0)
    torch.testing.assert_close(weighted.advantages, torch.tensor([[1.0, 2.0, -4.0], [1.5, 0, 0]]))
    assert found["importance_weight"] == pytest.approx((0.5 + 1 + 2 + 1.5) / 4)
    assert found["importance_capped"] == 0.25
    unweighted, nothing = weighted_by_importance(experience, sampled, cap=None)
    assert unweighted is experience
    assert nothing == {}

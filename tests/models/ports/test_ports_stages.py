"""The seven models of 2023, tiny, through SFT, reward model, DPO, PPO and chat: trained, saved, and the same again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Workshop
from tests.models.ports.tiny_releases import RELEASES, Release
from torch import Tensor

import duiqi
from duiqi.data.encoding import encode_answer, encode_prompt
from duiqi.data.templates import get_template
from duiqi.models.loading import load_tokenizer
from duiqi.models.reward import StandaloneReward
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.playground.files import WorldSizes, write_world
from duiqi.serving.chat import chat
from duiqi.types import Message, Sampling

MODULES = {"sft": "sft", "rm": "reward_model", "dpo": "dpo", "ppo": "ppo"}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("something was asked on the terminal")

    monkeypatch.setattr("builtins.input", refuse)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("world")
    sizes = WorldSizes(pretrain=1, demonstrations=12, preferences=12, held_out_pairs=4, prompts=12, held_out_prompts=4)
    write_world(directory, 0, sizes=sizes)
    return str(directory)


@dataclass(frozen=True)
class Shop:
    """One model, and what was trained from it so far."""

    release: Release
    workshop: Workshop
    data: str
    said: dict[str, Tensor]
    """What a stage's result said of one sequence when it was saved."""

    def sequence(self) -> list[int]:
        """A prompt and an answer, in the model's own template."""
        tokenizer = load_tokenizer(self.workshop.base)
        template, prompt = get_template(self.release.template, tokenizer), [Message("user", "你好 hello")]
        answer, _ = encode_answer(template, tokenizer, messages=prompt, answer="今天很好")
        return encode_prompt(template, tokenizer, messages=prompt) + answer

    def run(self, stage: Any, directory: Path, **changes: Any) -> Path:
        settings = self.workshop.settings(stage, directory, dataset_dir=self.data, cutoff_len=640, max_steps=2)
        settings |= {"template": self.release.template, "learning_rate": 1e-2, **changes}
        with self._remembering(stage):
            duiqi.run(stage, **settings)
        return directory

    @contextmanager
    def _remembering(self, stage: str) -> Iterator[None]:
        ids = torch.tensor([self.sequence()])

        def save(base: SharedBase, role: str, directory: Path, **others: Any) -> None:
            with base.acting(role):
                hidden, _ = base.trunk(ids, position_ids=torch.arange(ids.shape[1])[None])
                self.said[stage] = base.heads[role](hidden[0, -1]) if role == "reward" else base.logits(hidden[0])
            save_role(base, role, directory, **others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"duiqi.stages.{MODULES[stage]}.save_role", save)
            yield


@pytest.fixture(scope="module", params=RELEASES)
def shop(request: pytest.FixtureRequest, data: str, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A released directory with an SFT adapter and a reward model."""
    return opened(request.param, data, tmp_path_factory.mktemp(request.param))


def opened(name: str, data: str, root: Path) -> Shop:
    shop = Shop(RELEASES[name], Workshop(root), data, {})
    (root / "base").mkdir(parents=True)
    shop.release.write(root / "base")
    shop.run("sft", root / "sft")
    shop.run("rm", root / "rm")
    return shop


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def logits_of(path: str | Path, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = duiqi.load_model(str(path), dtype="float32")(torch.tensor([ids])).logits[0]
    return logits


def test_the_path_is_a_transformers_model(shop: Shop) -> None:
    ids = torch.tensor([shop.sequence()])
    for path in (shop.workshop.base, shop.workshop.sft):
        model = duiqi.load_model(path, dtype="float32")
        output = model(ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=True)
        assert output.loss.isfinite()
        assert output.past_key_values.get_seq_length() == ids.shape[1]
        grown = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert grown[:, : ids.shape[1]].equal(ids)


def test_sft_is_saved_as_it_was_trained(shop: Shop) -> None:
    ids = shop.sequence()
    found = logits_of(shop.workshop.sft, ids)
    torch.testing.assert_close(found, shop.said["sft"], **CLOSE)
    assert not torch.allclose(found, logits_of(shop.workshop.base, ids), atol=1e-2)


def test_the_log_says_which_way_it_was_computed(shop: Shop) -> None:
    layout = json.loads((Path(shop.workshop.sft) / "manifest.json").read_text(encoding="utf-8"))["layout"]
    assert layout.startswith("packed rows" if shop.release.is_packed else "padded rows (")
    assert ("in both directions" in layout) == (shop.release.template == "chatglm")
    assert ("ALiBi" in layout) == (not shop.release.is_packed and shop.release.template != "chatglm")


def test_the_tokenizer_saved_with_an_adapter_is_that_of_the_base(shop: Shop) -> None:
    base, run = load_tokenizer(shop.workshop.base), load_tokenizer(shop.workshop.sft)
    assert type(run) is type(base)
    assert (len(run), run.pad_token_id, run.eos_token_id) == (len(base), base.pad_token_id, base.eos_token_id)
    for text in ("你好  hello\n1", "[Round 1]"):
        assert run(text)["input_ids"] == base(text)["input_ids"]
    assert "auto_map" not in json.loads((Path(shop.workshop.sft) / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_a_reward_model_on_its_own_scores_as_it_did_on_the_shared_base(shop: Shop) -> None:
    ids = torch.tensor([shop.sequence()])
    reward = StandaloneReward(duiqi.load_reward_model(shop.workshop.rm, dtype="float32"))
    alone = reward(ids, torch.ones_like(ids).bool())
    torch.testing.assert_close(alone[0], shop.said["rm"], **CLOSE)
    padded = torch.cat([ids, ids[:, :2]], dim=1)
    mask = torch.arange(padded.shape[1]) < ids.shape[1]
    torch.testing.assert_close(reward(padded, mask[None]), alone, **CLOSE)


def test_dpo_is_saved_as_it_was_trained(shop: Shop, tmp_path: Path) -> None:
    shop.run("dpo", tmp_path / "dpo")
    torch.testing.assert_close(logits_of(tmp_path / "dpo", shop.sequence()), shop.said["dpo"], **CLOSE)
    first = next(line for line in lines(tmp_path / "dpo" / "metrics.jsonl") if "loss" in line)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_the_same_weights_with_other_positions_are_another_reference(data: str, tmp_path: Path) -> None:
    shop = opened("Baichuan-13B", data, tmp_path)
    config_file = Path(shop.workshop.base) / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for place, position_embedding in enumerate(("alibi", "rope")):
        config_file.write_text(json.dumps({**config, "position_embedding": position_embedding}), encoding="utf-8")
        shop.run("dpo", tmp_path / f"dpo {place}", adapter_name_or_path=None)
        first = next(line for line in lines(tmp_path / f"dpo {place}" / "metrics.jsonl") if "loss" in line)
        assert first["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_ppo_samples_what_it_trains_is_saved_and_talks(shop: Shop, tmp_path: Path) -> None:
    shop.run("ppo", tmp_path / "ppo")
    opening = next(event for event in lines(tmp_path / "ppo" / "events.jsonl") if event["kind"] == "opening_check")
    assert opening["kl"] == 0.0
    assert opening["ratio_gap"] < 1e-4
    steps = [line["step"] for line in lines(tmp_path / "ppo" / "metrics.jsonl") if "policy_loss" in line]
    assert steps == [1, 2]
    torch.testing.assert_close(logits_of(tmp_path / "ppo", shop.sequence()), shop.said["ppo"], **CLOSE)
    spoken = io.StringIO()
    sampling = Sampling(max_new_tokens=4, temperature=0.0)
    chat(str(tmp_path / "ppo"), sampling=sampling, input_lines=["你好", "再说一次"], output=spoken)
    assert len(spoken.getvalue().splitlines()) >= 4


@pytest.mark.parametrize("name", ["ChatGLM-6B", "ChatGLM2-6B"])
def test_a_chatglm_of_which_all_weights_learned_scores_and_answers(name: str, data: str, tmp_path: Path) -> None:
    shop = opened(name, data, tmp_path)
    full = {"finetuning_type": "full", "learning_rate": 1e-3}
    ids = shop.sequence()
    shop.run("rm", tmp_path / "full rm", **full)
    network = duiqi.load_reward_model(str(tmp_path / "full rm"), dtype="float32")
    score = StandaloneReward(network)(torch.tensor([ids]), torch.ones(1, len(ids)).bool())
    torch.testing.assert_close(score[0], shop.said["rm"], **CLOSE)
    shop.run("sft", tmp_path / "full", **full)
    torch.testing.assert_close(logits_of(tmp_path / "full", ids), shop.said["sft"], **CLOSE)


def test_a_policy_learns_from_a_reward_model_of_another_release(data: str, tmp_path: Path) -> None:
    policy = opened("ChatGLM2-6B", data, tmp_path / "2")
    reward = opened("ChatGLM-6B", data, tmp_path / "1")
    policy.run("ppo", tmp_path / "ppo", reward_model=reward.workshop.rm, max_steps=1)
    assert any("score" in line for line in lines(tmp_path / "ppo" / "metrics.jsonl"))

"""PPO as a whole: the reference is the policy at step 0, the base never moves, memory holds one base."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack, nullcontext
from functools import partial
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import Workshop
from torch import Tensor

import duiqi
from duiqi.algorithms.loss import Loss
from duiqi.errors import GuardStop, ModelError, SettingsError, TemplateError
from duiqi.journal.run import Run
from duiqi.settings.resolve import dump, resolve
from duiqi.stages.ppo import check_opening, check_sampler, critic_loss
from duiqi.stages.ppo_cast import Cast, assemble_cast
from duiqi.stages.ppo_credit import Credit
from duiqi.training.learner import Learner
from duiqi.training.schedule import Schedule


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].detach().contiguous().numpy().tobytes())
    return hasher.hexdigest()


def open_cast(workshop: Workshop, directory: Path, **changes: Any) -> Cast:
    config = resolve("ppo", values=workshop.settings("ppo", directory, **changes))
    with Run.open(directory, stage="ppo", settings=dump(config), argv=[]) as journal, ExitStack() as resources:
        return assemble_cast(config, journal, resources)


def base_weights(cast: Cast) -> dict[str, Tensor]:
    return {name: p for name, p in cast.base.model.named_parameters() if "lora_" not in name}


@pytest.mark.parametrize(("gap", "is_refused"), [(0.0, False), (1e-6, False), (1e-3, True), (nan, True)])
def test_a_reference_that_is_not_the_policy_is_refused_and_rounding_is_not(
    tmp_path: Path, gap: float, is_refused: bool
) -> None:
    cast = SimpleNamespace(
        reference_is_policy=True,
        reference_name="the policy at step 0",
        importance_cap=None,
        base=SimpleNamespace(precision=torch.float32),
    )
    policy = torch.full((1, 3), -2.0)
    found = SimpleNamespace(
        answer_mask=torch.ones(1, 3, dtype=torch.bool),
        old_log_probs=policy,
        reference_log_probs=policy + torch.tensor([0.0, gap, 0.0]),
    )
    outcome = pytest.raises(GuardStop, match="not the policy") if is_refused else nullcontext()
    with Run.open(tmp_path, stage="ppo", settings={}, argv=[]) as journal, outcome:
        check_opening(cast, found, found, journal)  # type: ignore[arg-type]


@pytest.mark.parametrize("critic", ["shared", "adapter", "model"])
def test_kl_is_zero_and_the_ratio_one_before_the_first_update(workshop: Workshop, tmp_path: Path, critic: str) -> None:
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, critic=critic, ppo_epochs=1, mini_batch_size=8))
    opening = next(event for event in lines(tmp_path / "events.jsonl") if event["kind"] == "opening_check")
    assert opening["kl"] == 0.0
    assert opening["ratio_gap"] < 1e-4
    first = next(line for line in lines(tmp_path / "metrics.jsonl") if line["step"] == 1 and "score" in line)
    assert first["kl"] == 0.0
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-8)
    assert first["clip_fraction"] == 0.0


@pytest.mark.parametrize("updates", [0, 2])
def test_the_sampler_follows_the_policy_after_every_update(workshop: Workshop, tmp_path: Path, updates: int) -> None:
    """What the sampler noted is what the trainer finds: with the adapter as it is now, not as it was."""
    cast = open_cast(workshop, tmp_path)
    learner = Learner(cast.base.trainable_parameters(), Schedule(0.03, 10))
    for number in range(1, updates + 1):
        answered = cast.answer([0, 1, 2, 3], step=number)
        experience = cast.measure(answered)
        learner.step(
            lambda _, batch=experience: [batch],  # type: ignore[misc]
            lambda batch: Loss(cast.measuring.answers(cast.base, batch).log_probs.sum(), torch.tensor(1.0)),
            number=number,
        )
    sampled = cast.measure(cast.answer([0, 1, 2, 3], step=5))
    computed = cast.measuring.log_probs(cast.base, sampled, "policy")
    torch.testing.assert_close(sampled.old_log_probs, computed, rtol=1e-4, atol=1e-4)
    moved = float((computed - sampled.reference_log_probs).abs().max())
    assert (moved > 0.05) == bool(updates)


def test_a_sampler_that_stayed_behind_stops_the_run(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duiqi.models.shared_base.SharedBase._adapter_state", lambda _: ("never changes",))
    with pytest.raises(GuardStop, match="sampler and trainer disagree at step 2"):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path, learning_rate=0.05))


def test_the_reference_is_the_sft_adapter_and_not_the_raw_base(workshop: Workshop, tmp_path: Path) -> None:
    cast = open_cast(workshop, tmp_path)
    answered = cast.answer([0, 1], step=1)
    experience = cast.measure(answered)
    cast.base.seat_bare("raw")
    raw = cast.measuring.log_probs(cast.base, experience, "raw")
    policy = cast.measuring.log_probs(cast.base, experience, "policy")
    assert torch.equal(experience.reference_log_probs, policy)
    assert not torch.allclose(raw, policy, atol=1e-4)


def test_the_reference_stays_while_the_policy_learns(workshop: Workshop, tmp_path: Path) -> None:
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, learning_rate=1e-2))
    kls = [line["kl"] for line in lines(tmp_path / "metrics.jsonl") if "kl" in line]
    assert kls[0] == 0.0
    assert abs(kls[-1]) > 1e-3


def test_a_given_reference_is_really_used(workshop: Workshop, tmp_path: Path) -> None:
    other = tmp_path / "other"
    duiqi.run("sft", **workshop.settings("sft", other, seed=7, learning_rate=1e-2))
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "run", ref_model=str(other)))
    first = next(line for line in lines(tmp_path / "run" / "metrics.jsonl") if "kl" in line)
    assert abs(first["kl"]) > 1e-3


def test_scoring_leaves_the_value_head_and_the_base_as_they_were(workshop: Workshop, tmp_path: Path) -> None:
    cast = open_cast(workshop, tmp_path)
    value_head = cast.base.heads["value"].weight
    with torch.no_grad():
        value_head.normal_()
    before = digest({"value": value_head, **base_weights(cast)})
    cast.score(cast.answer([0, 1, 2], step=1))
    assert digest({"value": value_head, **base_weights(cast)}) == before
    assert not torch.equal(value_head, cast.base.heads["reward"].weight)


@pytest.mark.parametrize("critic", ["shared", "adapter", "model"])
def test_a_whole_run_leaves_the_bytes_of_the_base_as_they_were(
    workshop: Workshop, tmp_path: Path, critic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    casts: list[Cast] = []
    digests: list[str] = []

    def remember(*args: Any) -> Cast:
        casts.append(assemble_cast(*args))
        digests.append(digest(base_weights(casts[0])))
        return casts[0]

    monkeypatch.setattr("duiqi.stages.ppo.assemble_cast", remember)
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, critic=critic, learning_rate=1e-2))
    assert digest(base_weights(casts[0])) == digests[0]
    on_disk = load_file(Path(workshop.base) / "model.safetensors")
    weights = {name.replace(".base_layer", ""): p for name, p in base_weights(casts[0]).items()}
    assert all(torch.equal(weights[name], tensor) for name, tensor in on_disk.items())


def test_memory_holds_one_base(workshop: Workshop, tmp_path: Path) -> None:
    cast = open_cast(workshop, tmp_path, critic="adapter")
    networks = {id(cast.base.seat(role).network) for role in ("policy", "reference", "reward", "value")}
    assert len(networks) == 1
    places = {p.data_ptr() for p in base_weights(cast).values()}
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in base_weights(cast).values()}
    on_disk = sum(t.numel() * t.element_size() for t in load_file(Path(workshop.base) / "model.safetensors").values())
    assert len(places) == len(base_weights(cast))
    assert sum(storages.values()) == on_disk


def test_a_critic_of_its_own_begins_with_what_the_critic_adapter_says(workshop: Workshop, tmp_path: Path) -> None:
    adapter = open_cast(workshop, tmp_path / "adapter", critic="adapter")
    model = open_cast(workshop, tmp_path / "model", critic="model")
    answered = adapter.answer(range(8), step=1)
    said = adapter.measure(answered).values
    assert float(said.std()) > 0.01
    torch.testing.assert_close(model.measure(answered).values, said, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_a_critic_of_its_own_learns_with_all_its_weights_and_leaves_the_policy_alone(
    workshop: Workshop, tmp_path: Path, finetuning_type: str
) -> None:
    changes: dict[str, Any] = {"critic": "model", "clip_range_value": 0}
    if finetuning_type == "full":
        changes |= {"finetuning_type": "full", "adapter_name_or_path": None}
    config = resolve("ppo", values=workshop.settings("ppo", tmp_path, **changes))
    cast = open_cast(workshop, tmp_path, **changes)
    answered = cast.answer(range(8), step=1)
    experience, _ = Credit.start(config).assign(cast.measure(answered), torch.linspace(-1, 1, 8))
    critic = {n: p for n, p in cast.base.trainable_parameters().items() if n.startswith(("value.", "heads.value."))}
    before = {name: p.detach().clone() for name, p in critic.items()}
    others = digest(dict(cast.base.model.named_parameters()))
    learner = Learner(cast.base.trainable_parameters(), Schedule(3e-3, 30))
    losses = [
        learner.step(lambda _: [experience], partial(critic_loss, cast, config.ppo), number=number).loss
        for number in range(1, 31)
    ]
    assert losses[-1] < 0.5 * losses[0]
    assert [name for name, p in critic.items() if torch.equal(p, before[name])] == []
    assert digest(dict(cast.base.model.named_parameters())) == others


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_says_how_large_a_critic_of_its_own_is_and_saves_the_policy_and_its_head(
    workshop: Workshop, tmp_path: Path, dtype: str
) -> None:
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, critic="model", dtype=dtype, max_steps=2))
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    weights = load_file(Path(workshop.base) / "model.safetensors")
    size = sum(tensor.numel() for name, tensor in weights.items() if name != "lm_head.weight")
    assert manifest["parents"]["critic"] == f"a model of its own, {size:,} parameters"
    assert size < manifest["parameters"]["trained"] < manifest["parameters"]["total"]
    saved = {path.name for path in tmp_path.glob("*.safetensors")}
    assert saved == {"adapter_model.safetensors", "value_head.safetensors"}
    assert {tensor.dtype for tensor in critic_in(tmp_path / "last").values()} == {torch.float32}


def test_first_tokens_are_never_the_end_token(workshop: Workshop, tmp_path: Path) -> None:
    cast = open_cast(workshop, tmp_path, min_new_tokens=3)
    for rollout in cast.answer(range(20), step=1).rollouts:
        assert not set(rollout.answer_ids[:3]) & set(cast.template.stop_token_ids)


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "dr_grpo", "reinforce++"])
def test_other_advantages_need_no_critic(workshop: Workshop, tmp_path: Path, advantage: str) -> None:
    result = duiqi.run(
        "ppo", **workshop.settings("ppo", tmp_path, advantage=advantage, answers_per_prompt=2, max_steps=2)
    )
    assert result.steps == 2
    assert not (tmp_path / "value_head.safetensors").exists()


def test_a_function_and_a_reward_model_mix_with_their_weights(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "length.py"
    file.write_text("def shorter(prompts, answers):\n    return [-len(a) / 10 for a in answers]\n", encoding="utf-8")
    out = tmp_path / "run"
    duiqi.run("ppo", **workshop.settings("ppo", out, reward_model=f"{workshop.rm},{file}:shorter@0.5", max_steps=1))
    line = next(line for line in lines(out / "metrics.jsonl") if line["step"] == 1 and "score" in line)
    assert line["score"] == pytest.approx(line["score/rm"] + 0.5 * line["score/shorter"], rel=1e-5)


def test_two_reward_models_of_the_same_name_both_count(workshop: Workshop, tmp_path: Path) -> None:
    other = tmp_path / "v1.5" / "rm"
    duiqi.run("rm", **workshop.settings("rm", other, max_steps=2, seed=7))
    cast = open_cast(workshop, tmp_path / "ppo", reward_model=f"{workshop.rm},{other},{other}@0.5")
    scored = cast.scorer.score(cast.answer([0, 1], step=1).candidates)
    assert set(scored.parts) == {"rm", "rm_2", "rm_3", "disagreement"}
    assert not torch.equal(scored.parts["rm"], scored.parts["rm_2"])
    assert torch.allclose(scored.total, scored.parts["rm"] + 1.5 * scored.parts["rm_2"])


def test_a_dot_in_the_name_of_a_second_reward_model_is_no_matter(workshop: Workshop, tmp_path: Path) -> None:
    dotted = shutil.copytree(workshop.rm, tmp_path / "rm-1.5")
    cast = open_cast(workshop, tmp_path / "ppo", reward_model=f"{workshop.rm},{dotted}")
    scored = cast.scorer.score(cast.answer([0, 1], step=1).candidates)
    assert torch.equal(scored.parts["rm"], scored.parts["rm-1.5"])


def test_full_fine_tuning_keeps_a_frozen_copy_as_reference(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("ppo", tmp_path, finetuning_type="full", learning_rate=1e-3)
    del settings["adapter_name_or_path"]
    duiqi.run("ppo", **settings)
    kls = [line["kl"] for line in lines(tmp_path / "metrics.jsonl") if "kl" in line]
    assert kls[0] == 0.0
    assert kls[-1] != 0.0
    assert (tmp_path / "model.safetensors").is_file()


def test_a_reward_model_of_another_base_reads_the_text(workshop: Workshop, tmp_path: Path) -> None:
    other_base, other_rm = tmp_path / "base", tmp_path / "rm"
    duiqi.run("pretrain", **workshop.settings("pretrain", other_base, finetuning_type="full", max_steps=2))
    duiqi.run("rm", **workshop.settings("rm", other_rm, model_name_or_path=str(other_base)))
    result = duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", reward_model=str(other_rm), max_steps=1))
    assert result.steps == 1
    manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["parents"]["reward"] == (
        f"{other_rm} (not examined: `duiqi exam {other_rm}`), a network of its own"
    )


def test_a_reward_model_whose_base_has_other_weights_now_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.base, tmp_path / "base")
    own = {"model_name_or_path": str(tmp_path / "base"), "max_steps": 1}
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **own))
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.5
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    changes = {**own, "adapter_name_or_path": None, "reward_model": str(tmp_path / "rm")}
    with pytest.raises(ModelError, match=r"trained on other weights than are now in .*base"):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", **changes))


def test_a_reward_model_with_another_template_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    rm = tmp_path / "rm"
    duiqi.run("rm", **workshop.settings("rm", rm, template="zh_qa", max_steps=1))
    with pytest.raises(TemplateError, match="was trained with another template: the templates differ in name"):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", reward_model=str(rm)))
    settings = workshop.settings("ppo", tmp_path / "anyway", reward_model=str(rm), max_steps=1)
    assert duiqi.run("ppo", **settings, allow_template_mismatch=True).steps == 1


def test_an_sft_run_is_no_reward_model(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this is the policy of a sft run, not a reward model"):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path, reward_model=workshop.sft))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature: PPO needs random answers"),
        (
            {"critic": "adapter", "finetuning_type": "full", "adapter_name_or_path": None},
            "critic: full fine-tuning has no adapters.*\n.*set critic: shared or critic: model, or",
        ),
        (
            {"kl_target": 1.0, "kl_horizon": 1.5},
            "kl_horizon: with 8 answers in a step the KL weight could turn negative\n.*set kl_horizon: 1.6 or more",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path, **changes))


def test_an_adapter_as_the_model_keeps_its_shape(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("sft", tmp_path, model_name_or_path=workshop.sft)
    with pytest.raises(SettingsError, match="is trained in the shape it has"):
        duiqi.run("sft", **settings, lora_rank=4)


def test_two_adapters_to_start_from_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("sft", tmp_path, model_name_or_path=workshop.sft, adapter_name_or_path=workshop.rm)
    with pytest.raises(ModelError, match="is an adapter itself, but adapter_name_or_path names"):
        duiqi.run("sft", **settings)


def test_with_full_fine_tuning_a_given_reference_stays_where_it_is(workshop: Workshop, tmp_path: Path) -> None:
    changes = {"finetuning_type": "full", "adapter_name_or_path": None, "ref_model": workshop.sft}
    cast = open_cast(workshop, tmp_path, **changes)
    experience = cast.measure(cast.answer([0, 1], step=1))
    with torch.no_grad():
        for parameter in cast.base.trainable_parameters().values():
            parameter.zero_()
    again = cast.measuring.log_probs(cast.base, experience, "reference")
    assert torch.equal(experience.reference_log_probs, again)


def test_only_gae_s_advantages_are_whitened(workshop: Workshop, tmp_path: Path) -> None:
    spread = {}
    for advantage in ("gae", "rloo"):
        changes = {"advantage": advantage, "answers_per_prompt": 2}
        cast = open_cast(workshop, tmp_path / advantage, **changes)
        config = resolve("ppo", values=workshop.settings("ppo", tmp_path, **changes))
        answered = cast.answer(range(4), step=1)
        scores = torch.arange(8.0)
        assigned, _ = Credit.start(config).assign(cast.measure(answered), scores)
        spread[advantage] = float(assigned.advantages[assigned.answer_mask].var())
    assert spread["gae"] == pytest.approx(1.0, abs=0.05)
    assert abs(spread["rloo"] - 1.0) > 0.2


def test_the_metrics_begin_with_those_by_which_a_run_is_judged(workshop: Workshop, tmp_path: Path) -> None:
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, max_steps=1))
    line = next(line for line in lines(tmp_path / "metrics.jsonl") if line["step"] == 1 and "score" in line)
    assert list(line)[:7] == ["step", "epoch", "score", "kl", "answer_length", "eos_rate", "entropy"]


def test_a_weight_that_is_nan_stops_the_run_and_leaves_the_evidence(workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "poison.py"
    file.write_text(
        "def poison(prompts, answers):\n    return [1e38 * (i % 2) for i in range(len(answers))]\n", encoding="utf-8"
    )
    settings = workshop.settings("ppo", tmp_path / "run", reward_model=f"{file}:poison", learning_rate=1e30)
    with pytest.raises(GuardStop, match=r"nan or inf|not finite"):
        duiqi.run("ppo", **settings, score_norm=False, score_clip=0, max_grad_norm=0)
    assert json.loads((tmp_path / "run" / "anomaly" / "finding.json").read_text(encoding="utf-8"))["finding"]


def adapter_of(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def critic_in(checkpoint: Path) -> dict[str, Tensor]:
    state = load_file(checkpoint / "trainer_state.safetensors")
    return {name: tensor for name, tensor in state.items() if name.startswith("parameter/value.")}


@pytest.mark.parametrize("critic", ["shared", "model"])
def test_while_the_critic_warms_up_the_policy_stays(workshop: Workshop, tmp_path: Path, critic: str) -> None:
    changes = {"critic": critic, "critic_warmup_steps": 4, "entropy_coef": 0.1, "weight_decay": 0.1}
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, **changes))
    before, after = adapter_of(Path(workshop.sft)), adapter_of(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_file(tmp_path / "value_head.safetensors")["value_head.weight"].abs().max() > 0


@pytest.mark.parametrize("critic", ["shared", "model"])
def test_gradient_checkpointing_changes_memory_and_nothing_else(
    workshop: Workshop, tmp_path: Path, critic: str
) -> None:
    learned = []
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        changes = {"critic": critic, "max_steps": 2, "gradient_checkpointing": checkpointing}
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path / name, **changes))
        learned.append(adapter_of(tmp_path / name) | critic_in(tmp_path / name / "last"))
    plain, checkpointed = learned
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


def test_a_smaller_last_batch_counts_as_what_it_is(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("ppo", tmp_path, max_samples=10, max_steps=2)
    result = duiqi.run("ppo", **settings)
    assert result.totals.epoch == 1.0


@pytest.mark.parametrize("critic", ["shared", "model"])
def test_half_precision_bases_start_from_ratio_one_too(workshop: Workshop, tmp_path: Path, critic: str) -> None:
    changes = {"dtype": "bfloat16", "ppo_epochs": 1, "mini_batch_size": 8, "critic": critic}
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path, **changes))
    rows = [line for line in lines(tmp_path / "metrics.jsonl") if "ratio" in line]
    assert rows[0]["kl"] == 0.0
    assert all(row["ratio"] == pytest.approx(1.0, abs=1e-3) for row in rows)


def test_full_fine_tuning_in_half_precision_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("sft", tmp_path, finetuning_type="full", dtype="bfloat16")
    with pytest.raises(SettingsError, match="loses every update smaller than the rounding of a weight"):
        duiqi.run("sft", **settings)


def test_a_score_that_is_not_finite_is_named(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "duiqi.rollouts.scoring.SharedScorer.score", lambda _, candidates: torch.full((len(candidates),), float("inf"))
    )
    with pytest.raises(GuardStop, match="scores: 8 of 8 numbers are nan or inf"):
        duiqi.run("ppo", **workshop.settings("ppo", tmp_path))
    kept = load_file(tmp_path / "anomaly" / "batch.safetensors")
    assert {"prompts", "answers", "old_log_probs"} <= set(kept)


def test_rounding_is_no_disagreement_of_sampler_and_trainer_and_another_policy_is() -> None:
    check_sampler(1e-9, 3, torch.float32)
    check_sampler(2e-5, 3, torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with pytest.raises(GuardStop, match="disagree at step 3"):
            check_sampler(5e-3, 3, dtype)

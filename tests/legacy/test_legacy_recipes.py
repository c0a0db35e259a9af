"""Recipes of other tools, and old flags among duiqi's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop

from duiqi.cli.main import main
from duiqi.errors import SettingsError
from duiqi.legacy.inline import modern
from duiqi.legacy.recipe import OwnRecipe, read_foreign
from duiqi.legacy.translation import Translation
from duiqi.settings.recipe import Given
from duiqi.settings.resolve import resolve
from duiqi.settings.stages import STAGES, StageConfig, StageName

SFT = """
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def changed(**values: str) -> str:
    """The recipe with other values, or more of them."""
    kept = [line for line in SFT.splitlines() if line.split(":")[0] not in values]
    return "\n".join([*kept, *(f"{name}: {value}" for name, value in values.items())])


def translated(file: Path, *overrides: Given) -> Translation:
    found = read_foreign(file, overrides)
    assert isinstance(found, Translation)
    return found


def config_of(found: Translation) -> StageConfig:
    found.refuse_troubles()
    assert found.command in STAGES
    return resolve(found.command, overrides=found.given())


class TestLLaMAFactory:
    def test_the_recipe_of_the_examples_runs_as_it_stands(self, written: Any) -> None:
        found = translated(written(SFT))
        config = config_of(found)
        assert config.data.dataset == "identity,alpaca_en_demo"
        assert (config.data.cutoff_len, config.data.val_size, config.run.eval_steps) == (2048, 0.1, 500)
        assert (config.model.dtype, config.tuning.lora_alpha, config.tuning.lora_dropout) == ("bfloat16", None, 0.0)
        assert (config.optimizer.warmup_ratio, config.optimizer.learning_rate) == (0.1, 1e-4)
        assert config.model.trust_remote_code is True
        keys = {line.split(":")[0] for line in SFT.splitlines() if ":" in line and not line.startswith("#")}
        assert keys - {flag for line in found.lines for flag in line.flags} == {"resume_from_checkpoint"}  # null

    def test_what_it_does_not_say_is_as_there(self, written: Any) -> None:
        config = config_of(
            translated(written("stage: sft\ndo_train: true\nmodel_name_or_path: m\ndataset: d\noutput_dir: o"))
        )
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.num_train_epochs, optimizer.lr_scheduler_type) == (
            5e-5,
            3.0,
            "linear",
        )
        assert (config.data.cutoff_len, config.run.save_steps, config.run.logging_steps) == (2048, 500, 500)

    @pytest.mark.parametrize(
        ("stage", "command"), [("pt", "pretrain"), ("sft", "sft"), ("rm", "rm"), ("ppo", "ppo"), ("dpo", "dpo")]
    )
    def test_every_stage_has_its_command(self, written: Any, stage: str, command: str) -> None:
        more = {"reward_model": "saves/rm"} if stage == "ppo" else {}
        found = translated(written(changed(stage=stage, **more)))
        assert found.command == command
        config_of(found)

    def test_ppo_learns_from_its_buffer(self, written: Any) -> None:
        more = {"reward_model": "saves/rm", "ppo_buffer_size": "4", "max_new_tokens": "64", "ppo_score_norm": "true"}
        found = translated(written(changed(stage="ppo", **more)))
        config = resolve("ppo", overrides=found.given())
        assert (config.ppo.rollout_batch_size, config.ppo.mini_batch_size, config.ppo.ppo_epochs) == (32, 8, 4)
        assert (config.ppo.kl_target, config.ppo.init_kl_coef, config.score.score_norm) == (6.0, 0.2, True)
        assert (config.sampling.max_new_tokens, config.sampling.top_p) == (64, 1.0)

    def test_full_fine_tuning_stays_in_float32(self, written: Any) -> None:
        found = translated(written(changed(finetuning_type="full")))
        assert config_of(found).tuning.finetuning_type == "full"
        assert "dtype" not in found.settings
        assert "lora_rank" not in found.settings

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("use_galore", "true", "AdamW is the optimiser"),
            ("optim", "adamw_8bit", "another optimiser"),
            ("deepspeed", "examples/deepspeed/ds_z3_config.json", "nothing to shard"),
            ("template", "vicuna", "duiqi has no template vicuna"),
            ("train_on_prompt", "true", "prompts are not"),
            ("eval_strategy", "epoch", "steps are counted here"),
            ("rope_scaling", "linear", "config.json"),
            ("tool_format", "qwen", "tools are not read"),
        ],
    )
    def test_a_key_without_meaning_is_refused_and_left_out_when_asked(
        self, written: Any, key: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = written(changed(**{key: value}))
        with pytest.raises(SettingsError, match=rf"recipe.yaml:\d+: {key}: {value}.*{said}"):
            translated(file).refuse_troubles()
        planned: list[Any] = []
        monkeypatch.setattr("duiqi.planning.printed.printed_plan", lambda *args, **_: str(planned.append(args)))
        assert main(["train", str(file), "--dry_run"]) == 2
        assert not planned
        assert main(["train", str(file), "--dry_run", "--strict", "false"]) == 0
        assert planned

    @pytest.mark.parametrize("key", ["use_galore", "packing", "deepspeed", "train_on_prompt", "streaming"])
    def test_a_key_that_is_off_asks_for_nothing(self, written: Any, key: str) -> None:
        assert not translated(written(changed(**{key: "false" if key != "deepspeed" else "null"}))).troubles

    def test_several_keys_without_meaning_are_all_named(self, written: Any) -> None:
        with pytest.raises(SettingsError) as caught:
            translated(written(changed(use_galore="true", template="ziya", rope_scaling="linear"))).refuse_troubles()
        assert all(word in str(caught.value) for word in ("3 settings", "use_galore", "template", "rope_scaling"))

    def test_a_misspelt_key_is_refused_with_its_line_and_the_nearest(self, written: Any) -> None:
        file = written("stage: sft\ndo_train: true\nlora_rnk: 8\n")
        with pytest.raises(
            SettingsError, match=r"recipe.yaml:3: lora_rnk: neither LLaMA-Factory nor[^>]*-> did you mean lora_rank"
        ):
            translated(file)

    def test_what_follows_the_recipe_wins_under_either_name(self, written: Any) -> None:
        file = written(SFT)
        overrides = [Given(name, value, where=name) for name, value in (("bf16", "false"), ("watch_limits", "x"))]
        config = config_of(translated(file, overrides[0], Given("dtype", "float32", where="dtype")))
        assert config.model.dtype == "float32"
        with pytest.raises(SettingsError, match="watch_limits: `duiqi sft` has no such setting"):
            translated(file, overrides[1])

    def test_a_list_of_values_is_read_as_one_with_commas(self, written: Any) -> None:
        found = translated(written(changed(dataset="[identity, demo]", lora_target="\n  - q_proj\n  - v_proj")))
        config = config_of(found)
        assert (config.data.dataset, config.tuning.lora_target) == ("identity,demo", "q_proj,v_proj")

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("{a: 1}", "found settings within settings -> write one value"),
            ("[{a: 1}]", "found a list of more than plain values -> write plain values: a,b"),
        ],
    )
    def test_what_is_no_plain_value_is_refused_with_its_line(self, written: Any, value: str, said: str) -> None:
        with pytest.raises(SettingsError) as caught:
            translated(written(f"stage: sft\ndo_train: true\ndataset: {value}\n"))
        assert "recipe.yaml:3: dataset" in str(caught.value)
        assert said in " ".join(str(caught.value).split())

    def test_settings_within_settings_are_refused_or_idle_as_their_name_is(self, written: Any) -> None:
        refused = translated(written(changed(lr_scheduler_kwargs="{num_cycles: 2}")))
        with pytest.raises(
            SettingsError, match=r"lr_scheduler_kwargs: {...}: the schedules here take no more settings"
        ):
            refused.refuse_troubles()
        resolve("sft", overrides=refused.given())  # goes on without it
        idle = translated(written(changed(gradient_checkpointing_kwargs="{use_reentrant: false}")))
        config_of(idle)
        (note,) = (line.note for line in idle.lines if "gradient_checkpointing_kwargs" in line.flags)
        assert note.startswith("no effect here")

    def test_no_key_of_a_service_is_taken(self, written: Any) -> None:
        with pytest.raises(SettingsError, match="no key is taken"):
            translated(written(changed(hf_hub_token="hf_x"))).refuse_troubles()


class TestOtherRecipes:
    def test_a_recipe_in_our_own_words_keeps_our_defaults(self, written: Any) -> None:
        file = written("stage: sft\nmodel_name_or_path: m\ndataset: d\noutput_dir: o\n")
        found = read_foreign(file, [Given("learning_rate", "3e-4", where="learning_rate")])
        assert isinstance(found, OwnRecipe)
        config = resolve("sft", recipe=file, overrides=found.overrides)
        assert (config.optimizer.num_train_epochs, config.optimizer.learning_rate) == (1.0, 3e-4)

    def test_a_stage_that_is_no_name_is_refused_with_its_line(self, written: Any) -> None:
        with pytest.raises(SettingsError, match=r"yaml:1: stage: expected the name of a stage"):
            read_foreign(written("stage: [sft]\nmodel_name_or_path: base"), ())

    def test_a_recipe_without_a_stage_is_asked_for_it(self, written: Any) -> None:
        with pytest.raises(SettingsError, match="does not say which stage"):
            read_foreign(written("dataset: d\n"), [])

    def test_a_configuration_of_chatglm_efficient_tuning_has_its_own_defaults(self, written: Any) -> None:
        found = translated(written('{"stage": "sft", "do_train": true, "checkpoint_dir": "a", "output_dir": "o"}'))
        assert found.tool.startswith("ChatGLM-Efficient-Tuning")
        assert (found.settings["template"], found.settings["max_source_length"]) == ("chatglm", "512")


class TestInline:
    def modern(self, stage: StageName, **flags: str) -> dict[str, str]:
        given, _ = modern(stage, [Given(name, value, where=f"--{name}") for name, value in flags.items()])
        return {item.key: str(item.value) for item in given}

    def test_own_settings_alone_stay_as_they_are(self) -> None:
        given = (Given("learning_rate", "1e-5", where="--learning_rate"),)
        assert modern("sft", given) == (given, None)

    def test_old_flags_become_settings_and_nothing_else_does(self) -> None:
        found = self.modern(
            "sft",
            do_train="true",
            checkpoint_dir="a,b",
            resume_lora_training="False",
            dev_ratio="0.1",
            fp16="true",
            max_source_length="128",
            lora_rank="4",
        )
        assert found == {
            "max_source_length": "128",
            "lora_rank": "4",
            "dtype": "float16",
            "adapter_name_or_path": "a,b",
            "create_new_adapter": "true",
            "val_size": "0.1",
        }

    def test_freeze_by_its_old_names(self) -> None:
        found = self.modern("sft", finetuning_type="freeze", num_layer_trainable="-3", name_module_trainable="qkv")
        assert found == {
            "finetuning_type": "freeze",
            "freeze_trainable_layers": "-3",
            "freeze_trainable_modules": "query_key_value",
        }

    def test_a_batch_of_ppo_is_rollouts(self) -> None:
        found = self.modern(
            "ppo", per_device_train_batch_size="4", gradient_accumulation_steps="4", max_target_length="64"
        )
        assert found == {"rollout_batch_size": "16", "mini_batch_size": "16", "max_new_tokens": "64"}

    @pytest.mark.parametrize(
        ("flag", "value", "said"),
        [
            ("dataloader_num_workers", "4", "no loader to tune"),
            ("predict_with_generate", "true", "samples nothing"),
            ("num_beams", "4", "sampled or greedy"),
            ("do_predict", "true", "run `duiqi generate`"),
        ],
    )
    def test_an_old_flag_without_effect_is_refused(self, flag: str, value: str, said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            self.modern("sft", **{flag: value})

    def test_what_acts_only_beside_a_setting_of_our_own_acts(self) -> None:
        found = self.modern("sft", val_size="0.1", evaluation_strategy="steps", eval_steps="5", save_strategy="no")
        assert found == {"val_size": "0.1", "eval_steps": "5", "save_steps": "0"}

    def test_an_old_flag_and_the_new_one_are_one_too_many(self) -> None:
        with pytest.raises(SettingsError, match=r"--dev_ratio 0\.2: no effect: val_size is said again"):
            self.modern("sft", val_size="0.1", dev_ratio="0.2")

    def test_what_no_tool_knows_is_left_to_those_who_check(self) -> None:
        assert self.modern("sft", lerning_rate="1") == {"lerning_rate": "1"}


def test_a_recipe_is_planned_and_then_run(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    settings = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": workshop.base,
        "dataset": "sft",
        "dataset_dir": workshop.data,
        "template": "llama3",
        "cutoff_len": 160,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "bf16": True,
        "preprocessing_num_workers": 4,
        "output_dir": str(tmp_path / "run"),
    }
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert main(["train", str(file), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "preprocessing_num_workers: 4" in " ".join(said.split())
    assert "steps     2, " in said
    assert not (tmp_path / "run").exists()
    assert main(["train", str(file)]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    argv = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))["argv"]
    assert argv[0].endswith("train") or "train" in argv


def test_a_dry_run_finds_data_that_is_missing(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"stage: sft\nmodel_name_or_path: {workshop.base}\ndataset: nothing\noutput_dir: {tmp_path}/run\n")
    assert main(["train", str(file), "--dry_run"]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "ppo"])
def test_every_stage_of_llama_factory_runs(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    datasets = {"pt": "pretrain", "sft": "sft", "rm": "rm", "dpo": "rm", "ppo": "ppo_prompts"}
    settings: dict[str, Any] = {
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "q_proj,v_proj",
        "model_name_or_path": workshop.base,
        "dataset": datasets[stage],
        "dataset_dir": workshop.data,
        "template": "default_of_the_model",
        "cutoff_len": 128,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "fp16": False,
        "report_to": "none",
        "output_dir": str(tmp_path / "run"),
    }
    if stage in ("dpo", "ppo"):
        settings["adapter_name_or_path"] = workshop.sft
    if stage == "ppo":
        settings |= {"reward_model": workshop.rm, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 2

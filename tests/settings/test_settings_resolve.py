"""Settings from recipes, flags and values: what wins, what is refused and in which words."""

from __future__ import annotations

import ast
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import duiqi
import duiqi.settings.groups as groups
from duiqi.errors import SettingsError
from duiqi.settings.conditions import ONLY_WITH, is_active, listing
from duiqi.settings.describe import SettingInfo, known_settings
from duiqi.settings.recipe import Given, read_recipe, to_yaml
from duiqi.settings.resolve import dump, resolve
from duiqi.settings.stages import STAGES, PPOConfig, StageConfig, StageName

SOURCE = Path(duiqi.__file__).parent
REQUIRED = {"model_name_or_path": "base", "dataset": "data.json", "output_dir": "runs/it"}
SCORED = {**REQUIRED, "reward_model": "runs/rm"}


def required_of(stage: StageName) -> dict[str, str]:
    return SCORED if stage == "ppo" else REQUIRED


def write_recipe(folder: Path, text: str) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    return recipe


def refusal(stage: StageName, recipe: Path | None = None, *overrides: Given, **values: Any) -> str:
    """The message with which these settings, added to the required ones, are refused."""
    with pytest.raises(SettingsError) as caught:
        resolve(stage, recipe=recipe, overrides=overrides, values={**required_of(stage), **values})
    return str(caught.value)


class TestSources:
    def test_a_later_source_wins(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "learning_rate: 1e-3\nlora_rank: 4\nseed: 1\n")
        overrides = (Given("lora_rank", "16", "--lora_rank"), Given("seed", "2", "seed"), Given("seed", "3", "seed"))
        config = resolve("ppo", recipe=recipe, overrides=overrides, values=SCORED)
        assert config.optimizer.learning_rate == 1e-3
        assert config.tuning.lora_rank == 16
        assert config.optimizer.seed == 3
        assert config.optimizer.lr_scheduler_type == "constant"
        assert config.data.cutoff_len == 1024

    def test_dashes_count_as_underscores(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "learning-rate: 0.5\n")
        override = Given("lora-rank", "3", "--lora-rank")
        config = resolve("sft", recipe=recipe, overrides=(override,), values=REQUIRED)
        assert (config.optimizer.learning_rate, config.tuning.lora_rank) == (0.5, 3)

    def test_a_json_file_is_a_recipe(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.json"
        recipe.write_text(json.dumps({**REQUIRED, "plot_loss": True, "lora_alpha": None, "learning_rate": 1e-5}))
        config = resolve("sft", recipe=recipe)
        assert (config.run.plot_loss, config.tuning.lora_alpha, config.optimizer.learning_rate) == (True, None, 1e-5)

    def test_an_empty_recipe_gives_nothing(self, tmp_path: Path) -> None:
        assert read_recipe(write_recipe(tmp_path, "# nothing yet\n")) == []

    def test_a_path_is_text(self, tmp_path: Path) -> None:
        assert resolve("sft", values={**REQUIRED, "output_dir": tmp_path}).run.output_dir == str(tmp_path)

    @pytest.mark.parametrize(
        ("line", "name", "value"),
        [
            ("learning_rate: 1e-5", "learning_rate", 1e-5),
            ("learning_rate: 1.0e-4", "learning_rate", 1e-4),
            ("learning_rate: 0", "learning_rate", 0.0),
            ("learning_rate: '2e-4'", "learning_rate", 2e-4),
            ("plot_loss: yes", "plot_loss", True),
            ("plot_loss: false", "plot_loss", False),
            ("system: yes", "system", "yes"),
            ("system: ''", "system", ""),
            ("system: none", "system", "none"),
            ("dataset: 2024", "dataset", "2024"),
            ("template: null", "template", None),
            ("template: none", "template", None),
            ("template:", "template", None),
            ("lora_alpha: None", "lora_alpha", None),
            ("lora_alpha: 32", "lora_alpha", 32),
            ("save_total_limit: null", "save_total_limit", None),
            ("source_prefix: |\n  请回答\n  下面的问题", "source_prefix", "请回答\n下面的问题"),
        ],
    )
    def test_a_value_is_read_by_the_type_of_its_setting(
        self, tmp_path: Path, line: str, name: str, value: object
    ) -> None:
        others = {key: given for key, given in REQUIRED.items() if key != name}
        config = resolve("sft", recipe=write_recipe(tmp_path, line), values=others)
        found = dump(config)[name]
        assert found == value
        assert type(found) is type(value)

    def test_the_stage_may_be_named_in_the_recipe(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "stage: ppo\n")
        assert isinstance(resolve("ppo", recipe=recipe, values=SCORED), PPOConfig)


class TestRefusals:
    def test_an_unknown_name_with_the_nearest_known_ones(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "seed: 1\nlora_rnk: 8\n")
        assert refusal("sft", recipe) == (
            f"{recipe}:2: lora_rnk: unknown setting\n  -> did you mean lora_rank or lora_target or lora_dropout?"
        )

    def test_an_unknown_name_that_is_near_to_nothing(self) -> None:
        assert refusal("sft", None, Given("do_train", "true", "--do_train")) == (
            "--do_train: unknown setting\n  -> remove it; `duiqi sft --help` lists the settings there are"
        )

    def test_a_setting_of_other_stages(self) -> None:
        assert refusal("sft", clip_range=0.2) == (
            "clip_range: has no effect in `sft`; it belongs to ppo\n  -> remove it"
        )
        assert "it belongs to dpo and ppo" in refusal("rm", ref_model="runs/sft")

    def test_a_setting_whose_condition_is_not_met_names_both_places(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "lora_rank: 4\n")
        assert refusal("sft", recipe, Given("finetuning_type", "full", "--finetuning_type")) == (
            f"{recipe}:1: lora_rank: has no effect with finetuning_type=full (--finetuning_type)\n"
            "  -> remove it, or set finetuning_type=lora"
        )
        recipe = write_recipe(tmp_path, "lora_rank: 8\nfinetuning_type: full\n")
        assert f"has no effect with finetuning_type=full ({recipe}:2)" in refusal("sft", recipe)
        words = "set pref_loss=sigmoid, ipo, hinge, kto_pair or kto"
        assert words in refusal("dpo", pref_loss="orpo", ref_model="runs/sft")

    @pytest.mark.parametrize(
        ("stage", "values", "words"),
        [
            (
                "sft",
                {"adapter_name_or_path": "runs/sft", "use_dora": True},
                "use_dora: has no effect with adapter_name_or_path=runs/sft and create_new_adapter=false: the adapter "
                "that this starts from is trained in the shape it has\n  -> remove it, or set create_new_adapter=true",
            ),
            (
                "rm",
                {"load_best_model_at_end": True},
                "has no effect with eval_dataset=null and val_size=0: there is nothing to evaluate on\n"
                "  -> remove it, or set eval_dataset or val_size",
            ),
            ("dpo", {"eval_steps": 5}, "eval_steps: has no effect with eval_dataset=null and val_size=0"),
            ("sft", {"eval_steps": 5}, "has no effect with eval_dataset=null and val_size=0"),
            ("ppo", {"num_eval_samples": 5}, "has no effect with eval_dataset=null and val_size=0"),
            ("pretrain", {"train_from_scratch": True}, "set finetuning_type=full"),
            ("ppo", {"kl_horizon": 5.0}, "has no effect with kl_target=0\n  -> remove it, or set kl_target above 0"),
            ("ppo", {"kl_target": 5.0, "init_kl_coef": 0.0}, "set init_kl_coef above 0"),
            (
                "ppo",
                {"score_baseline": 1.0},
                "has no effect with score_norm=true\n  -> remove it, or set score_norm=false",
            ),
            ("ppo", {"whiten_advantages": False, "advantage": "rloo"}, "has no effect with advantage=rloo"),
            ("ppo", {"gamma": 0.9, "advantage": "grpo"}, "set advantage=gae or reinforce++"),
            ("ppo", {"target_kl": 0.2, "ppo_epochs": 1}, "set ppo_epochs above 1"),
            (
                "sft",
                {"run_name": "first"},
                "run_name: has no effect with report_to=none: there is no tracker to tell\n"
                "  -> remove it, or set report_to=tensorboard, wandb, swanlab, trackio or mlflow",
            ),
            ("ppo", {"vllm_python": "python"}, "has no effect with rollout_engine=own\n  -> remove it, or set"),
            ("ppo", {"importance_cap": 3.0}, "set rollout_engine=vllm"),
            ("ppo", {"rollout_engine": "vllm", "generation_batch_size": 8}, "set rollout_engine=own"),
            (
                "ppo",
                {"rollout_engine": "vllm", "vllm_url": "http://localhost:8000", "vllm_memory_share": 0.5},
                "has no effect with vllm_python=null: there is no server that duiqi starts\n"
                "  -> remove it, or set vllm_python",
            ),
        ],
    )
    def test_what_would_be_ignored_is_refused(self, stage: StageName, values: dict[str, Any], words: str) -> None:
        assert words in refusal(stage, **values)

    @pytest.mark.parametrize(
        ("stage", "name"),
        [
            *(("pretrain", name) for name in ("template", "system", "source_prefix", "mask_history")),
            *(("pretrain", name) for name in ("max_source_length", "max_target_length")),
            *((stage, "mask_history") for stage in ("rm", "dpo", "ppo")),
            ("ppo", "max_target_length"),
            ("ppo", "gradient_accumulation_steps"),
        ],
    )
    def test_a_stage_has_no_setting_that_means_nothing_there(self, stage: StageName, name: str) -> None:
        assert f"{name}: has no effect in `{stage}`; it belongs to" in refusal(stage, **{name: "1"})

    def test_a_condition_on_a_setting_that_the_stage_does_not_have_is_met(self) -> None:
        config = resolve("ppo", values={**SCORED, "ref_model": "runs/sft"})
        assert config.reference.ref_model == "runs/sft"

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("lora_rank", "eight", "expected an integer above 0, found 'eight'"),
            ("lora_rank", "0", "expected an integer above 0, found '0'"),
            ("lora_rank", 8.5, "expected an integer above 0, found 8.5"),
            ("lora_rank", True, "expected an integer above 0, found true"),
            ("lora_rank", None, "expected an integer above 0, found null"),
            ("lora_rank", [8], "expected an integer above 0, found a list"),
            ("lora_rank", {"of": 8}, "expected an integer above 0, found settings within settings"),
            ("lora_alpha", "two", "expected an integer above 0, or null, found 'two'"),
            ("max_steps", "-1", "expected an integer of at least 0, found '-1'"),
            ("learning_rate", True, "expected a number of at least 0, found true"),
            ("learning_rate", "true", "expected a number of at least 0, found 'true'"),
            ("learning_rate", "nan", "expected a number of at least 0, found 'nan'"),
            ("learning_rate", "inf", "expected a finite number, found 'inf'"),
            ("warmup_ratio", "1.5", "expected a number from 0 to 1, found '1.5'"),
            ("plot_loss", "maybe", "expected true or false, found 'maybe'"),
            ("plot_loss", 1, "expected true or false, found 1"),
            ("dataset", None, "expected text, found null"),
            ("template", 3, "expected text, or null, found 3"),
            ("lr_scheduler_type", "cosin", "expected one of linear, cosine, constant, found 'cosin'"),
        ],
    )
    def test_a_wrong_value_is_described_in_plain_words(self, name: str, value: object, words: str) -> None:
        assert refusal("sft", None, **{name: value}).startswith(f"{name}: {words}\n  -> ")

    def test_the_remedy_of_a_wrong_value_is_the_setting_s_help(self) -> None:
        assert refusal("sft", lora_rank="eight").endswith("\n  -> Rank of the adapters.")

    def test_the_remedy_of_a_misspelt_choice_is_the_nearest_one(self) -> None:
        assert refusal("sft", lr_scheduler_type="cosin").endswith("\n  -> did you mean cosine?")

    @pytest.mark.parametrize(
        ("value", "remedy"),
        [
            ("wandbb", "did you mean wandb or swanlab?"),
            ("tensorboard, mlfow", "did you mean mlflow?"),
            ("none,wandb", "Trackers that are told"),
            ("", "Trackers that are told"),
        ],
    )
    def test_a_list_of_names_with_a_wrong_one(self, value: str, remedy: str) -> None:
        names = "tensorboard, wandb, swanlab, trackio, mlflow"
        message = refusal("sft", report_to=value)
        assert message.startswith(f"report_to: expected none, or names out of {names} with commas between, found")
        assert f"\n  -> {remedy}" in message

    def test_a_number_above_and_at_most(self) -> None:
        assert "expected a number above 0 and at most 1, found '0'" in refusal("ppo", top_p="0")

    def test_missing_settings_are_listed_all_at_once_with_their_help(self) -> None:
        with pytest.raises(SettingsError) as caught:
            resolve("rm", values={"dataset": "pairs.json"})
        assert str(caught.value) == (
            "2 settings cannot be used\n"
            "  model_name_or_path: required, but not given"
            " -> model_name_or_path=...: The base model: a directory or a hub name.\n"
            "  output_dir: required, but not given -> output_dir=...: Where the run is written."
        )

    def test_all_problems_are_reported_at_once(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "lora_rank: eight\ndo_train: true\npref_beta: 0.1\n")
        lines = refusal("sft", recipe).splitlines()
        assert lines[0] == "3 settings cannot be used"
        assert [line.split(" -> ")[0] for line in lines[1:]] == [
            f"  {recipe}:1: lora_rank: expected an integer above 0, found 'eight'",
            f"  {recipe}:2: do_train: unknown setting",
            f"  {recipe}:3: pref_beta: has no effect in `sft`; it belongs to dpo",
        ]

    def test_an_unknown_stage(self) -> None:
        with pytest.raises(SettingsError, match=r"there is no stage 'dpoo'\n  -> did you mean dpo"):
            resolve("dpoo", values=REQUIRED)  # type: ignore[call-overload]


class TestBrokenRecipes:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("seed: 1\nlora_rank: 4\nseed: 2\n", ":3: seed: given twice\n  -> it is also at {path}:1; keep one"),
            ("lora-rank: 4\nlora_rank: 4\n", ":2: lora_rank: given twice\n  -> it is also at {path}:1; keep one"),
            ("- seed\n- 1\n", ":1: a recipe is a list of `setting: value` lines, found a list"),
            ("just words\n", ":1: a recipe is a list of `setting: value` lines, found 'just words'"),
            ("seed: 1\n[a, b]: 2\n", ":2: a setting's name is text, found a list"),
            ("seed: 1\n  lora_rank: 4\n", ":2: not valid YAML: mapping values are not allowed here"),
            ("seed: [1\n", ":2: not valid YAML: "),
            ("seed: 1\n---\nseed: 2\n", ":2: not valid YAML: but found another document"),
            ("seed: !!python/name:os.system 1\n", ":1: values have no tags here, found tag:yaml.org,2002:python/name"),
            ("model:\n  dtype: auto\n", ":1: model: unknown setting"),
            ("seed:\n  value: 1\n", ":1: seed: expected an integer of at least 0, found settings within settings"),
            ("stage: ppo\n", ":1: stage: this recipe is for ppo, the command is sft\n  -> run it with `duiqi ppo`"),
            ("stage: kto\n", ":1: stage: this recipe is for kto, the command is sft\n  -> the stages are pretrain, "),
        ],
    )
    def test_a_broken_recipe_is_refused_with_its_line(self, tmp_path: Path, text: str, words: str) -> None:
        recipe = write_recipe(tmp_path, text)
        assert refusal("sft", recipe).startswith(f"{recipe}{words.format(path=recipe)}")

    def test_a_missing_recipe(self, tmp_path: Path) -> None:
        missing = tmp_path / "no.yaml"
        assert refusal("sft", missing) == f"{missing}: there is no such recipe\n  -> give the path of a YAML file"

    def test_a_directory_as_recipe(self, tmp_path: Path) -> None:
        assert "a recipe is a file, this is a directory\n  -> give the path of a YAML file, for a run" in refusal(
            "sft", tmp_path
        )

    def test_a_recipe_in_another_encoding(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_bytes("system: 你好".encode("gbk"))
        assert refusal("sft", recipe) == f"{recipe}: not UTF-8 text (byte 8)\n  -> save it as UTF-8"

    def test_a_control_character(self, tmp_path: Path) -> None:
        assert "not valid YAML: unacceptable character" in refusal("sft", write_recipe(tmp_path, "system: \x07"))


def values_of(setting: SettingInfo) -> st.SearchStrategy[Any]:
    """Values that the setting allows, as Python values."""
    numbers = {
        "integer above 0": st.integers(1, 10**9),
        "integer of at least 64": st.integers(64, 10**9),
        "integer of at least 0": st.integers(0, 10**9),
        "integer from 4 to 8": st.integers(4, 8),
        "integer": st.integers(-(10**9), 10**9),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "number above 0": st.floats(0, 1e300, exclude_min=True),
        "number of at least 1": st.floats(1, 1e300),
        "number above 1": st.floats(1, 1e300, exclude_min=True),
        "number of at least 0": st.floats(0, 1e300),
        "number from 0 to 1": st.floats(0, 1),
        "number from 0 to 0.5": st.floats(0, 0.5),
        "number above 0 and at most 1": st.floats(0, 1, exclude_min=True),
        "true or false": st.booleans(),
        "text": st.text(st.characters(exclude_categories=["Cs"]))
        | st.sampled_from(["null", "none", "~", "1e-5", "no"]),
    }
    values = (
        st.sampled_from(setting.choices) if setting.choices else numbers[setting.type_text.removesuffix(", or null")]
    )
    if not setting.allows_none:
        return values
    # Where null is a value, the words for it are no text: `configs` would take a setting for given that is not.
    return values.filter(lambda value: str(value).lower() not in ("null", "none")) | st.none()


@st.composite
def configs(draw: st.DrawFn) -> tuple[StageName, StageConfig]:
    stage = draw(st.sampled_from(get_args(StageName)))
    known = {setting.name: setting for setting in known_settings(stage)}
    chosen = draw(st.sets(st.sampled_from(sorted(known)), max_size=12)) | required_of(stage).keys()
    values = {name: draw(values_of(known[name])) for name in sorted(chosen)}
    everything = {name: setting.default for name, setting in known.items()} | values
    while inactive := [name for name in values if not is_active(name, everything)]:
        for name in inactive:
            everything[name] = known[name].default
            del values[name]
    return stage, resolve(stage, values=values)


class TestDump:
    @settings(max_examples=60, deadline=None)
    @given(configs())
    def test_written_as_yaml_and_resolved_again_it_is_the_same_config(
        self, tmp_path_factory: pytest.TempPathFactory, drawn: tuple[StageName, StageConfig]
    ) -> None:
        stage, config = drawn
        text = to_yaml(dump(config))
        assert resolve(stage, recipe=write_recipe(tmp_path_factory.mktemp("dump"), text)) == config

    def test_it_has_the_order_of_the_help(self) -> None:
        vllm = {"rollout_engine": "vllm", "vllm_python": "python"}
        others = {"val_size": 1, "kl_target": 6.0, "score_norm": False, "report_to": "wandb"}
        config = resolve("ppo", values={**SCORED, **vllm, **others})
        known = [setting.name for setting in known_settings("ppo")]
        dumped = list(dump(config))
        assert dumped == [name for name in known if name in dumped]
        idle = {"generation_batch_size", "quantization_type", "double_quantization", "add_tokens"}
        tuning = {"freeze_trainable_layers", "freeze_trainable_modules", "pre_seq_len", "prefix_projection"}
        scores = {"overlong_penalty", "short_answer_penalty", "score_std_coef"}
        mixing = {"mix_strategy", "interleave_probs"}
        assert set(known) - set(dumped) == idle | tuning | scores | mixing

    def test_it_leaves_out_what_has_no_effect(self) -> None:
        config = resolve("dpo", values={**REQUIRED, "finetuning_type": "full", "pref_loss": "orpo"})
        dumped = dump(config)
        assert not dumped.keys() & {"lora_rank", "use_dora", "simpo_gamma", "dpo_label_smoothing", "ref_model"}
        assert "pref_beta" in dumped

    def test_with_an_adapter_to_start_from_it_leaves_out_the_shape_of_new_ones(self) -> None:
        config = resolve("sft", values={**REQUIRED, "adapter_name_or_path": "runs/sft"})
        assert not [name for name in dump(config) if name.startswith(("lora_", "use_"))]


class TestRepeatingARun:
    """A run's own config.yaml, with another choice that leaves some of its settings without effect."""

    @pytest.mark.parametrize(
        ("stage", "change"),
        [
            ("ppo", {"advantage": "rloo"}),
            ("ppo", {"ppo_epochs": "1"}),
            ("dpo", {"pref_loss": "simpo"}),
            ("rm", {"finetuning_type": "full"}),
            ("sft", {"adapter_name_or_path": "runs/sft"}),
        ],
    )
    def test_defaults_that_lose_their_effect_are_dropped(
        self, tmp_path: Path, stage: StageName, change: dict[str, str]
    ) -> None:
        recipe = write_recipe(tmp_path, yaml.safe_dump(dump(resolve(stage, values=required_of(stage)))))
        overrides = [Given(name, value, name) for name, value in change.items()]
        expected = resolve(stage, values={**required_of(stage), **change})
        assert resolve(stage, recipe=recipe, overrides=overrides) == expected

    def test_a_choice_that_loses_its_effect_is_refused_with_both_places(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, "critic: adapter\nlam: 0.95\n")
        message = refusal("ppo", recipe, Given("advantage", "rloo", "--advantage"))
        assert message == (
            f"{recipe}:1: critic: has no effect with advantage=rloo (--advantage)\n  -> remove it, or set advantage=gae"
        )

    def test_a_default_given_beside_what_switches_it_off_is_refused(self) -> None:
        overrides = (Given("advantage", "rloo", "--advantage"), Given("lam", "0.95", "--lam"))
        assert refusal("ppo", None, *overrides).startswith("--lam: has no effect with advantage=rloo (--advantage)")


class TestKnownSettings:
    @pytest.mark.parametrize("stage", get_args(StageName))
    def test_every_setting_has_help_and_a_type_in_words(self, stage: StageName) -> None:
        for setting in known_settings(stage):
            assert setting.help.endswith("."), setting.name
            assert setting.type_text
            assert setting.group

    @pytest.mark.parametrize("stage", get_args(StageName))
    def test_every_default_is_a_value_of_its_setting(self, stage: StageName) -> None:
        defaults = {setting.name: setting.default for setting in known_settings(stage) if not setting.required}
        everything = {**defaults, **required_of(stage)}
        active = {name: value for name, value in defaults.items() if is_active(name, everything)}
        assert resolve(stage, values={**required_of(stage), **active}) == resolve(stage, values=required_of(stage))

    def test_a_stage_s_own_default_is_the_one_described(self) -> None:
        rates = {stage: s.default for stage in STAGES for s in known_settings(stage) if s.name == "learning_rate"}
        assert rates == {"pretrain": 3e-4, "sft": 1e-4, "rm": 5e-5, "dpo": 5e-5, "ppo": 1e-5}

    def test_names_are_unique_over_all_groups(self) -> None:
        classes = [value for name, value in vars(groups).items() if name.endswith("Settings")]
        assert len(classes) == 19
        names = [field.name for group in classes for field in fields(group)]
        assert len(names) == len(set(names))

    def test_a_condition_names_settings_and_values_that_exist(self) -> None:
        known = {setting.name: setting for stage in STAGES for setting in known_settings(stage)}
        for name, conditions in ONLY_WITH.items():
            assert name in known
            for condition in conditions:
                assert known.keys() >= set(condition.others)
                for choices in filter(None, (known[other].choices for other in condition.others)):
                    passing = [choice for choice in choices if condition.passes(choice)]
                    assert condition.words == f"{condition.others[0]}={listing(passing, last='or')}"

    def test_every_setting_is_read_somewhere(self) -> None:
        known = {setting.name for stage in STAGES for setting in known_settings(stage)}
        assert len(known) == 136
        sources = [path for path in SOURCE.rglob("*.py") if path.parent.name != "settings"]
        read = {
            node.attr
            for path in sources
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
        }
        assert known - read == set()

"""Old command lines: every one that people typed is understood, with its old meaning."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.legacy.commands import BASELINE, COMMANDS, FIRST_THREE, PERSONA, Cell, cells

from duiqi.cli.arguments import parse
from duiqi.cli.options import settings_of, words_of
from duiqi.errors import SettingsError
from duiqi.legacy.answering import ANSWERING_FLAGS, SETTINGS_OF
from duiqi.legacy.dialect import Dialect, Old
from duiqi.legacy.dialects import KNOWN_SCRIPTS, dialect_of
from duiqi.legacy.interpreter import interpret
from duiqi.legacy.old_command import OldCommand, read_command
from duiqi.legacy.printed import translation_lines
from duiqi.legacy.rules import Becomes, Refused, Together
from duiqi.legacy.trainer import TRAINER
from duiqi.legacy.translation import Translation
from duiqi.legacy.translation import translate as translate_flags
from duiqi.settings.recipe import Given
from duiqi.settings.resolve import resolve
from duiqi.settings.stages import STAGES, StageConfig


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no old path leads anywhere."""
    monkeypatch.chdir(tmp_path)


def translate(command: str, **later: str) -> Translation:
    return interpret([command], [Given(name, value, where=name) for name, value in later.items()])


def config_of(found: Translation) -> StageConfig:
    assert found.command in STAGES
    return resolve(found.command, overrides=found.given())


def check(found: Translation) -> None:
    """Every flag is in the table, what is set is taken by the command, and the command line says the same."""
    spoken = {flag for line in found.lines for flag in line.flags} | {f for t in found.troubles for f in t.flags}
    assert set(found.old.said) <= spoken
    words = found.words[1:]
    arguments = parse(words, words_of(found.command))
    if found.command in STAGES:
        assert resolve(found.command, overrides=arguments.given) == config_of(found)
    else:
        assert set(found.settings) <= {setting.name for setting in settings_of(found.command)}
        assert len(arguments.positionals) == (1 if found.command == "export" else 2)


class TestTheCorpus:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_is_understood_or_refused_with_what_to_use(self, name: str) -> None:
        more = {"dataset": "prompts", "report_to": "none"} if name == "S1-PPO" else {}
        if name == "S4-DPO":
            with pytest.raises(
                SettingsError, match=r"--template default: duiqi has no template default\n  -> set template="
            ):
                translate(COMMANDS[name]).refuse_troubles()
            more["template"] = "llama2_zh"
        found = translate(COMMANDS[name], **more)
        found.refuse_troubles()
        check(found)

    @pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.directory)
    def test_every_cell_of_the_matrix_trains_and_is_evaluated_twice(self, cell: Cell) -> None:
        trained = translate(cell.train)
        for command in (cell.train, cell.evaluation("koikake_all_test", "k"), cell.evaluation("alpaca_gpt4_zh", "a")):
            found = translate(command)
            found.refuse_troubles()
            check(found)
        assert config_of(trained).data.max_samples == 10000

    def test_the_matrix_has_twenty_two_cells_and_a_baseline(self) -> None:
        assert len({cell.directory for cell in cells()}) == 22
        for command in BASELINE:
            found = translate(command)
            assert found.settings["model"] == "THUDM/chatglm-6b"
            check(found)

    def test_it_has_every_family(self) -> None:
        assert len(COMMANDS) == 22
        assert {translate(c, template="raw").command for n, c in COMMANDS.items() if not n.endswith("PPO")} == {
            "sft",
            "rm",
            "dpo",
            "ppo",
            "generate",
        }


class TestOldMeanings:
    def test_what_a_command_does_not_say_is_what_it_was_in_may_2023(self) -> None:
        config = config_of(translate("python src/finetune.py --do_train --output_dir out"))
        tuning, data, optimizer = config.tuning, config.data, config.optimizer
        assert (tuning.finetuning_type, tuning.lora_rank, tuning.lora_alpha, tuning.lora_dropout) == (
            "lora",
            8,
            32,
            0.1,
        )
        assert (tuning.lora_target, data.dataset, data.cutoff_len) == ("query_key_value", "alpaca_zh", 1024)
        assert (optimizer.learning_rate, optimizer.num_train_epochs, optimizer.lr_scheduler_type) == (
            5e-5,
            3.0,
            "linear",
        )
        assert (config.run.save_steps, config.run.save_total_limit) == (500, None)
        assert config.model.model_name_or_path == "THUDM/chatglm-6b"

    def test_the_first_three_layers_were_nine_and_the_table_says_so(self) -> None:
        found = translate(COMMANDS["S3-5"])
        (line,) = (line for line in found.lines if line.setting == "lora_target")
        assert line.value == FIRST_THREE
        assert "10, 11, 12, 20, 21, 22" in line.note

    @pytest.mark.parametrize(("count", "module", "expected"), [(3, "mlp", "mlp"), (-3, "qkv", "query_key_value")])
    def test_freeze_names_its_layers(self, count: int, module: str, expected: str) -> None:
        found = translate(
            f"python src/finetune.py --do_train --finetuning_type freeze --num_layer_trainable {count} "
            f"--name_module_trainable {module} --output_dir out"
        )
        tuning = config_of(found).tuning
        assert (tuning.freeze_trainable_layers, tuning.freeze_trainable_modules) == (count, expected)
        assert "lora_rank" not in found.settings

    def test_p_tuning_has_16_slots_in_may_and_64_in_the_last_version(self) -> None:
        of_may = translate("python src/finetune.py --do_train --finetuning_type p_tuning --output_dir out")
        of_last = translate(
            "python src/train_bash.py --stage sft --do_train --finetuning_type p_tuning --output_dir out"
        )
        assert config_of(of_may).tuning.pre_seq_len == 16
        assert config_of(of_last).tuning.pre_seq_len == 64

    def test_a_checkpoint_list_goes_on_with_the_last_or_begins_above_all(self) -> None:
        command = "python src/finetune.py --do_train --checkpoint_dir a,b --lora_rank 4 --output_dir out"
        goes_on = translate(command)
        assert goes_on.settings["adapter_name_or_path"] == "a,b"
        assert "lora_rank" not in goes_on.settings  # the last one has its shape
        begins = config_of(translate(f"{command} --resume_lora_training False"))
        assert (begins.model.create_new_adapter, begins.tuning.lora_rank) == (True, 4)

    def test_ppo_learns_once_from_four_answers_as_it_did(self) -> None:
        config = resolve("ppo", overrides=translate(COMMANDS["S0-PPO"]).given())
        ppo = config.ppo
        assert (ppo.rollout_batch_size, ppo.mini_batch_size, ppo.ppo_epochs) == (4, 4, 1)
        assert (ppo.init_kl_coef, ppo.kl_target, ppo.kl_horizon, ppo.lam, ppo.vf_coef) == (0.2, 6.0, 10000.0, 0.95, 0.1)
        assert (ppo.clip_range, ppo.clip_range_high, ppo.dual_clip) == (0.2, 0.2, None)
        assert (config.sampling.max_new_tokens, config.prompt.max_source_length) == (128, 256)
        assert (config.optimizer.lr_scheduler_type, config.score.score_norm) == ("constant", False)
        assert config.prompt.source_prefix == PERSONA

    def test_ppo_of_the_last_version_learns_from_rows_times_accumulation(self) -> None:
        config = resolve("ppo", overrides=translate(COMMANDS["C-covid-ppo"]).given())
        assert (config.ppo.rollout_batch_size, config.ppo.mini_batch_size) == (16, 16)
        assert config.optimizer.lr_scheduler_type == "cosine"
        assert config.model.create_new_adapter is True

    def test_two_processes_become_twice_the_accumulation(self) -> None:
        batch = resolve("sft", overrides=translate(COMMANDS["C-adgen"]).given()).batch
        assert (batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == (2, 4)
        batch = resolve("rm", overrides=translate(COMMANDS["S1-RM"]).given()).batch
        assert (batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == (10, 3)

    def test_prediction_is_answering_a_file(self) -> None:
        found = translate(COMMANDS["C-covid-predict"])
        assert found.command == "generate"
        assert found.settings["model"] == "covid_ppo"
        assert found.settings["file"] == "covid_test"
        assert found.settings["output_file"] == "covid_predict/generated_predictions.jsonl"
        assert (found.settings["batch_size"], found.settings["max_samples"]) == ("8", "50")

    def test_a_pair_that_was_told_apart_by_bars_is_told_by_commas(self) -> None:
        found = translate(
            "python reward_modeling.py --model_name m --lora_target_models q_proj|v_proj --max_length 256"
        )
        assert (found.settings["lora_target"], found.settings["cutoff_len"]) == ("q_proj,v_proj", "256")
        assert found.tool.startswith("LLM-Tuning")

    def test_the_rl_training_of_two_tools_is_told_by_its_flags(self) -> None:
        theirs = translate("python rl_training.py --model_name m --reward_model_name r", dataset="d")
        assert theirs.tool.startswith("TRL stack_llama")
        assert theirs.settings["kl_target"] == "6"
        assert translate(COMMANDS["S1-PPO"], dataset="d").settings["init_kl_coef"] == "0.5"

    def test_the_tokeniser_of_llm_tuning_is_left_out(self) -> None:
        with pytest.raises(
            SettingsError, match=r"leave this step out; train with dataset=data/hc3.jsonl cutoff_len=2000"
        ):
            translate("python tokenize_dataset_rows.py --input_file hc3.jsonl --max_seq_length 2000 --prompt_key q")

    def test_a_configuration_file_of_the_old_tool_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"do_train": true, "checkpoint_dir": "a", "output_dir": "out"}')
        found = translate("python src/finetune.py config.json")
        assert found.command == "sft"
        assert found.settings["adapter_name_or_path"] == "a"
        assert found.settings["max_source_length"] == "512"


def files(directory: str, *names: str, **contents: str) -> None:
    """A directory with files of these names, and of those whose contents count."""
    Path(directory).mkdir()
    for name in names:
        Path(directory, name).touch()
    for stem, text in contents.items():
        Path(directory, f"{stem}.json").write_text(text)


class TestWhoAnswers:
    PREDICT = "python src/finetune.py --do_predict --dataset d --model_name_or_path glm-6b --checkpoint_dir "

    def test_a_run_brings_all_and_says_its_template(self) -> None:
        files("a", "duiqi.json", "adapter_config.json")
        found = translate(f"{self.PREDICT} below,a")
        check(found)
        assert found.settings["model"] == "a"
        assert "template" not in found.settings

    @pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.bin"])
    def test_an_adapter_of_another_trainer_stands_on_the_base_and_is_told_its_template(self, file: str) -> None:
        files("a", file)
        found = translate(f"{self.PREDICT} a")
        check(found)
        assert (found.settings["model"], found.settings["template"]) == ("glm-6b,a", "chatglm")

    def test_layers_that_freeze_tuning_trained_stand_on_the_base(self) -> None:
        files("a", "config.json", "pytorch_model.bin", finetuning_args='{"finetuning_type": "freeze"}')
        found = translate(f"{self.PREDICT} a")
        assert (found.settings["model"], found.settings["template"]) == ("glm-6b,a", "chatglm")

    def test_a_full_model_is_its_own_base_and_is_told_its_template(self) -> None:
        files("a", "config.json", "pytorch_model.bin", finetuning_args='{"finetuning_type": "full"}')
        found = translate(f"{self.PREDICT} a")
        check(found)
        assert (found.settings["model"], found.settings["template"]) == ("a", "chatglm")
        (note,) = (line.note for line in found.lines if line.setting == "model")
        assert note == "a full model is its own base"

    @pytest.mark.parametrize("stage", ["sft", "rm"])
    def test_of_several_adapters_of_2023_none_is_dropped_in_silence(self, stage: str) -> None:
        for name in ("sft1", "ppo1"):
            files(name, "adapter_config.json", "adapter_model.bin")
        found = translate(
            f"python src/train_bash.py --stage {stage} --do_predict --dataset d --model_name_or_path glm "
            "--checkpoint_dir sft1,ppo1"
        )
        with pytest.raises(SettingsError, match="ppo1 does not say that it stands on sft1") as caught:
            found.refuse_troubles()
        assert "`duiqi export glm,sft1 --output_dir MERGED`" in str(caught.value)
        assert "--model_name_or_path MERGED --checkpoint_dir ppo1" in str(caught.value)

    def test_a_full_model_above_others_is_asked_to_be_named_alone(self) -> None:
        files("full", "config.json")
        with pytest.raises(SettingsError, match="name it alone: full"):
            translate(f"{self.PREDICT} sft1,full").refuse_troubles()


class TestWhatAnsweringDoesNotTake:
    @pytest.mark.parametrize("do", ["--stage sft --do_predict", "--stage rm --do_eval"])
    @pytest.mark.parametrize(
        ("flag", "reason"),
        [("quantization_bit 4", "is not quantised"), ("max_source_length 256", "takes no length of prompts")],
    )
    def test_what_changed_the_old_answers_is_refused(self, do: str, flag: str, reason: str) -> None:
        found = translate(f"python src/train_bash.py {do} --dataset d --checkpoint_dir a --{flag}")
        with pytest.raises(SettingsError, match=f"--{flag}: what answers or scores {reason}"):
            found.refuse_troubles()
        check(found)

    def test_no_quantisation_is_what_there_is(self) -> None:
        command = "python src/train_bash.py --stage sft --do_predict --dataset d --quantization_bit none"
        translate(command).refuse_troubles()

    @pytest.mark.parametrize("more", ["", " --template default"])  # the last version's words, and its successor's
    def test_a_note_says_of_the_old_code_only_what_is_so(self, more: str) -> None:
        found = translate(
            "python src/train_bash.py --stage sft --do_predict --dataset d --model_name_or_path m "
            f"--checkpoint_dir a --finetuning_type freeze --lora_rank 4{more}"
        )
        notes = {flag: line.note for line in found.lines for flag in line.flags}
        assert notes["finetuning_type"] == "no effect here: the files of the adapter or model say it"
        assert notes["lora_rank"] == "no effect in `duiqi generate`"
        assert not any("nor in the old one" in note for note in notes.values())


class TestDeepSpeedChat:
    STEP3 = (
        "deepspeed --master_port 12346 training/step3_rlhf_finetuning/main.py --data_path Dahoas/rm-static "
        "--data_split 2,4,4 --actor_model_name_or_path actor --critic_model_name_or_path critic "
        "--per_device_generation_batch_size 8 --per_device_training_batch_size 4 --generation_batches 2 --ppo_epochs 1 "
        "--max_answer_seq_len 128 --max_prompt_seq_len 128 --actor_learning_rate 9.65e-6 --critic_learning_rate 5e-6 "
        "--actor_zero_stage 3 --critic_zero_stage 3 --enable_hybrid_engine --enable_ema --output_dir out"
    )

    def test_what_another_step_would_be_is_refused_flag_by_flag(self) -> None:
        with pytest.raises(SettingsError) as caught:
            translate(self.STEP3).refuse_troubles()
        message = str(caught.value)
        assert "3 settings have no meaning here" in message
        assert "duiqi data split FILE --parts 2,4,4 --output_dir DIR" in message
        assert "--critic_learning_rate 5e-6" in message
        assert "enable_ema" in message

    def test_the_rest_is_step_three(self) -> None:
        found = translate(self.STEP3)
        config = resolve("ppo", overrides=found.given())
        assert (config.ppo.rollout_batch_size, config.ppo.mini_batch_size, config.ppo.init_kl_coef) == (16, 4, 0.1)
        assert (config.data.dataset, config.score.reward_model) == ("hub:Dahoas/rm-static", "critic")
        assert (config.tuning.finetuning_type, config.ppo.critic) == ("full", "model")
        assert (config.ppo.whiten_advantages, config.score.score_clip) == (False, 5.0)

    def test_step_one_with_adapters_takes_their_rate(self) -> None:
        found = translate(
            "deepspeed training/step1_supervised_finetuning/main.py --model_name_or_path m --data_path local/jsonfile "
            "--lora_dim 64 --lora_module_name layers. --only_optimize_lora --learning_rate 1e-3 --zero_stage 2 "
            "--output_dir out --num_train_epochs 2 --dtype bf16"
        )
        check(found)
        config = resolve("sft", overrides=found.given())
        assert (config.tuning.lora_rank, config.tuning.lora_alpha, config.optimizer.learning_rate) == (64, 1, 5e-4)
        assert (config.data.dataset, config.model.dtype) == ("data/train.json", "bfloat16")

    @pytest.mark.parametrize(("flag", "stage"), [("--actor_model_name_or_path a", "ppo"), ("--eval_interval 9", "rm")])
    def test_a_step_without_its_folder_is_told_by_its_flags(self, flag: str, stage: str) -> None:
        assert dialect_of(read_command([f"deepspeed main.py {flag}"])).command(Old({})) == stage

    def test_one_that_says_nothing_is_asked_for_its_folder(self) -> None:
        with pytest.raises(SettingsError, match="does not say which step"):
            translate("deepspeed main.py --output_dir out")


class TestReadingACommand:
    @pytest.mark.parametrize(
        ("before", "processes"),
        [
            ("python", 1),
            ("CUDA_VISIBLE_DEVICES=0,1 WANDB_DISABLED=true python3", 1),
            ("nohup python -u", 1),
            ("/opt/conda/bin/python3.10", 1),
            ("torchrun --nproc_per_node 4", 4),
            ("torchrun --standalone --nproc_per_node=2", 2),
            ("python -m torch.distributed.launch --nproc_per_node=3", 3),
            ("accelerate launch --config_file acc.yaml --num_processes 2", 2),
            ("CUDA_VISIBLE_DEVICES=0,1 accelerate launch", 2),
            ("deepspeed --num_gpus=8 --master_port 9901", 8),
            ("deepspeed --include localhost:0", 1),
        ],
    )
    def test_what_stands_before_the_script_is_the_launcher_s(self, before: str, processes: int) -> None:
        found = read_command(shlex.split(f"{before} src/train_rm.py --do_train --lora_rank=4 --max_samples -1"))
        assert found.script == "src/train_rm.py"
        assert found.flags == {"do_train": "true", "lora_rank": "4", "max_samples": "-1"}
        assert found.processes == processes

    def test_line_continuations_are_nothing(self) -> None:
        assert read_command(["python a.py \\\n  --do_train \\\n --fp16"]).flags == {"do_train": "true", "fp16": "true"}
        assert read_command(["python", "a.py", "\\", "--fp16"]).flags == {"fp16": "true"}

    @pytest.mark.parametrize(
        ("text", "value"),
        [("--source_prefix ''", ""), ("--source_prefix=", ""), ("--source_prefix ' Q: '", " Q: ")],
    )
    def test_a_value_of_nothing_or_white_space_stays_as_it_is(self, text: str, value: str) -> None:
        command = f"python a.py {text} \\ \n --fp16 \\\r\n --x 1 \\"
        found = {"source_prefix": value, "fp16": "true", "x": "1"}
        assert read_command([command]).flags == found
        words = ["python", "a.py", "--source_prefix", value, "\\", "--fp16", "\\\n", "--x", "1"]
        assert read_command(words).flags == found

    def test_an_empty_source_prefix_is_no_prefix(self) -> None:
        found = translate("python src/finetune.py --do_train --source_prefix '' --output_dir out")
        check(found)
        assert found.settings["source_prefix"] == ""
        assert "source_prefix: ''" in "\n".join(translation_lines(found))

    @pytest.mark.parametrize("end", ["> log.txt", "2>&1", "| tee log", "&& python b.py"])
    def test_what_belongs_to_the_shell_is_refused(self, end: str) -> None:
        with pytest.raises(SettingsError, match="belongs to the shell"):
            read_command([f"python a.py --do_train {end}"])

    def test_several_values_are_joined(self) -> None:
        assert read_command(["python a.py --data_path one two --x 1"]).flags["data_path"] == "one,two"

    @pytest.mark.parametrize("words", [["python"], ["--do_train"], ["CUDA_VISIBLE_DEVICES=0"]])
    def test_a_command_without_a_script_is_asked_for_one(self, words: list[str]) -> None:
        with pytest.raises(SettingsError, match="no script is named"):
            read_command(words)

    @pytest.mark.parametrize(
        ("command", "instead"),
        [
            ("python src/infer.py --checkpoint_dir a", "duiqi chat RUN"),
            ("python src/export_model.py", "duiqi export RUN"),
            ("llamafactory-cli webui", "duiqi train RECIPE.yaml"),
            ("python src/train_rn.py", "did you mean train_rm.py"),
            ("bash scripts/train_policy_model.sh", "the commands that stand in it"),
            ("./scripts/train_policy_model.sh", "the commands that stand in it"),
        ],
    )
    def test_other_scripts_are_refused_with_what_to_use(self, command: str, instead: str) -> None:
        with pytest.raises(SettingsError, match=instead):
            translate(command)

    def test_an_unknown_flag_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(SettingsError, match=r"--lora_rnk: unknown in ChatGLM[^>]*-> did you mean lora_rank"):
            translate("python src/finetune.py --do_train --lora_rnk 8")


class TestTheTables:
    @pytest.mark.parametrize("script", KNOWN_SCRIPTS)
    def test_every_flag_becomes_a_setting_that_there_is_or_says_why_not(self, script: str) -> None:
        path = "step1/main.py" if script == "main.py" else script
        dialect = dialect_of(OldCommand(path))
        known = {setting.name for stage in STAGES for setting in settings_of(stage)} | {"model", "file"}
        for flag, rule in dialect.flags.items():
            if isinstance(rule, Becomes):
                assert rule.setting in known, flag
            elif isinstance(rule, Refused):
                assert rule.reason
                assert rule.remedy
            elif not isinstance(rule, Together):
                assert rule, flag
        assert set(dialect.defaults) <= dialect.flags.keys() | {
            "lora_alpha",
            "lora_dropout",
            "lora_target",
            "template",
        } | {"cutoff_len"}

    def test_every_argument_of_transformers_trainer_is_known(self) -> None:
        from transformers import Seq2SeqTrainingArguments

        names = {field.name for field in fields(Seq2SeqTrainingArguments)}
        assert len(names) > 90
        assert names <= TRAINER.keys() | ANSWERING_FLAGS.keys()

    def test_what_answers_has_the_settings_that_are_written_down(self) -> None:
        for command, names in SETTINGS_OF.items():
            assert set(names) == {setting.name for setting in settings_of(command)}


def some_flags(dialect: Dialect) -> st.SearchStrategy[dict[str, str]]:
    values = st.sampled_from(
        ["true", "False", "none", "1", "8", "-1", "0.1", "sft", "lora", "full", "a,b", "steps", "x"]
    )
    return st.dictionaries(st.sampled_from(sorted(dialect.flags)), values, max_size=8)


@given(data=st.data(), script=st.sampled_from([s for s in KNOWN_SCRIPTS if s != "tokenize_dataset_rows.py"]))
@settings(max_examples=300, deadline=None)
def test_whatever_flags_are_said_each_is_spoken_of_or_one_is_refused(data: st.DataObject, script: str) -> None:
    dialect = dialect_of(OldCommand("step1/main.py" if script == "main.py" else script))
    said = data.draw(some_flags(dialect))
    try:
        found = translate_flags(dialect, Old(said, dialect.defaults))
    except SettingsError:
        return
    spoken = {flag for line in found.lines for flag in line.flags} | {f for t in found.troubles for f in t.flags}
    assert set(said) <= spoken
    assert all(line.setting or line.note for line in found.lines)
    assert translation_lines(found)

"""The commands that people typed in 2023: tutorials, experiment logs, examples of the tools themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

LAST_THREE = "25.attention.query_key_value,26.attention.query_key_value,27.attention.query_key_value"
FIRST_THREE = "0.attention.query_key_value,1.attention.query_key_value,2.attention.query_key_value"
LAST_MLP = ",".join(f"{n}.mlp.{name}" for n in (25, 26, 27) for name in ("dense_h_to_4h", "dense_4h_to_h"))
PERSONA = "现在你扮演小说中的女孩，用她的口吻回答。"


def persona_log(out: str, *, rate: str, epochs: str, more: str = "") -> str:
    """A command of the log of 23 April: ChatGLM-6B learns a character of a novel."""
    return (
        "CUDA_VISIBLE_DEVICES=0 python src/finetune.py --do_train --dataset koikake_yui_train --finetuning_type lora "
        f"--output_dir {out} --overwrite_cache --per_device_train_batch_size 8 --gradient_accumulation_steps 1 "
        f"--lr_scheduler_type cosine --logging_steps 10 --save_steps 1000 --learning_rate {rate} --weight_decay 1e-4 "
        f"--num_train_epochs {epochs} --fp16 --plot_loss {more}"
    )


def rlhf(script: str, dataset: str, out: str, *, rows: int, more: str = "") -> str:
    """A command of ChatGLM-6B's RLHF tutorials."""
    return (
        f"CUDA_VISIBLE_DEVICES=0 python src/{script} \\\n --do_train \\\n --dataset {dataset} \\\n"
        f" --finetuning_type lora \\\n --output_dir {out} \\\n --per_device_train_batch_size {rows} \\\n"
        " --gradient_accumulation_steps 4 \\\n --lr_scheduler_type cosine \\\n --logging_steps 10 \\\n"
        f" --save_steps 1000 \\\n --learning_rate 1e-5 \\\n --num_train_epochs 1.0 \\\n --fp16 {more}"
    )


def covid(stage: str, *, do: str = "do_train", more: str = "") -> str:
    """A command of the last version's example of a doctor who gives longer answers."""
    return (
        f"python src/train_bash.py --stage {stage} --model_name_or_path THUDM/chatglm-6b --{do} --finetuning_type lora "
        f"--overwrite_cache --gradient_accumulation_steps 8 --lr_scheduler_type cosine --logging_steps 10 "
        f"--save_steps 1000 --fp16 {more}"
    )


COMMANDS: dict[str, str] = {
    "S3-1": persona_log("yui_qkv", rate="5e-5", epochs="5.0"),
    "S3-2": persona_log("yui_last3", rate="1e-3", epochs="3.0", more=f"--lora_target {LAST_THREE}"),
    "S3-3": persona_log(
        "yui_last3_prefix", rate="1e-3", epochs="3.0", more=f"--lora_target {LAST_THREE} --source_prefix {PERSONA}"
    ),
    "S3-4": persona_log("yui_last3_slow", rate="5e-5", epochs="5.0", more=f"--lora_target {LAST_THREE}"),
    "S3-5": persona_log("yui_first3", rate="5e-5", epochs="5.0", more=f"--lora_target {FIRST_THREE}"),
    "S3-6": persona_log("yui_mlp", rate="5e-5", epochs="5.0", more=f"--lora_target {LAST_MLP}"),
    "N-0510": (
        "CUDA_VISIBLE_DEVICES=0 python src/finetune.py --do_train --dataset koikake_yui_desc,koikake_yui_train "
        "--finetuning_type lora --output_dir yui_230510_lora_qkv_100r --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 4 --lr_scheduler_type cosine --logging_steps 10 --save_steps 1000 "
        f"--learning_rate 5e-5 --weight_decay 1e-5 --num_train_epochs 100 --fp16 --source_prefix {PERSONA}"
    ),
    "S0-RM": rlhf(
        "train_rm.py",
        "comparison_gpt4_en,comparison_gpt4_zh",
        "reward_model_230510_en_zh",
        rows=4,
        more=f"--weight_decay 1e-5 --source_prefix {PERSONA}",
    ),
    "S0-PPO": rlhf(
        "train_ppo.py",
        "koikake_yui_desc,koikake_yui_train",
        "yui_230511_ppo",
        rows=4,
        more="--checkpoint_dir yui_230510_lora_qkv_100r --reward_model reward_model_230510_en_zh "
        f"--max_source_length 256 --max_target_length 128 --num_train_epochs 50.0 --source_prefix {PERSONA}",
    ),
    "S1-SFT": (
        "CUDA_VISIBLE_DEVICES=0,1 python baichuan_lora_tuning.py --tokenized_dataset hc3_chatgpt_zh_specific_qa "
        "--lora_rank 4 --per_device_train_batch_size 16 --gradient_accumulation_steps 1 --num_train_epochs 2 "
        "--save_steps 200 --save_total_limit 2 --learning_rate 1e-4 --fp16 --remove_unused_columns false "
        "--logging_steps 50 --output_dir weights/hc3"
    ),
    "S1-RM": (
        "accelerate launch --multi_gpu --num_machines 1 --num_processes 3 --mixed_precision no --dynamo_backend no "
        "reward_modeling.py --model_name baichuan-inc/baichuan-7B --lora_target_models W_pack --train_subset -1 "
        "--eval_subset -1 --max_length 1000 --per_device_train_batch_size 10 --per_device_eval_batch_size 16 "
        "--eval_steps 200 --save_steps 100 --num_train_epochs 1 --gradient_accumulation_steps 1 --learning_rate 2e-5"
    ),
    "S1-PPO": (
        "python rl_training.py --base_model_name baichuan-inc/baichuan-7B --merged_sft_model_path weights/merged "
        "--sft_model_lora_path weights/hc3 --reward_model_lora_path runs/rm --adafactor False --save_freq 10 "
        "--output_max_length 256 --batch_size 8 --gradient_accumulation_steps 16 --batched_gen True --ppo_epochs 4 "
        "--seed 0 --learning_rate 1e-5 --early_stopping True --output_dir weights/ppo_ --log_with wandb"
    ),
    "S2-RM": rlhf("train_rm.py", "comparison_gpt4_zh", "path_to_rm_checkpoint", rows=4),
    "S2-PPO": rlhf(
        "train_ppo.py",
        "alpaca_gpt4_zh",
        "path_to_ppo_checkpoint",
        rows=2,
        more="--checkpoint_dir yui_qkv --reward_model path_to_rm_checkpoint",
    ),
    "S4-DPO": (
        "CUDA_VISIBLE_DEVICES=0 python src/train_bash.py --stage dpo "
        "--model_name_or_path ziqingyang/chinese-llama-2-7b --do_train --dataset comparison_gpt4_zh "
        "--template default --finetuning_type lora --lora_target q_proj,v_proj "
        "--resume_lora_training False --checkpoint_dir path_to_sft --output_dir path_to_dpo "
        "--per_device_train_batch_size 2 --gradient_accumulation_steps 4 --lr_scheduler_type cosine --logging_steps 10 "
        "--save_steps 1000 --learning_rate 1e-5 --num_train_epochs 1.0 --plot_loss --fp16"
    ),
    "C-covid-sft": covid(
        "sft",
        more="--dataset covid_train --dev_ratio 0.05 --load_best_model_at_end --evaluation_strategy steps "
        "--eval_steps 100 --output_dir covid_sft --per_device_train_batch_size 4 --learning_rate 5e-5 "
        "--num_train_epochs 10.0",
    ),
    "C-covid-rm": covid(
        "rm",
        more="--dataset comparison_gpt4_zh --checkpoint_dir covid_sft --resume_lora_training False --dev_ratio 0.05 "
        "--load_best_model_at_end --evaluation_strategy steps --eval_steps 100 --output_dir covid_rm "
        "--per_device_train_batch_size 2 --learning_rate 1e-5 --num_train_epochs 1.0",
    ),
    "C-covid-ppo": covid(
        "ppo",
        more="--dataset covid_train --checkpoint_dir covid_sft --resume_lora_training False --reward_model covid_rm "
        "--output_dir covid_ppo --per_device_train_batch_size 2 --learning_rate 1e-5 --num_train_epochs 5.0",
    ),
    "C-covid-predict": covid(
        "sft",
        do="do_predict",
        more="--dataset covid_test --checkpoint_dir covid_ppo --output_dir covid_predict "
        "--per_device_eval_batch_size 8 --predict_with_generate --max_samples 50",
    ),
    "C-adgen": (
        "CUDA_VISIBLE_DEVICES=0,1 accelerate launch src/finetune.py --do_train --dataset adgen_train "
        "--finetuning_type lora --lora_rank 32 --output_dir path_to_adgen --per_device_train_batch_size 2 "
        "--gradient_accumulation_steps 2 --lr_scheduler_type cosine --logging_steps 10 --save_steps 2000 "
        "--learning_rate 1e-3 --num_train_epochs 2.0 --ddp_find_unused_parameters False --fp16"
    ),
    "C-adgen-eval": (
        "CUDA_VISIBLE_DEVICES=0 python src/finetune.py --do_eval --dataset adgen_dev --checkpoint_dir path_to_adgen "
        "--output_dir adgen_eval --per_device_eval_batch_size 8 --max_samples 50 --predict_with_generate"
    ),
    "C-self": (
        "CUDA_VISIBLE_DEVICES=0 python src/finetune.py --do_train --dataset self_cognition --finetuning_type lora "
        "--output_dir path_to_self --overwrite_cache --per_device_train_batch_size 2 --gradient_accumulation_steps 2 "
        "--lr_scheduler_type cosine --logging_steps 10 --save_steps 1000 --warmup_steps 0 --learning_rate 1e-3 "
        "--num_train_epochs 10.0 --fp16"
    ),
}


@dataclass(frozen=True)
class Cell:
    """A cell of the matrix of 24 April, with its three commands."""

    number: int
    method: str
    module: str
    layers: str
    has_general_data: bool

    @property
    def directory(self) -> str:
        parts = ("all_230424", self.method, self.module, self.layers, "yes" if self.has_general_data else "no")
        return "_".join(part for part in parts if part)

    @property
    def tuning(self) -> str:
        if self.method == "freeze":
            count = 3 if self.layers == "last3" else -3
            return f"--finetuning_type freeze --num_layer_trainable {count} --name_module_trainable {self.module}"
        if self.method == "p_tuning":
            return "--finetuning_type p_tuning"
        spans = {"last3": range(25, 28), "first3": range(3), "whole": range(28)}
        names = {"qkv": ["attention.query_key_value"], "mlp": ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]}[self.module]
        target = ",".join(f"{n}.{name}" for n in spans[self.layers] for name in names)
        return f"--finetuning_type lora --lora_target {target}"

    @property
    def train(self) -> str:
        data = "koikake_all_train" + (",belle_multiturn" if self.has_general_data else "")
        return (
            f"CUDA_VISIBLE_DEVICES=0 python src/finetune.py --do_train --dataset {data} {self.tuning} "
            f"--output_dir {self.directory} --overwrite_cache --per_device_train_batch_size 8 "
            "--gradient_accumulation_steps 1 --lr_scheduler_type cosine --logging_steps 20 --save_steps 2000 "
            "--max_samples 10000 --learning_rate 1e-5 --num_train_epochs 10.0 --fp16"
        )

    def evaluation(self, dataset: str, short: str) -> str:
        return evaluation(dataset, f"{self.directory}_eval_{short}", more=f"--checkpoint_dir {self.directory}")


def evaluation(dataset: str, out: str, *, more: str = "") -> str:
    return (
        f"CUDA_VISIBLE_DEVICES=0 python src/finetune.py --do_eval --dataset {dataset} --output_dir {out} "
        f"--overwrite_cache --per_device_eval_batch_size 8 --max_samples 100 --predict_with_generate {more}"
    )


def cells() -> Iterator[Cell]:
    """The twenty-two cells in their order."""
    kinds = [
        *(("freeze", module, layers) for module, layers in product(("mlp", "qkv"), ("last3", "first3"))),
        ("p_tuning", "", ""),
        *(("lora", module, layers) for module, layers in product(("mlp", "qkv"), ("last3", "first3", "whole"))),
    ]
    for number, ((method, module, layers), has_general_data) in enumerate(product(kinds, (False, True)), start=1):
        yield Cell(number, method, module, layers, has_general_data)


BASELINE = [
    evaluation("koikake_all_test", "all_230424_baseline_eval_koikake"),
    evaluation("alpaca_gpt4_zh", "all_230424_baseline_eval_alpaca"),
]

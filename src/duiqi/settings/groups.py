"""The settings, one small frozen dataclass per concern. A field's docstring is its help text on the command line.

Names are those users know from transformers and LLaMA-Factory. Every name is unique over all groups, so a flat
recipe or a flag finds its group by itself.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from duiqi.settings.names import NamesFrom

GROUP = ConfigDict(use_attribute_docstrings=True, extra="forbid")

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]

TrackerName = Literal["tensorboard", "wandb", "swanlab", "trackio", "mlflow"]


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ModelSettings:
    """Model"""

    model_name_or_path: str
    """The base model: a directory or a hub name."""
    adapter_name_or_path: str | None = None
    """The adapter to start from: a run directory or a PEFT directory (its copy is trained, itself never changed).
    Several, separated by commas, stand one above the other, and a copy of the last is trained."""
    create_new_adapter: bool = False
    """Train a new adapter above those that this starts from, which then stay as they are."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the frozen base; adapters and heads stay in float32. auto: bfloat16 on a GPU or a CPU that
    has instructions for it, else float32; full fine-tuning is always float32."""
    quantization_bit: Annotated[int, Ge(4), Le(8)] | None = None
    """Store the matrices of the frozen base in 4 or 8 bits (QLoRA, through bitsandbytes)."""
    quantization_type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen values of 4 bits."""
    double_quantization: bool = True
    """Quantise the scales of 4 bits too."""
    resize_vocab: bool = False
    """Grow embeddings and head where the tokenizer has more tokens than they have rows."""
    add_tokens: str = ""
    """Special tokens to add to the vocabulary, separated by commas."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """The attention kernel. auto and sdpa: packed rows where the architecture allows it; eager and flash_attention_2:
    transformers' own, in padded rows."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class TuningSettings:
    """Tuning"""

    finetuning_type: Literal["lora", "freeze", "p_tuning", "full"] = "lora"
    """lora trains small adapters on a frozen base; freeze trains some layers of it whole; p_tuning learns keys and
    values before the first token (P-Tuning v2); full trains every weight and keeps a frozen copy as reference."""
    lora_rank: Positive = 8
    """Rank of the adapters."""
    lora_alpha: Positive | None = None
    """Scale of the adapters: their output is multiplied by alpha / rank. Default: twice the rank."""
    lora_dropout: Share = 0.0
    """Dropout on the adapters' input while training; always off in rollouts and scoring."""
    lora_target: str = "all"
    """The linear layers to adapt, by the ends of their paths, separated by commas: q_proj, mlp,
    25.attention.query_key_value, mlp@0-2 for layers 0 to 2; all: every one but the head."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Also learn the magnitude of each weight column (DoRA)."""
    pissa_init: bool = False
    """Begin the adapters with the largest singular directions of the weights they are on (PiSSA). They are written
    with twice the rank."""
    modules_to_save: str = ""
    """Modules to train whole beside the adapters, named like lora_target: embed_tokens,lm_head."""
    freeze_trainable_layers: int = 2
    """How many of the last layers freeze trains; below 0, of the first."""
    freeze_trainable_modules: str = "all"
    """What in those layers it trains, named like lora_target: mlp, self_attn.q_proj; all: everything."""
    pre_seq_len: Positive = 16
    """Slots of the prefix that p_tuning learns."""
    prefix_projection: bool = False
    """Learn the slots in the hidden size, brought to keys and values by two linear layers."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class DataSettings:
    """Data"""

    dataset: str
    """Names in dataset_info.json or paths, separated by commas; name@1000 takes at most 1000 rows, name[format] reads
    them as that format."""
    dataset_dir: str = "data"
    """The folder of dataset_info.json and its files."""
    eval_dataset: str | None = None
    """Datasets to evaluate on, named like `dataset`."""
    val_size: NonNegative = 0.0
    """Rows held out for evaluation: a share below 1, else a count."""
    cutoff_len: Positive = 1024
    """Longest sequence in tokens (for pretraining: the block size)."""
    max_samples: Positive | None = None
    """At most this many rows of each dataset to learn from."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over"] = "concat"
    """How several datasets are mixed: concat takes every row once; interleave_under takes a row of each by turns until
    the first is exhausted, interleave_over until the last is, the others beginning anew."""
    interleave_probs: str | None = None
    """How likely each dataset gives the next row, separated by commas: 0.7,0.3. Default: they take turns."""
    max_bad_rows: Count = 0
    """Malformed rows to skip (they are written to rejects.jsonl) before giving up."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PromptSettings:
    """Prompts"""

    template: str | None = None
    """How a conversation becomes text. Default: the tokenizer's own chat template."""
    system: str = ""
    """System message for rows that have none."""
    source_prefix: str = ""
    """Text put before every rendered prompt, the same in every stage."""
    max_source_length: Positive | None = None
    """Longest prompt in tokens; its oldest part is cut. Default: half of cutoff_len."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class AnswerSettings:
    """Answers"""

    max_target_length: Positive | None = None
    """Longest answer in tokens, its end token included. Default: what its prompt leaves of cutoff_len."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class HistorySettings:
    """Conversations"""

    mask_history: bool = False
    """Learn the last answer of a conversation only, instead of every answer."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class OptimizerSettings:
    """Optimisation"""

    learning_rate: NonNegative = 1e-4
    """Peak learning rate of AdamW."""
    loraplus_lr_ratio: Annotated[float, Gt(0)] | None = None
    """Learn the second matrix of each adapter at so many times the learning rate (LoRA+)."""
    num_train_epochs: NonNegative = 1.0
    """Passes over the data; max_steps wins over it."""
    max_steps: Count = 0
    """Stop after this many steps, whatever num_train_epochs says; 0: no limit."""
    tokens_per_micro_batch: Annotated[int, Ge(64)] = 4096
    """Tokens computed at once: memory, not results. A step's rows are packed into as few such parts as they need;
    halved by itself when the memory does not hold one."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: Share = 0.0
    """Share of all steps in which the learning rate rises from 0; warmup_steps wins over it."""
    warmup_steps: Count = 0
    """The same as a count; wins over warmup_ratio when not 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay (not on biases, norms and heads)."""
    max_grad_norm: NonNegative = 1.0
    """Clip the gradient's norm to this; 0: never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    seed: Count = 42
    """Seed of the initial adapters, the data order, dropout and sampling."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class BatchSettings:
    """Batch"""

    per_device_train_batch_size: Positive = 8
    """Rows of one optimizer step, times gradient_accumulation_steps."""
    gradient_accumulation_steps: Positive = 1
    """Multiplies the rows of a step. Memory is bounded by tokens_per_micro_batch, whatever this is."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RunSettings:
    """Run"""

    output_dir: str
    """Where the run is written."""
    overwrite_output_dir: bool = False
    """Replace a run that is already there."""
    resume_from_checkpoint: bool = False
    """Go on from the last complete checkpoint in output_dir; starts anew where there is none."""
    logging_steps: Positive = 10
    """Steps between two lines of metrics.jsonl."""
    eval_steps: Count = 0
    """Steps between two evaluations; 0: at the end only."""
    save_steps: Count = 0
    """Steps between two checkpoints; 0: at the end only."""
    save_total_limit: Positive | None = 3
    """Checkpoints to keep; best and last are always kept."""
    save_keep_every: Count = 0
    """Keep every checkpoint of a multiple of so many steps besides; 0: none."""
    max_skipped_steps: Count = 3
    """Steps whose loss or gradient is not finite to pass over before the run stops; 0: stop at the first. One before
    which none went well always stops it."""
    load_best_model_at_end: bool = False
    """Make the best checkpoint the result, instead of the last."""
    plot_loss: bool = False
    """Write plots/*.png at the end (needs matplotlib)."""
    report_to: Annotated[str, NamesFrom(get_args(TrackerName))] = "none"
    """Trackers that are told what metrics.jsonl says, with commas between; each needs its package
    (docs/trackers.md)."""
    run_name: str | None = None
    """The run's name in the trackers. Default: the name of output_dir's folder."""
    project: str | None = None
    """Its project in the trackers, in MLflow its experiment. Default: the tracker's own environment variable, else
    duiqi."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ScratchSettings:
    """Pretraining"""

    train_from_scratch: bool = False
    """Start from random weights: model_name_or_path holds config.json and the tokenizer only."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RewardModelSettings:
    """Reward model"""

    center_rewards_coefficient: NonNegative = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores around 0."""
    pair_weighting: Literal["prompt", "pair"] = "prompt"
    """What counts once: a prompt (its K answers' pairs share one weight) or every pair."""
    probe_negatives: Share = 0.0
    """So many rows more, as a share of the rows, in which the best answer beats a degenerate one that is made from it:
    a lone mark, a repeated phrase, filler ... (docs/exam.md)."""
    length_bias: Literal["none", "balanced"] = "none"
    """balanced weights pairs so that, at any difference in length, the longer answer wins as often as the shorter."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PreferenceSettings:
    """Preference loss"""

    pref_loss: Literal["sigmoid", "ipo", "hinge", "kto_pair", "orpo", "simpo", "cpo", "kto"] = "sigmoid"
    """The loss: sigmoid is DPO. kto learns from single answers that were liked or not, the others from pairs."""
    pref_beta: Annotated[float, Gt(0)] = 0.1
    """Strength of the pull towards the reference (for simpo: scale of the length-normalised log-probability)."""
    dpo_label_smoothing: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Assumed share of swapped labels (conservative DPO)."""
    pref_ftx: NonNegative = 0.0
    """Weight of an extra cross-entropy on the chosen answer."""
    simpo_gamma: NonNegative = 0.5
    """Target margin of simpo."""
    kto_chosen_weight: NonNegative = 1.0
    """What a liked answer weighs in kto."""
    kto_rejected_weight: NonNegative = 1.0
    """What an answer weighs that was not liked."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ReferenceSettings:
    """Reference"""

    ref_model: str | None = None
    """Another adapter as the reference. Default: the policy as it is at step 0."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ReuseSettings:
    """Reference's memory"""

    reuse_reference: bool = True
    """Compute what the reference says of a row once, and keep it: for this run, and in ~/.cache/duiqi for the next."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class SamplingSettings:
    """Sampling"""

    max_new_tokens: Positive = 128
    """Longest answer in tokens."""
    min_new_tokens: Count = 1
    """No end token before this many tokens; 1: never an empty answer."""
    temperature: NonNegative = 1.0
    """Randomness of the answers; 0: always the most likely token."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the smallest set of tokens with this probability. Leave at 1 for PPO."""
    top_k: Count = 0
    """Sample from the k most likely tokens; 0: from all. Leave at 0 for PPO."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """Above 1 makes tokens already there less likely. Leave at 1 for PPO."""
    generation_batch_size: Positive = 64
    """Answers decoded at once."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ScoreSettings:
    """Score"""

    reward_model: str
    """What scores answers: a reward-model run, or file.py:function(prompts, answers); a,b@0.5 mixes with weights."""
    score_norm: bool = True
    """Subtract the running mean of the scores and divide by their running standard deviation."""
    score_clip: NonNegative = 5.0
    """Clip the score to plus or minus this; 0: never."""
    score_baseline: float = 0.0
    """Subtracted from every score (the running mean of score_norm would take it out again)."""
    missing_eos_penalty: NonNegative = 1.0
    """Subtracted from the score of an answer that the length limit ended."""
    overlong_buffer: Count = 0
    """The last so many tokens before max_new_tokens cost more and more, up to overlong_penalty (DAPO)."""
    overlong_penalty: NonNegative = 1.0
    """Subtracted from the score of an answer that fills the buffer."""
    min_answer_length: Count = 0
    """An answer of fewer tokens, its end token included, is a short one; min_new_tokens forbids them instead."""
    short_answer_penalty: NonNegative = 1.0
    """Subtracted from the score of a short answer."""
    score_std_coef: NonNegative = 0.0
    """Several reward models become an ensemble: the mean of their scores, less this times their standard deviation."""
    second_opinion: str | None = None
    """Another reward model or function, named like reward_model, that is asked about held-out answers and never learned
    from: it chooses the best checkpoint, and the watch rings when it falls while the score rises."""
    allow_template_mismatch: bool = False
    """Go on although the reward model was trained with another template."""
    accept_weak_reward_model: bool = False
    """Go on although the reward model failed its examination (duiqi exam)."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PPOSettings:
    """PPO"""

    advantage: Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce++"] = "gae"
    """Where advantages come from: gae needs a critic, the others compare answers (dr_grpo: without dividing by std)."""
    critic: Literal["shared", "adapter", "model"] = "shared"
    """shared: a value head on the policy's trunk, the cheapest; adapter: an adapter of its own, begun from the reward
    model's: what it learns leaves the policy alone; model: a copy of the base that learns with every weight, where
    there is memory for it, 16 bytes a weight."""
    rollout_batch_size: Positive = 64
    """Answers sampled per step."""
    answers_per_prompt: Positive = 1
    """Answers sampled for the same prompt (rloo and grpo need at least 2)."""
    mini_batch_size: Positive = 32
    """Answers of one optimizer step."""
    ppo_epochs: Positive = 2
    """Passes over the rollouts of a step."""
    init_kl_coef: NonNegative = 0.05
    """Weight of the KL penalty against the reference, at the start."""
    kl_target: NonNegative = 0.0
    """KL per answer (nats) that the weight is steered to; 0: the weight stays."""
    kl_horizon: Annotated[float, Gt(0)] = 10000.0
    """Answers over which the steering acts."""
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = "k1"
    """Per-token estimator of the penalty: Schulman's k1, k2, k3, or the absolute log-ratio."""
    gamma: Share = 1.0
    """Discount per token."""
    lam: Share = 0.95
    """GAE's lambda."""
    clip_range: Annotated[float, Gt(0)] = 0.2
    """How far below 1 a probability ratio may move the loss."""
    clip_range_high: Annotated[float, Gt(0)] = 0.28
    """How far above 1."""
    dual_clip: Annotated[float, Gt(1)] | None = 3.0
    """Bound of the loss for a negative advantage and a large ratio, or null."""
    clip_range_value: NonNegative = 0.2
    """How far the value may move from its old estimate; 0: free."""
    vf_coef: NonNegative = 0.1
    """Weight of the value loss."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    critic_warmup_steps: Count = 0
    """First steps in which only the critic learns."""
    loss_aggregation: Literal["token", "sequence"] = "token"
    """What counts the same in the loss: every token, or every answer whatever its length."""
    whiten_advantages: bool = True
    """Give gae's advantages of a step mean 0 and variance 1; the other estimators compare answers already."""
    target_kl: NonNegative = 0.1
    """Leave the epochs of a step early when the policy moved 1.5 x this (approximate KL per token); 0: never."""
    ratio_threshold: Annotated[float, Gt(1)] = 10.0
    """Skip an optimizer step whose mean probability ratio exceeds this."""
    kl_budget: NonNegative | None = None
    """Nats from the reference, per answer, that a policy may spend: beyond it no checkpoint is the best, and the watch
    rings; 0: no budget. Default: 30, or a tenth of max_new_tokens where that is more; none with init_kl_coef=0."""
    num_eval_samples: Count = 4
    """Held-out answers written to samples.jsonl at every evaluation."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class WatchSettings:
    """Watch"""

    watch: Literal["stop", "warn", "off"] = "stop"
    """What happens when a run begins to ruin itself: stop says so, then makes the steps smaller, then goes back to the
    best checkpoint and ends with status 3; warn only says so."""
    watch_limits: str = ""
    """Other limits for alarms, with commas between: shorter=0.4,longer=off (docs/watch.md)."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RolloutSettings:
    """Rollouts"""

    rollout_engine: Literal["own", "vllm"] = "own"
    """What samples the answers: own decodes on the training weights; vllm is a server beside it (docs/vllm.md)."""
    vllm_python: str | None = None
    """The interpreter of the environment that vLLM is installed in; duiqi starts and ends the server."""
    vllm_url: str | None = None
    """A vLLM server that runs already, instead of one that duiqi starts: http://host:port."""
    vllm_startup_seconds: Positive = 600
    """Seconds that a server started by duiqi may take to be ready."""
    vllm_memory_share: Annotated[float, Gt(0), Le(1)] = 0.3
    """Share of the device's memory for a server started by duiqi; training needs the rest."""
    vllm_args: str = ""
    """More options for a server started by duiqi, as on vLLM's own command line."""
    importance_cap: Annotated[float, Ge(1)] = 2.0
    """Largest weight of a token that the trainer finds likelier than vLLM did."""

"""What every stage is made of, from its settings: base and adapters, tokenizer and template, rows, learner, cadence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from duiqi.data.encoded import EncodedData, EncodingReport, encode_rankings
from duiqi.data.encoding import EncodedRanking, TokenBudget, describe_first, token_budget
from duiqi.data.loading import Need, load_examples, split_validation
from duiqi.data.order import BatchPlan
from duiqi.data.registry import parse_dataset_spec
from duiqi.data.templates import Template, from_dict, get_template
from duiqi.errors import DataError, ModelError, SettingsError, TemplateError
from duiqi.journal.run import Run
from duiqi.models.adapters import CONFIG_NAME, LoRASpec, read_adapter
from duiqi.models.card import ModelCard, read_card
from duiqi.models.loading import choose_device, choose_dtype, load_causal_lm, load_tokenizer, locate
from duiqi.models.shared_base import SharedBase
from duiqi.models.tokenizers import refuse_larger_vocabulary
from duiqi.models.unadapted import unadapted
from duiqi.packing.memory import MemoryBudget
from duiqi.settings.groups import (
    BatchSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
    RunSettings,
    TuningSettings,
)
from duiqi.training.learner import Learner
from duiqi.training.schedule import Schedule
from duiqi.training.session import Cadence
from duiqi.types import Example


@dataclass(frozen=True)
class Start:
    """What a stage starts from."""

    base: str
    adapter: Path | None
    card: ModelCard | None
    """The card of the adapter, or of the base where that came from duiqi."""


def find_start(settings: ModelSettings, *, role: str = "policy") -> Start:
    """Where the base and the first adapter lie; `model_name_or_path` may itself be a run.

    Raises:
        ModelError: Nothing usable is there, two adapters are named, or a policy would start from a reward model.
    """
    start = _locate_start(settings)
    if role == "policy" and start.card is not None and start.card.role == "reward":
        raise ModelError(
            "this is a reward model: it scores answers and cannot learn to give any",
            where=str(start.adapter or start.base),
            remedy="start from an sft run, or from the base",
        )
    return start


def _locate_start(settings: ModelSettings) -> Start:
    located = locate(settings.model_name_or_path)
    if settings.adapter_name_or_path is None:
        return Start(located.base, located.adapter, located.card)
    adapter = Path(settings.adapter_name_or_path).expanduser()
    if located.adapter is not None and located.adapter.resolve() != adapter.resolve():
        raise ModelError(
            f"is an adapter itself, but adapter_name_or_path names {adapter}",
            where=f"model_name_or_path: {located.adapter}",
            remedy=f"keep one of the two: set model_name_or_path: {located.base} to start from {adapter}",
        )
    if not (adapter / CONFIG_NAME).is_file():
        raise ModelError(
            "there is no adapter here (adapter_config.json is missing)",
            where=f"adapter_name_or_path: {adapter}",
            remedy="give the output_dir of a finished run, one of its checkpoints, or a PEFT directory",
        )
    return Start(located.base, adapter, read_card(adapter))


def make_base(
    settings: ModelSettings, tuning: TuningSettings, start: Start, *, from_scratch: bool = False
) -> SharedBase:
    """The base model on its device, frozen, with nobody seated yet.

    Raises:
        ModelError: It cannot be loaded, or the adapter to start from belongs to another base.
        SettingsError: Full fine-tuning was asked for in half precision, which rounds small updates away.
    """
    device = choose_device(settings.device)
    full = tuning.finetuning_type == "full"
    if full and settings.dtype in ("bfloat16", "float16"):
        raise SettingsError(
            f"full fine-tuning in {settings.dtype} loses every update smaller than the rounding of a weight",
            where="dtype",
            remedy="leave dtype out (full fine-tuning then uses float32), or set finetuning_type: lora",
        )
    model = load_causal_lm(
        start.base,
        device=device,
        dtype=torch.float32 if full else choose_dtype(settings.dtype, device, trains=True),
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        from_scratch=from_scratch,
    )
    base = SharedBase(model, name=start.base)
    if start.adapter is not None and start.card is not None:
        check_belongs(start.card, base, str(start.adapter))
    return base


def check_belongs(card: ModelCard, base: SharedBase, where: str) -> None:
    """Refuse an adapter that was trained on other base weights.

    A base in float16 is believed: its rounding is not a step on the way to bfloat16, in which fingerprints are taken.

    Raises:
        ModelError: The fingerprints differ.
    """
    if card.base_fingerprint != base.fingerprint and base.model.dtype != torch.float16:
        raise ModelError(
            f"the adapter was trained on {card.base}, whose weights are not those of {base.name}",
            where=where,
            remedy=f"set model_name_or_path: {card.base}, or train the adapter again on this base",
        )


def make_tokenizer(settings: ModelSettings, start: Start, journal: Run) -> PreTrainedTokenizerBase:
    """The tokenizer of the adapter to start from, or of the base; what was mended in it is noted.

    Raises:
        ModelError: There is none, or it has more tokens than the base has rows for.
    """
    has_own = start.adapter is not None and (start.adapter / "tokenizer_config.json").is_file()
    place = str(start.adapter) if has_own else start.base

    def say(finding: str) -> None:
        journal.event("warning", text=finding)
        journal.view.note(f"warning: {finding}")

    tokenizer = load_tokenizer(place, trust_remote_code=settings.trust_remote_code, say=say)
    for finding in [] if has_own else refuse_larger_vocabulary(tokenizer, start.base):
        say(finding)
    return tokenizer


def make_template(settings: PromptSettings, tokenizer: PreTrainedTokenizerBase, card: ModelCard | None) -> Template:
    """The template of this stage: the one its parent was trained with, which settings may repeat but not change.

    Raises:
        TemplateError: The settings name another template, system message or prefix than the parent had.
    """
    parent = from_dict(card.template, tokenizer) if card is not None and card.template else None
    if parent is None:
        return get_template(settings.template, tokenizer, system=settings.system, source_prefix=settings.source_prefix)
    asked = get_template(
        settings.template or parent.name,
        tokenizer,
        system=settings.system or parent.system,
        source_prefix=settings.source_prefix or parent.source_prefix,
    )
    refuse_mismatch(asked, parent, whose="the adapter that this stage starts from")
    return parent


def refuse_mismatch(ours: Template, theirs: Template, *, whose: str) -> None:
    """Refuse two stages that would write the same conversation differently.

    Raises:
        TemplateError: They differ; the message says in what.
    """
    if difference := ours.difference(theirs):
        raise TemplateError(
            f"{whose} was trained with another template: {difference}",
            where="template",
            remedy="leave template, system and source_prefix out to take those it was trained with, or train it again",
        )


def seat_policy(base: SharedBase, start: Start, tuning: TuningSettings, *, role: str = "policy") -> None:
    """Seat what this stage trains: the adapter it starts from, a fresh one, or the whole base.

    Raises:
        ModelError: Full fine-tuning was asked to start from an adapter.
        SettingsError: The adapter to start from was given another shape.
    """
    if tuning.finetuning_type == "full":
        if start.adapter is not None:
            raise ModelError(
                "full fine-tuning cannot start from an adapter",
                where=f"adapter_name_or_path: {start.adapter}",
                remedy="set finetuning_type: lora, or give a full model",
            )
        base.seat_full(role)
    elif start.adapter is not None:
        if tuning != TuningSettings():
            raise SettingsError(
                f"lora_* and use_* have no effect: {start.adapter} is trained in the shape it has",
                where=f"model_name_or_path: {start.adapter}",
                remedy="remove them, or start from the base model to train a new adapter",
            )
        base.seat_saved_adapter(role, read_adapter(start.adapter), trainable=True)
    else:
        base.seat_new_adapter(role, lora_spec(tuning))
    base.rest_on(role)


def seat_reference(base: SharedBase, named: str | None) -> str:
    """Seat the reference: the policy as it is now, unless an adapter is named. Returns what it is, in words.

    Raises:
        ModelError: The named adapter is missing, or belongs to another base.
    """
    if named is not None:
        if not (Path(named) / CONFIG_NAME).is_file():
            raise ModelError(
                "there is no adapter here", where=f"ref_model: {named}", remedy="give an adapter directory"
            )
        if (card := read_card(named)) is not None:
            check_belongs(card, base, named)
    is_base_trained = base.seat("policy").adapter is None
    if is_base_trained:
        base.seat_frozen_copy("reference")
    if named is not None:
        beside = "reference" if is_base_trained else None
        base.seat_saved_adapter("reference", read_adapter(named), trainable=False, beside=beside)
        return named
    if is_base_trained:
        return "a frozen copy of the policy at step 0"
    base.seat_copy("reference", "policy", trainable=False)
    return "the policy at step 0"


def lora_spec(tuning: TuningSettings) -> LoRASpec:
    """The shape of a new adapter."""
    return LoRASpec(
        rank=tuning.lora_rank,
        alpha=tuning.lora_alpha,
        dropout=tuning.lora_dropout,
        target=tuning.lora_target,
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
    )


def make_card(
    stage: str, base: SharedBase, start: Start, template: Template | None, *, role: str = "policy"
) -> ModelCard:
    """The card that this stage's result will carry."""
    older = start.card.parents if start.card is not None else ()
    return ModelCard(
        stage=stage,
        role=role,
        base=base.name,
        base_fingerprint=base.fingerprint,
        template=None if template is None else template.to_dict(),
        parents=(str(start.adapter.resolve()), *older) if start.adapter is not None else (),
        head="score" if role == "reward" else None,
    )


def encoding_notes(report: EncodingReport) -> list[str]:
    """What became of the rows: the totals in one line, everything cut, dropped or repeated in another."""
    totals, *happened = report.lines()
    return [totals, *(["; ".join(happened)] if happened else [])]


@dataclass(frozen=True)
class Examples:
    """The rows to learn from and the rows held out."""

    train: list[Example]
    held_out: list[Example]
    notes: tuple[str, ...] = ()
    """What was read, in plain sentences."""


def load_rows(settings: DataSettings, need: Need, journal: Run, *, seed: int) -> Examples:
    """Read the datasets, hold some rows out, and note in the journal what was read.

    Raises:
        DataError: A dataset is missing, malformed or of another kind than needed.
    """
    loaded = load_examples(
        parse_dataset_spec(settings.dataset),
        dataset_dir=settings.dataset_dir,
        need=need,
        seed=seed,
        max_samples=settings.max_samples,
        max_bad_rows=settings.max_bad_rows,
    )
    reports = [loaded.report]
    if settings.eval_dataset is not None:
        if settings.val_size:
            raise DataError("both eval_dataset and val_size are given", where="val_size", remedy="keep one of the two")
        held = load_examples(
            parse_dataset_spec(settings.eval_dataset),
            dataset_dir=settings.dataset_dir,
            need=need,
            seed=seed,
            max_bad_rows=settings.max_bad_rows,
        )
        reports.append(held.report)
        train, held_out = loaded.examples, held.examples
    else:
        train, held_out = split_validation(loaded.examples, settings.val_size, seed=seed)
    rejects = [asdict(row) for report in reports for row in report.rejects]
    if rejects:
        journal.write_rejects(rejects)
    journal.describe(data=[asdict(file) for report in reports for file in report.files])
    notes = [line for report in reports for line in report.lines()]
    if settings.val_size:
        notes.append(f"{len(held_out)} of them held out for evaluation")
    return Examples(train, held_out, tuple(notes))


@dataclass(frozen=True)
class Rankings:
    """Ranked answers as tokens: to learn from, and held out."""

    train: EncodedData[EncodedRanking]
    held_out: EncodedData[EncodedRanking] | None
    notes: list[str]
    """What was read and what became of it, the first row among it."""


def prepare_rankings(
    rows: Examples, template: Template, tokenizer: PreTrainedTokenizerBase, budget: TokenBudget
) -> Rankings:
    """Encode the rows of a stage that learns from rankings.

    Raises:
        DataError: No ranking is left.
    """
    train = encode_rankings(template, tokenizer, examples=rows.train, budget=budget)
    held_out = encode_rankings(template, tokenizer, examples=rows.held_out, budget=budget) if rows.held_out else None
    first = describe_first(train.items[0].sequence(0), tokenizer)
    notes = [*rows.notes, *encoding_notes(train.report), f"first row, its best answer in ⟦⟧: {first}"]
    return Rankings(train, held_out, notes)


def make_budget(data: DataSettings, prompt: PromptSettings, *, max_answer_tokens: int | None = None) -> TokenBudget:
    """How long prompts and answers may be."""
    return token_budget(
        data.cutoff_len, max_prompt_tokens=prompt.max_source_length, max_answer_tokens=max_answer_tokens
    )


def plan_steps(num_rows: int, optimizer: OptimizerSettings, batch: BatchSettings) -> tuple[BatchPlan, int]:
    """Which rows each optimizer step sees, and how many steps there are."""
    rows_per_step = batch.per_device_train_batch_size * batch.gradient_accumulation_steps
    plan = BatchPlan(num_rows, batch_size=rows_per_step, seed=optimizer.seed)
    return plan, count_steps(num_rows, rows_per_step, optimizer)


def count_steps(num_rows: int, rows_per_step: int, settings: OptimizerSettings) -> int:
    """Steps of the whole run: epochs x steps of an epoch (the last batch of an epoch may be smaller), or max_steps."""
    if settings.max_steps:
        return settings.max_steps
    return max(1, math.ceil(settings.num_train_epochs * math.ceil(num_rows / rows_per_step)))


def make_memory_budget(settings: OptimizerSettings, journal: Run) -> MemoryBudget:
    """The tokens computed at once; the journal is told when they become fewer."""

    def say(tokens: int) -> None:
        journal.event("out_of_memory", tokens_per_micro_batch=tokens)
        journal.view.note(f"out of memory: going on with {tokens} tokens at once (tokens_per_micro_batch)")

    return MemoryBudget(settings.tokens_per_micro_batch, on_halved=say)


def make_learner(
    base: SharedBase,
    settings: OptimizerSettings,
    total_steps: int,
    journal: Run,
    *,
    budget: MemoryBudget | None = None,
) -> Learner:
    """AdamW with the schedule of these settings, on everything that learns."""
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total_steps)
    return Learner(
        base.trainable_parameters(),
        Schedule(settings.learning_rate, total_steps, warmup, settings.lr_scheduler_type),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        budget=budget or make_memory_budget(settings, journal),
    )


def make_cadence(settings: RunSettings, total_steps: int) -> Cadence:
    """How often to log, evaluate and save."""
    return Cadence(
        total_steps=total_steps,
        logging_steps=settings.logging_steps,
        eval_steps=settings.eval_steps,
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        load_best_at_end=settings.load_best_model_at_end,
    )


def begin(
    journal: Run,
    title: str,
    base: SharedBase,
    start: Start,
    template: Template | None,
    *,
    notes: Sequence[str] = (),
    **facts: str,
) -> None:
    """Say on the terminal, and note in the manifest, what is trained from what."""
    notes = [*notes, *unadapted(base.model)]
    learning = base.trainable_parameters().values()
    trained = sum(p.numel() for p in learning)
    total = sum(p.numel() for p in {*base.model.parameters(), *learning})
    parents = {"base": base.name, "base_fingerprint": base.fingerprint}
    if start.adapter is not None:
        parents["adapter"] = str(start.adapter)
    journal.describe(
        parents={**parents, **facts},
        layout=str(base.layout),
        parameters={"trained": trained, "total": total},
        notes=list(notes),
    )
    shown = {
        "base": base.name,
        **({"adapter": str(start.adapter)} if start.adapter is not None else {}),
        "trains": f"{trained:,} of {total:,} parameters, {base.model.dtype} base on {base.device}".replace(
            "torch.", ""
        ),
        **({"template": describe_template(template)} if template is not None else {}),
        "computes": str(base.layout),
        **facts,
    }
    journal.view.stage(title, shown)
    for note in notes:
        journal.view.note(note)


def describe_template(template: Template) -> str:
    """The template in a few words."""
    extras: Sequence[str] = [
        f"{name} {text!r}" for name, text in (("system", template.system), ("prefix", template.source_prefix)) if text
    ]
    first, *others = template.stop_tokens
    ends = [f"answers end with {first}, and at {' or '.join(others)} too"] if others else []
    return ", ".join([template.name, *extras, *ends])

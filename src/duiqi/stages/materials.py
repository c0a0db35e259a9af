"""What every stage is made of, from its settings: base and adapters, tokenizer and template, rows, learner, cadence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedTokenizerBase

from duiqi.data.encoded import EncodedData, EncodingReport, encode_rankings
from duiqi.data.encoding import EncodedRanking, TokenBudget, describe_first, token_budget
from duiqi.data.loading import LoadReport, Need, load_examples, split_validation
from duiqi.data.mixing import mix, read_probabilities
from duiqi.data.order import BatchPlan
from duiqi.data.registry import parse_dataset_spec
from duiqi.data.templates import Template, from_dict, get_template
from duiqi.errors import DataError, SettingsError, TemplateError
from duiqi.journal.run import Run
from duiqi.models.card import ModelCard
from duiqi.models.loading import load_tokenizer
from duiqi.models.shared_base import SharedBase
from duiqi.models.targets import TrainedRow, trained_rows
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
)
from duiqi.stages.start import Start, tokens_to_add
from duiqi.training.learner import Learner
from duiqi.training.scaling import LossScale
from duiqi.training.schedule import Schedule
from duiqi.training.session import Cadence
from duiqi.types import Example


def make_tokenizer(
    settings: ModelSettings, start: Start, say: Callable[[str], object] = bool
) -> PreTrainedTokenizerBase:
    """The tokenizer of the adapter to start from, or of the base, with the tokens that are to be added.

    Args:
        say: Told what was missing in it and mended; by default nobody is.

    Raises:
        ModelError: There is none, or it has more tokens than the base has rows for and may have.
    """
    has_own = start.adapter is not None and (start.adapter / "tokenizer_config.json").is_file()
    place = str(start.adapter) if has_own else start.base
    tokenizer = load_tokenizer(place, trust_remote_code=settings.trust_remote_code, say=say)
    if not has_own and not settings.resize_vocab:
        for finding in refuse_larger_vocabulary(tokenizer, start.base):
            say(finding)
    if new := tokens_to_add(settings):
        tokenizer.add_tokens(new, special_tokens=True)
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
    rows, reports = read_rows(settings, need, seed=seed)
    rejects = [asdict(row) for report in reports for row in report.rejects]
    if rejects:
        journal.write_rejects(rejects)
    files, before = [asdict(file) for report in reports for file in report.files], journal.recorded("data")
    if before is not None and before != files:
        journal.warn("the data are not those that the run began with, so it goes on to other numbers")
    journal.describe(data=files)
    return rows


def read_rows(settings: DataSettings, need: Need, *, seed: int) -> tuple[Examples, list[LoadReport]]:
    """The same without a journal, and what was read of each of the two settings.

    Raises:
        DataError: As `load_rows`.
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
    notes = [line for report in reports for line in report.lines()]
    if settings.val_size:
        notes.append(f"{len(held_out)} of them held out for evaluation")
    if settings.mix_strategy != "concat":
        train = mix_datasets(train, settings, num_datasets=len(loaded.report.datasets), seed=seed)
        notes.append(f"mixed by {settings.mix_strategy}: {len(train)} rows to learn from")
    return Examples(train, held_out, tuple(notes)), reports


def mix_datasets(rows: list[Example], settings: DataSettings, *, num_datasets: int, seed: int) -> list[Example]:
    """The rows to learn from as `mix_strategy` wants them."""
    given = settings.interleave_probs
    probabilities = None if given is None else read_probabilities(given)
    return mix(rows, settings.mix_strategy, num_datasets=num_datasets, probabilities=probabilities, seed=seed)


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
    """AdamW with the schedule of these settings, on everything that learns.

    Raises:
        SettingsError: `loraplus_lr_ratio` is given and no low-rank adapter learns.
    """
    parameters = base.trainable_parameters()
    second_matrices = [name for name in parameters if ".lora_B." in name]
    if settings.loraplus_lr_ratio is not None and not second_matrices:
        raise SettingsError(
            "no low-rank adapter learns here, so there is none to learn faster",
            where="loraplus_lr_ratio",
            remedy="remove it",
        )
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * total_steps)
    return Learner(
        parameters,
        Schedule(settings.learning_rate, total_steps, warmup, settings.lr_scheduler_type),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        budget=budget or make_memory_budget(settings, journal),
        faster=dict.fromkeys(second_matrices, settings.loraplus_lr_ratio or 1.0),
        scale=LossScale() if base.precision == torch.float16 else None,
        networks=base.networks,
    )


def make_cadence(settings: RunSettings, total_steps: int) -> Cadence:
    """How often to log, evaluate and save."""
    return Cadence(
        total_steps=total_steps,
        logging_steps=settings.logging_steps,
        eval_steps=settings.eval_steps,
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        save_keep_every=settings.save_keep_every,
        max_skipped_steps=settings.max_skipped_steps,
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
    modules = trained_rows([(path, parameter.numel()) for path, parameter in base.trained_modules()])
    trained = sum(p.numel() for p in learning)
    total = sum(p.numel() for p in {*base.model.parameters(), *learning})
    parents = {"base": base.name, "base_fingerprint": base.fingerprint}
    if start.adapter is not None:
        parents["adapter"] = str(start.adapter)
    journal.describe(
        parents={**parents, **facts},
        layout=str(base.layout),
        parameters={"trained": trained, "total": total, "modules": [asdict(row) for row in modules]},
        notes=list(notes),
    )
    shown = {
        "base": f"{base.name}, {str(base.dtype).removeprefix('torch.')} on {base.device}",
        **({"adapter": str(start.adapter)} if start.adapter is not None else {}),
        "trains": f"{trained:,} of {total:,} parameters; {describe_trained(modules)}",
        **({"template": describe_template(template)} if template is not None else {}),
        "computes": str(base.layout),
        **facts,
    }
    journal.view.stage(title, shown)
    for note in notes:
        journal.view.note(note)


def describe_trained(rows: Sequence[TrainedRow]) -> str:
    """What learns, those in the same layers together.

    >>> rows = [TrainedRow("mlp.up", "0-2", 1200), TrainedRow("mlp.down", "0-2", 9), TrainedRow("head", "", 8)]
    >>> describe_trained(rows)
    'layers 0-2: mlp.up (1,200), mlp.down (9); head (8)'
    """
    by_layers: dict[str, list[str]] = {}
    for row in rows:
        by_layers.setdefault(row.layers, []).append(f"{row.module} ({row.parameters:,})")
    places = {layers: f"layer{'' if layers.isdigit() else 's'} {layers}: " for layers in by_layers if layers}
    groups = ((places.get(layers, ""), ", ".join(names)) for layers, names in by_layers.items())
    return "; ".join(place + names for place, names in groups)


def describe_template(template: Template) -> str:
    """The template in a few words."""
    extras: Sequence[str] = [
        f"{name} {text!r}" for name, text in (("system", template.system), ("prefix", template.source_prefix)) if text
    ]
    first, *others = template.stop_tokens
    ends = [f"answers end with {first}, and at {' or '.join(others)} too"] if others else []
    return ", ".join([template.name, *extras, *ends])

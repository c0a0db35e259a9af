"""A run as one plain model: its adapters merged, checked on prompts, written so that it needs nothing of duiqi."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from duiqi.data.encoding import encode_prompt
from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec
from duiqi.data.templates import Template, from_dict, get_template
from duiqi.errors import ModelError, RunError, SettingsError, TemplateError
from duiqi.journal.files import writing
from duiqi.models.adapter_files import SavedAdapter
from duiqi.models.card import CARD_NAME, ModelCard
from duiqi.models.lineage import read_stack
from duiqi.models.loading import (
    Located,
    choose_device,
    load_causal_lm,
    load_tokenizer,
    locate,
    quietly,
    refuse_other_base,
)
from duiqi.models.merging import merge
from duiqi.models.ports.registry import find_port
from duiqi.models.reward import load_reward_model
from duiqi.models.saving import as_sequence_classifier
from duiqi.models.seats import take_seat
from duiqi.models.vocabulary import grow_vocabulary
from duiqi.serving.export_files import model_card, modelfile, with_chat_template
from duiqi.types import Message

PROMPTS = ("你好，请介绍一下你自己。", "为什么天空是蓝色的？", "Write one sentence about the sea.", "1 + 1 = ?")
"""What a merged model is compared on where no file of prompts is given."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""How far the merged model's logits may be from those of base and adapters, relative to their size: one rounding of
every weight."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    directory: Path
    merged: int
    """Adapters that went into it."""
    gap: float
    """Of its outputs from those of base and adapters on the prompts, relative to their size."""
    prompts: int
    notes: tuple[str, ...] = ()


@quietly()
def export(
    path: str,
    output_dir: str,
    *,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    prompts_file: str | None = None,
    device: str = "auto",
) -> Exported:
    """Merge a run (or adapter) into its base and write a plain model with tokenizer, template and generation config.

    Args:
        dtype: Of the weights written; auto: as the base is stored.
        max_shard_size: Of one file of weights, as "5GB".
        prompts_file: Rows whose prompts the result is compared on; None: a few of our own.

    Raises:
        ModelError: It cannot be loaded, has a learned prefix, or the merged model answers differently.
        RunError: The directory has files in it already.
        SettingsError: The size is none.
    """
    target = _empty(output_dir)
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]B", max_shard_size, re.IGNORECASE):
        raise SettingsError(f"{max_shard_size!r} is no size", where="max_shard_size", remedy="write 500MB or 5GB")
    where = locate(path)
    stack = read_stack(where.adapter) if where.adapter is not None else ()
    _refuse_what_cannot_be_merged(where, stack, path)
    tokenizer = load_tokenizer(where.leaf)
    template = _template_of(where, tokenizer)
    network = load_causal_lm(where.base, device=choose_device(device), dtype=_dtype(dtype, where.base))
    refuse_other_base(where, path, model=network)
    grow_vocabulary(network, where.vocabulary)
    seat = take_seat(network, "exported", stack)
    network.eval()  # the dropout of an adapter is born in training mode
    score = stack[-1].score if stack else None
    rows = _rows(template, tokenizer, prompts_file)
    before = [_outputs(network, row, score) for row in rows]
    plain = merge(seat)
    gap = _gap(before, [_outputs(plain, row, score) for row in rows])
    _refuse_difference(gap, plain.dtype, path)
    stops = () if template is None else template.stop_token_ids
    plain.generation_config = GenerationConfig(
        eos_token_id=list(stops) or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    notes = with_chat_template(tokenizer, template) if template is not None else ()
    if find_port(where.base) is not None:
        notes = (*notes, "transformers has no class for this network: it opens with duiqi.load_model")
    card = _card_of(where, target, template, score)
    parents = [where.base, *(str(saved.path) for saved in stack)]
    beside = {CARD_NAME: card.to_json(), "README.md": model_card(target.name, parents, plain, card, gap)}
    if template is not None and score is None:
        beside["Modelfile"] = modelfile(template)
    written = plain if score is None else as_sequence_classifier(plain, score, tokenizer)
    with _whole(target) as draft:
        written.save_pretrained(draft, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(draft)
        for name, text in beside.items():
            (draft / name).write_text(text, encoding="utf-8")
        _refuse_difference(_gap(before, _reread(draft, rows, score, plain.dtype)), plain.dtype, output_dir)
    return Exported(target, len(stack), gap, len(rows), tuple(notes))


def _empty(output_dir: str) -> Path:
    """A directory that is new or empty."""
    target = Path(output_dir).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError("there are files in it already", where=output_dir, remedy="give another --output_dir")
    return target


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` when everything in it is as it should be, and is gone when not."""
    draft = target.with_name(f".{target.name}.partial")
    with writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            if target.exists():
                target.rmdir()
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _refuse_what_cannot_be_merged(where: Located, stack: Sequence[SavedAdapter], path: str) -> None:
    if where.adapter is None and where.card is not None and where.card.role == "reward":
        raise ModelError(
            "this reward model is a plain model already, there is nothing to merge",
            where=path,
            remedy="open it with transformers' AutoModelForSequenceClassification as it is",
        )
    if any(saved.prefix is not None for saved in stack):
        raise ModelError(
            "a learned prefix is no weight and cannot be merged",
            where=path,
            remedy="load it as PEFT's prefix tuning, or train a low-rank adapter instead",
        )


def _dtype(dtype: str, base: str) -> torch.dtype:
    if dtype != "auto":
        return _DTYPES[dtype]
    port = find_port(base)
    config = AutoConfig.from_pretrained(base) if port is None else port.config_class.from_pretrained(base)
    stored = config.dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _template_of(where: Located, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """The template it was trained with, or the tokenizer's own; None: it has none."""
    if where.card is not None and where.card.template:
        return from_dict(where.card.template, tokenizer)
    try:
        return get_template(None, tokenizer)
    except TemplateError:
        return None


def _rows(template: Template | None, tokenizer: PreTrainedTokenizerBase, file: str | None) -> list[list[int]]:
    """The prompts to compare on, as tokens."""
    if template is None:
        return [list(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    prompts: Sequence[Sequence[Message]] = [(Message("user", prompt),) for prompt in PROMPTS]
    if file is not None:
        examples = load_examples([DatasetSpec(file)], dataset_dir=".", need="conversation", seed=0).examples
        prompts = [example.prompt for example in examples]
    return [encode_prompt(template, tokenizer, messages=prompt) for prompt in prompts]


@torch.no_grad()
def _outputs(network: PreTrainedModel, row: Sequence[int], score: Tensor | None) -> Tensor:
    """Logits of a row; of a reward model its last hidden states and the score."""
    ids = torch.tensor([list(row)], device=network.device)
    if score is None:
        logits: Tensor = network(input_ids=ids, use_cache=False).logits
        return logits.float().cpu()
    trunk = getattr(network, network.base_model_prefix)
    hidden: Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state.float().cpu()
    return hidden @ score.float().cpu().t()


def _gap(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest distance of two outputs of a row, relative to their size."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for b, a in zip(before, after, strict=True))


def _refuse_difference(gap: float, dtype: torch.dtype, where: str) -> None:
    if not gap <= TOLERANCE[dtype]:
        raise ModelError(
            f"the merged model is not the one with adapters: outputs differ by {gap:.1e} of their size, "
            f"{TOLERANCE[dtype]:g} would be the rounding of {dtype}".replace("torch.", ""),
            where=where,
            remedy="export with dtype: float32; if it differs there too, please report it",
        )


def _reread(directory: Path, rows: Sequence[Sequence[int]], score: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """The outputs of what was written."""
    if score is None:
        model = load_causal_lm(str(directory), device=torch.device("cpu"), dtype=dtype)
        return [_outputs(model, row, None) for row in rows]
    classifier = load_reward_model(str(directory), device="cpu", dtype=str(dtype).removeprefix("torch."))
    return [_outputs(classifier, row, classifier.score.weight) for row in rows]


def _card_of(where: Located, target: Path, template: Template | None, score: Tensor | None) -> ModelCard:
    old = where.card
    stage = old.stage if old is not None else "export"
    card = ModelCard(
        stage=stage,
        role="policy" if score is None else "reward",
        base=str(target.resolve()),
        base_fingerprint=old.base_fingerprint if old is not None else "",
        template=None if template is None else template.to_dict(),
        head=None if score is None else "score",
    )
    return replace(card, parents=tuple(filter(None, (str(where.adapter or ""), where.base))))

"""What a stage begins with: the base, the adapters on it, and who is seated where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from duiqi.data.templates import Template
from duiqi.errors import ModelError, SettingsError
from duiqi.models.adapter_files import SavedAdapter, is_adapter
from duiqi.models.adapters import AdapterSpec, FreezeSpec, LoRASpec
from duiqi.models.card import ModelCard, read_card
from duiqi.models.fingerprint import is_same_base
from duiqi.models.lineage import as_below, read_stack, stack_up
from duiqi.models.loading import choose_device, choose_dtype, load_causal_lm, locate
from duiqi.models.prefix import PrefixSpec
from duiqi.models.quantized import Quantization
from duiqi.models.shared_base import SharedBase
from duiqi.models.targets import Target, plain_modules
from duiqi.models.vocabulary import grow_vocabulary, num_rows
from duiqi.settings.groups import ModelSettings, TuningSettings


@dataclass(frozen=True)
class Start:
    """What a stage starts from."""

    base: str
    stack: tuple[SavedAdapter, ...]
    """The adapters that the policy begins with, one above the other; the last is the one it was said to start from."""
    card: ModelCard | None
    """The card of the last adapter, or of the base where that came from duiqi."""
    is_below: bool = False
    """Whether a new adapter is trained above all of them; else a copy of the last."""

    @property
    def adapter(self) -> Path | None:
        """Where the last adapter is."""
        return self.stack[-1].path if self.stack else None

    @property
    def below(self) -> tuple[SavedAdapter, ...]:
        """The adapters below the one that is trained."""
        return self.stack if self.is_below else self.stack[:-1]


def find_start(settings: ModelSettings, *, role: str = "policy") -> Start:
    """The base and the adapters to begin with; `model_name_or_path` may itself be a run.

    Raises:
        ModelError: Nothing usable is there, adapters do not belong together, or a policy would start from a
            reward model.
    """
    start = _locate_start(settings)
    is_reward_model = start.card is not None and start.card.role == "reward"
    if role == "policy" and (is_reward_model or any(saved.score is not None for saved in start.stack)):
        raise ModelError(
            "this is a reward model: it scores answers and cannot learn to give any",
            where=str(start.adapter or start.base),
            remedy="start from an sft run, or from the base",
        )
    return start


def _locate_start(settings: ModelSettings) -> Start:
    located = locate(settings.model_name_or_path)
    new = settings.create_new_adapter
    if settings.adapter_name_or_path is None:
        if located.adapter is not None:
            return Start(located.base, read_stack(located.adapter), located.card, is_below=new)
        if new:
            raise SettingsError(
                "there is no adapter to train a new one above",
                where="create_new_adapter",
                remedy="remove it, or name an adapter with adapter_name_or_path",
            )
        return Start(located.base, (), located.card)
    adapters = [Path(name.strip()).expanduser() for name in settings.adapter_name_or_path.split(",") if name.strip()]
    if located.adapter is not None and [located.adapter.resolve()] != [adapter.resolve() for adapter in adapters]:
        raise ModelError(
            f"is an adapter itself, but adapter_name_or_path names {settings.adapter_name_or_path}",
            where=f"model_name_or_path: {located.adapter}",
            remedy=f"keep one of the two: set model_name_or_path: {located.base} to start from the other",
        )
    if not adapters:
        raise SettingsError("names no adapter", where="adapter_name_or_path", remedy="name one, or remove it")
    for adapter in adapters:
        if not is_adapter(adapter):
            raise ModelError(
                "there is no adapter here (adapter_config.json is missing)",
                where=f"adapter_name_or_path: {adapter}",
                remedy="give the output_dir of a finished run, one of its checkpoints, or a PEFT directory",
            )
    return Start(located.base, stack_up(adapters), read_card(adapters[-1]), is_below=new)


def make_base(
    settings: ModelSettings, tuning: TuningSettings, start: Start, *, num_tokens: int, from_scratch: bool = False
) -> SharedBase:
    """The base model on its device, frozen, with nobody seated yet.

    Args:
        num_tokens: Of the tokenizer. Embeddings and head are grown to as many rows where that is asked for.

    Raises:
        ModelError: It cannot be loaded, the adapter to start from belongs to another base, or tokens have no rows.
        SettingsError: Full fine-tuning was asked for in half precision, which rounds small updates away; or as
            `check_tuning`.
    """
    check_tuning(start, tuning)
    device = choose_device(settings.device)
    model = load_causal_lm(
        start.base,
        device=device,
        dtype=base_dtype(settings, tuning, device),
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        from_scratch=from_scratch,
        quantization=_quantization(settings),
    )
    base = SharedBase(model, name=start.base)
    for saved in start.stack:
        if (card := read_card(saved.path)) is not None:
            check_belongs(card, base, str(saved.path))
    grow_vocabulary(base.model, start.card.vocabulary if start.card is not None else 0)
    _fit_vocabulary(base, settings, tuning, num_tokens)
    return base


def base_dtype(settings: ModelSettings, tuning: TuningSettings, device: torch.device) -> torch.dtype:
    """The precision of the base's weights.

    Raises:
        SettingsError: Full fine-tuning was asked for in half precision, which rounds small updates away.
    """
    if tuning.finetuning_type != "full":
        return choose_dtype(settings.dtype, device, trains=True)
    if settings.dtype in ("bfloat16", "float16"):
        raise SettingsError(
            f"full fine-tuning in {settings.dtype} loses every update smaller than the rounding of a weight",
            where="dtype",
            remedy="leave dtype out (full fine-tuning then uses float32), or set finetuning_type: lora",
        )
    return torch.float32


def check_tuning(start: Start, tuning: TuningSettings) -> None:
    """Refuse a way to tune that what the stage starts from cannot be tuned in, before anything is loaded.

    Raises:
        ModelError: Full fine-tuning was asked to start from an adapter.
        SettingsError: The adapter to start from was given another shape.
    """
    if not start.stack:
        return
    if tuning.finetuning_type == "full":
        raise ModelError(
            "full fine-tuning cannot start from an adapter",
            where=f"adapter_name_or_path: {start.adapter}",
            remedy="set finetuning_type: lora, or give a full model (`duiqi export` makes one)",
        )
    said_again = TuningSettings(finetuning_type=start.stack[-1].kind)  # type: ignore[arg-type]
    if not start.is_below and tuning not in (TuningSettings(), said_again):
        raise SettingsError(
            f"settings of a new adapter have no effect: {start.adapter} is trained in the shape it has",
            where=f"model_name_or_path: {start.adapter}",
            remedy="remove them, or set create_new_adapter: true to train a new adapter above it",
        )


def tokens_to_add(settings: ModelSettings) -> list[str]:
    """The tokens that are to be added to the vocabulary."""
    return [token.strip() for token in settings.add_tokens.split(",") if token.strip()]


def _fit_vocabulary(base: SharedBase, settings: ModelSettings, tuning: TuningSettings, num_tokens: int) -> None:
    """Grow the vocabulary to that of the tokenizer, where it may, and see that new tokens can learn."""
    rows = num_rows(base.model)
    new = max(num_tokens - rows, len(tokens_to_add(settings)))
    if not settings.resize_vocab or new <= 0:
        return
    if base.is_grown and num_tokens > rows:
        raise SettingsError(
            f"the adapter that this starts from has grown the vocabulary to {rows} tokens already",
            where="add_tokens",
            remedy="merge it with `duiqi export` and start from that, or train it again with all new tokens at once",
        )
    grow_vocabulary(base.model, num_tokens)
    learned = tuning.modules_to_save if tuning.finetuning_type == "lora" else ""
    embeddings, head = (
        next(path for path, module in plain_modules(base.model) if module is end)
        for end in (base.model.get_input_embeddings(), base.model.get_output_embeddings())
    )
    if tuning.finetuning_type != "full" and not any(Target(n.strip()).matches(embeddings) for n in learned.split(",")):
        raise SettingsError(
            f"{new} new tokens would never learn what they mean: the embeddings are frozen",
            where="resize_vocab",
            remedy=f"set modules_to_save: {embeddings.rpartition('.')[2]},{head.rpartition('.')[2]}",
        )


def _quantization(settings: ModelSettings) -> Quantization | None:
    match settings.quantization_bit:
        case None:
            return None
        case 4 | 8 as bits:
            return Quantization(bits, settings.quantization_type, settings.double_quantization)
    raise SettingsError(
        f"{settings.quantization_bit} bits are not to be had", where="quantization_bit", remedy="set 4 or 8"
    )


def check_belongs(card: ModelCard, base: SharedBase, where: str) -> None:
    """Refuse an adapter that was trained on other base weights.

    A base in float16 is believed: its rounding is not a step on the way to bfloat16, in which fingerprints are taken.
    So is one without weights, of a plan.

    Raises:
        ModelError: The fingerprints differ.
    """
    if not base.fingerprint or base.dtype == torch.float16:
        return
    if not is_same_base(card.base_fingerprint, base.fingerprint):
        if Path(card.base).resolve() == Path(base.name).resolve():
            raise ModelError(
                f"the adapter was trained on other weights than are now in {base.name}",
                where=where,
                remedy="put back the weights of its base, or train the adapter again on these",
            )
        raise ModelError(
            f"the adapter was trained on {card.base}, whose weights are not those of {base.name}",
            where=where,
            remedy=f"set model_name_or_path: {card.base}, or train the adapter again on this base",
        )


def seat_policy(
    base: SharedBase, start: Start, tuning: TuningSettings, *, opening: Sequence[int], role: str = "policy"
) -> None:
    """Seat what this stage trains: the adapter it starts from, a fresh one, or the whole base.

    Args:
        opening: Tokens of the data, from which a prefix begins.

    Raises:
        ModelError: A name of a module means nothing here.
    """
    if tuning.finetuning_type == "full":
        base.seat_full(role)
    elif start.stack and not start.is_below:
        base.seat_saved_adapter(role, start.stack[-1], trainable=True, above=start.below)
    elif tuning.finetuning_type == "p_tuning":
        spec = PrefixSpec(tuning.pre_seq_len, tuning.prefix_projection)
        base.seat_new_prefix(role, spec, opening=opening, above=start.below)
    else:
        base.seat_new_adapter(role, adapter_spec(tuning), above=start.below)
    base.rest_on(role)


def seat_reference(base: SharedBase, named: str | None) -> str:
    """Seat the reference: the policy as it is now, unless an adapter is named. Returns what it is, in words.

    Raises:
        ModelError: The named adapter is missing, a reward model, or belongs to another base.
    """
    if named is not None:
        if not is_adapter(Path(named)):
            raise ModelError(
                "there is no adapter here", where=f"ref_model: {named}", remedy="give an adapter directory"
            )
        if (card := read_card(named)) is not None:
            check_belongs(card, base, named)
    is_base_trained = base.seat("policy").own is None
    if is_base_trained:
        base.seat_frozen_copy("reference")
    if named is not None:
        beside = "reference" if is_base_trained else None
        *below, own = read_stack(named)
        if own.score is not None:
            raise ModelError(
                "this is a reward model: it gives no answers that a policy could be compared with",
                where=f"ref_model: {named}",
                remedy="give the adapter of an sft run",
            )
        base.seat_saved_adapter("reference", own, trainable=False, above=below, beside=beside)
        return named
    if is_base_trained:
        return "a frozen copy of the policy at step 0"
    base.seat_copy("reference", "policy", trainable=False)
    return "the policy at step 0"


def adapter_spec(tuning: TuningSettings) -> AdapterSpec:
    """The shape of a new adapter."""
    if tuning.finetuning_type == "freeze":
        return FreezeSpec(tuning.freeze_trainable_layers, tuning.freeze_trainable_modules)
    return LoRASpec(
        rank=tuning.lora_rank,
        alpha=tuning.lora_alpha,
        dropout=tuning.lora_dropout,
        target=tuning.lora_target,
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
        pissa=tuning.pissa_init,
        modules_to_save=tuning.modules_to_save,
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
        parents=(str(start.adapter.resolve()), *older) if start.adapter is not None and not start.is_below else (),
        below=as_below(start.below),
        vocabulary=num_rows(base.model) if base.is_grown else 0,
        head="score" if role == "reward" else None,
    )

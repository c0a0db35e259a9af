"""Loading base models and tokenizers, and finding out what a path is: a model, an adapter or a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from duiqi.errors import DuiqiError, ModelError
from duiqi.models.adapter_files import is_adapter, read_adapter, refuse_damage
from duiqi.models.card import ModelCard, find_again, read_card
from duiqi.models.fingerprint import fingerprint, is_same_base
from duiqi.models.lineage import read_stack
from duiqi.models.ports.registry import find_port, find_tokenizer
from duiqi.models.quantized import Quantization, compute_alike, quantization_config
from duiqi.models.seats import take_seat
from duiqi.models.tokenizers import settle
from duiqi.models.vocabulary import grow_vocabulary

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Located:
    """What a path given by the user holds."""

    base: str
    """Directory or hub name of the full model."""
    adapter: Path | None
    card: ModelCard | None

    @property
    def vocabulary(self) -> int:
        """Rows that the embeddings of the base had when the adapter was trained; 0: as many as it has."""
        return self.card.vocabulary if self.card is not None else 0

    @property
    def leaf(self) -> str:
        """The directory that carries the tokenizer: the adapter if it has one, as those of 2023 have not."""
        has_own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return str(self.adapter) if has_own else self.base


def locate(path: str) -> Located:
    """Say what `path` is: a full model (directory or hub name), or an adapter and the base it belongs to.

    `BASE,ADAPTER` names both, for an adapter whose base is elsewhere than it says.

    Raises:
        ModelError: The directory holds neither, is a damaged checkpoint, or the base it names is gone.
    """
    directory = Path(path).expanduser()
    first, comma, second = path.partition(",")
    if comma and not os.path.exists(directory):
        return _with_base(first.strip(), Path(second.strip()).expanduser())
    if not os.path.exists(directory):
        is_beside_others = "/" in path and directory.parent.is_dir()  # runs/sf for runs/sft, and no name on the hub
        if path.startswith((".", "/", "~")) or path.count("/") > 1 or is_beside_others:
            raise ModelError("there is no such directory", where=path, remedy="check the path")
        return Located(base=path, adapter=None, card=None)
    card = read_card(directory)
    if is_adapter(directory):
        return Located(base=_base_of(directory, card), adapter=directory, card=card)
    if (directory / "config.json").is_file():
        refuse_damage(directory)
        return Located(base=str(directory), adapter=None, card=card)
    if (directory / "checkpoints").is_dir():
        raise ModelError(
            "this run has not finished, so it has no result yet",
            where=path,
            remedy=f"use a checkpoint of it, e.g. {directory / 'last'}, or finish it with resume_from_checkpoint: true",
        )
    raise ModelError(
        "neither a model (config.json) nor an adapter (adapter_config.json) is here",
        where=path,
        remedy="give a model directory, a hub name, an adapter or a run directory",
    )


def _with_base(base: str, adapter: Path) -> Located:
    """An adapter on a base that was named beside it."""
    located = locate(base)
    if located.adapter is not None or not is_adapter(adapter):
        wrong, what = (base, "an adapter itself") if located.adapter is not None else (str(adapter), "no adapter")
        raise ModelError(
            f"is {what}, where BASE,ADAPTER names a full model and one adapter on it",
            where=wrong,
            remedy="name the base first; a run of duiqi needs no base beside it",
        )
    return Located(located.base, adapter, read_card(adapter))


def _base_of(directory: Path, card: ModelCard | None) -> str:
    named = card.base if card else read_adapter(directory).base
    if not named:
        raise ModelError(
            "does not say which base it was trained on",
            where=str(directory),
            remedy=f"name the base too: BASE,{directory} (in a stage: model_name_or_path and adapter_name_or_path)",
        )
    found = find_again(named, card.base_relative if card else None, directory)
    if found is not None or not os.path.isabs(named):
        return named if found is None else str(found)
    raise ModelError(
        f"its base model {named} is not there any more",
        where=str(directory),
        remedy=f"put the base back, or name its new place: BASE,{directory} (in a stage: model_name_or_path)",
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Within this context transformers shows neither progress bars nor warnings, such as the one about a score head
    that is loaded a moment later. What is really wrong with a model is raised, here or there."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def refusing(problem: str, *, where: str, remedy: str) -> Iterator[None]:
    """Whatever transformers raises within this context, while it reads files, becomes a ModelError.

    Raises:
        ModelError: With `problem` and the first line of the reason.
    """
    try:
        yield
    except DuiqiError:
        raise
    except Exception as error:  # files of any content, read by libraries that raise whatever they come upon
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(error, ImportError):
            remedy = "install the package that is missing, or set attn_implementation: sdpa if it names that setting's"
        raise ModelError(f"{problem} ({reason})", where=where, remedy=remedy) from error


def refuse_incomplete(info: Mapping[str, Any], *, where: str, remedy: str, replaced: Collection[str] = ()) -> None:
    """Refuse a model that was not wholly in its files: transformers fills the rest with random numbers.

    Args:
        info: What transformers says with `output_loading_info`. It counts no weight as missing that is tied to another.
        replaced: Names of weights that come from elsewhere.

    Raises:
        ModelError: A weight is missing or of another shape.
    """
    if missing := sorted(set(info["missing_keys"]).difference(replaced)):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(f"weight {missing[0]}{more} is missing from its files", where=where, remedy=remedy)
    for name, found, expected in sorted(info["mismatched_keys"]):
        if name not in replaced:
            shapes = f"{tuple(found)} in its files, expected {tuple(expected)}"
            raise ModelError(f"weight {name} has shape {shapes}", where=where, remedy=remedy)


def refuse_reward_model(where: Located, path: str) -> None:
    """Refuse a reward model where a model that answers is expected.

    Raises:
        ModelError: The card says that it is one.
    """
    if where.card is not None and where.card.role == "reward":
        raise ModelError(
            f"this is the reward model of a {where.card.stage} run: it scores answers and cannot give any",
            where=path,
            remedy=f"score answers with `duiqi score {path} FILE`, or give a run that trained a policy",
        )


def refuse_other_base(where: Located, path: str, *, model: PreTrainedModel) -> None:
    """Refuse an adapter that was not trained on `model`, its base as loaded just now.

    A model in float16 is believed: its rounding is not a step on the way to bfloat16, in which fingerprints are taken.

    Raises:
        ModelError: The card has the fingerprint of other weights.
    """
    if where.adapter is None or where.card is None or model.dtype == torch.float16:
        return
    if not is_same_base(where.card.base_fingerprint, fingerprint(model)):
        raise ModelError(
            f"the adapter was trained on other weights than are now in {where.base}",
            where=path,
            remedy="put back the weights of its base, or train again on these; if it was trained with dtype: float16, "
            "load it with that",
        )


def choose_device(device: str) -> torch.device:
    """The device that `auto` means here, or the one named.

    Raises:
        ModelError: The device does not exist.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used ({reason})", where="device", remedy="try auto") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device, *, trains: bool = False) -> torch.dtype:
    """The precision that `dtype` names; auto is bfloat16 on GPUs that have it, and to train on CPUs that have it.

    Reading alone on a CPU stays in float32, where a score does not depend on what is read beside it.
    """
    if dtype != "auto":
        return _DTYPES[dtype]
    has_bfloat16 = False
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported()
    elif device.type == "cpu" and trains:
        has_bfloat16 = cpu_multiplies_bfloat16()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16 (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) is True for name in ("avx512_bf16", "amx_bf16"))


@quietly()
def load_causal_lm(
    path: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str = "auto",
    trust_remote_code: bool = False,
    from_scratch: bool = False,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, nothing trainable.

    Raises:
        ModelError: Nothing loadable is there, weights are missing, or they cannot be quantised here.
    """
    quantized: dict[str, Any] = {}
    if quantization is not None:
        quantized["quantization_config"] = quantization_config(quantization, device=device, dtype=dtype)
        quantized["device_map"] = {"": device}
    remedy = "give a directory with config.json and all weights, or the name of a model on the hub"
    attention = None if attn_implementation == "auto" else attn_implementation
    model: PreTrainedModel
    with refusing("cannot be loaded as a causal language model", where=path, remedy=remedy):
        port = find_port(path)
        info: Mapping[str, Any] = {"missing_keys": (), "mismatched_keys": ()}
        if from_scratch and port is not None:
            config = port.config_class.from_pretrained(path, attn_implementation=attention)
            model = port.causal_lm_class(config).to(dtype)
        elif from_scratch:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code
            )
        else:
            kind = AutoModelForCausalLM if port is None else port.causal_lm_class
            model, info = kind.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the weight's name
                **quantized,
            )
    refuse_incomplete(info, where=path, remedy=remedy)
    model.requires_grad_(False)
    if quantized:
        compute_alike(model)
        return model.eval()
    return model.to(device).eval()


@quietly()
def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, say: Callable[[str], object] = bool
) -> PreTrainedTokenizerBase:
    """The tokenizer in `path`, with an end token and a padding token. A directory is read alone, without the network.

    Args:
        say: Told, in plain sentences, what was missing and what stands in for it; by default nobody is.

    Raises:
        ModelError: There is none, it has code of its own, or nothing could end an answer.
    """
    is_local = Path(path).is_dir()
    with refusing("has no tokenizer that can be loaded", where=path, remedy=_tokenizer_remedy(path)):
        load = find_tokenizer(path)
        if load is not None:
            tokenizer = load(path)
        else:
            tokenizer = _transformers_tokenizer(path, trust_remote_code, say, local_files_only=is_local)
    for finding in settle(tokenizer, path):
        say(finding)
    return tokenizer


def _transformers_tokenizer(
    path: str, trust_remote_code: bool, say: Callable[[str], object], *, local_files_only: bool
) -> PreTrainedTokenizerBase:
    """As transformers loads it; from tokenizer.json alone where it would have to run code that is not trusted."""
    try:
        return AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=local_files_only
        )
    except ValueError as error:
        if "trust_remote_code" not in str(error) or not (Path(path) / "tokenizer.json").is_file():
            raise
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    tokenizer.init_kwargs.pop("auto_map", None)
    say("the tokenizer's own code is not run (trust_remote_code is off): it is read from its tokenizer.json")
    return tokenizer


def _tokenizer_remedy(path: str) -> str:
    directory = Path(path)
    if directory.is_dir() and not (directory / "tokenizer.json").is_file():
        if "auto_map" in get_tokenizer_config(path, local_files_only=True):
            return "set trust_remote_code: true to run the tokenizer's own code, if you trust it"
        if any(directory.glob("*.model")):
            return "pip install 'duiqi[legacy]', which reads SentencePiece models"
    return "copy the tokenizer's files of the base model (tokenizer.json, tokenizer_config.json) there"


def load_model(
    path: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """A model or run by its path, its adapters attached: a transformers model, `forward` and `generate` included.

    With a learned prefix it is wrapped in a PeftModel, which puts the prefix before every row.

    Raises:
        ModelError: It cannot be loaded, is a reward model, or its base has changed.

    >>> model = load_model("runs/sft")  # doctest: +SKIP
    """
    where = locate(path)
    refuse_reward_model(where, path)
    chosen = choose_device(device)
    model = load_causal_lm(
        where.base, device=chosen, dtype=choose_dtype(dtype, chosen), trust_remote_code=trust_remote_code
    )
    stack = read_stack(where.adapter) if where.adapter is not None else ()
    if stack:
        refuse_other_base(where, path, model=model)
        grow_vocabulary(model, where.vocabulary)
        take_seat(model, "policy", stack)
        model.to(chosen)
    if where.card is not None and where.card.template and (Path(where.leaf) / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(where.leaf, trust_remote_code=trust_remote_code)
        _stop_as_trained(model, tokenizer, where.card.template)
    for saved in reversed(stack):
        if saved.prefix is not None:
            return PeftModel.from_pretrained(model, str(saved.path)).to(chosen).eval()
    return model.eval()


def _stop_as_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Mapping[str, Any]) -> None:
    """Let `model.generate` stop where the template ends an answer, which may be another token than the base's."""
    stops = tokenizer.convert_tokens_to_ids(list(template["stop_tokens"]))
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = tokenizer.pad_token_id

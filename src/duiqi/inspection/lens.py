"""The tokenizer and the template through which data are looked at, as a stage would have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from duiqi.data.encoding import TokenBudget, token_budget
from duiqi.data.templates import Template, from_dict, get_template
from duiqi.errors import TemplateError
from duiqi.models.loading import Located, load_tokenizer, locate
from duiqi.models.tokenizers import special_tokens

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class LensSettings:
    """What a stage would be told; None: what the model was trained with, else the stages' default."""

    template: str | None = None
    system: str | None = None
    source_prefix: str | None = None
    cutoff_len: int = 1024
    max_source_length: int | None = None
    max_target_length: int | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Lens:
    """What turns rows into tokens."""

    name: str
    """The model, adapter or run, as it was named."""
    base: str
    """The full model behind it: a directory or a hub name."""
    is_run: bool
    """Whether it came out of duiqi and brings a template of its own."""
    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    """None: there is none, for the reason in `refusal`."""
    budget: TokenBudget
    settings: LensSettings
    difference: str = ""
    """In what the template differs from the one that the run was trained with, as a sentence; mostly nothing."""
    mended: tuple[str, ...] = ()
    """What the tokenizer lacked and duiqi gave it, in plain sentences."""
    refusal: str = ""

    @cached_property
    def special_token(self) -> re.Pattern[str]:
        """Finds the tokenizer's special tokens in a text, the longest first."""
        names = sorted((token for token in special_tokens(self.tokenizer) if token.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def needed_template(self) -> Template:
        """The template.

        Raises:
            TemplateError: There is none.
        """
        if self.template is None:
            raise TemplateError(self.refusal, where="template", remedy="name one with --template")
        return self.template


def open_lens(model: str, settings: LensSettings) -> Lens:
    """The tokenizer of a model, adapter, run or directory of tokenizer files, and its template.

    No weights are read. A tokenizer without a usable template is no error here: `refusal` says what is missing.

    Raises:
        ModelError: Nothing usable is at `model`.
        SettingsError: The lengths leave no room for an answer.
    """
    where = _locate(model)
    mended: list[str] = []
    tokenizer = load_tokenizer(where.leaf, trust_remote_code=settings.trust_remote_code, say=mended.append)
    described = where.card.template if where.card is not None else None
    template, refusal, difference = None, "", ""
    try:
        trained = from_dict(described, tokenizer) if described else None
        template = get_template(
            settings.template or (trained.name if trained else None),
            tokenizer,
            system=(trained.system if trained else "") if settings.system is None else settings.system,
            source_prefix=(trained.source_prefix if trained else "")
            if settings.source_prefix is None
            else settings.source_prefix,
        )
        difference = trained.difference(template) if trained is not None else ""
    except TemplateError as error:
        refusal = error.problem + (f"; {error.remedy}" if error.remedy else "")
    return Lens(
        name=model,
        base=where.base,
        is_run=described is not None,
        tokenizer=tokenizer,
        template=template,
        budget=token_budget(
            settings.cutoff_len,
            max_prompt_tokens=settings.max_source_length,
            max_answer_tokens=settings.max_target_length,
        ),
        settings=settings,
        difference=difference,
        mended=tuple(mended),
        refusal=refusal,
    )


def _locate(model: str) -> Located:
    """Where a model is; a directory that holds tokenizer files alone will do too."""
    directory = Path(model).expanduser()
    has_model = any((directory / name).exists() for name in ("config.json", "adapter_config.json", "checkpoints"))
    if not has_model and any((directory / name).is_file() for name in TOKENIZER_FILES):
        return Located(base=str(directory), adapter=None, card=None)
    return locate(model)


def count_tokens(model: str, *, trust_remote_code: bool = False) -> Callable[[str], int]:
    """What counts the tokens of a text, without those that a template or the tokenizer puts around it.

    Raises:
        ModelError: Nothing usable is at `model`.
    """
    tokenizer = load_tokenizer(_locate(model).leaf, trust_remote_code=trust_remote_code)

    def count(text: str) -> int:
        whole = text.encode("utf-8", "replace").decode()  # half a character has no bytes to make tokens of
        return len(tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])

    return count

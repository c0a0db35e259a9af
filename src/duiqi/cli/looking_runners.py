"""What each command of `duiqi data` that looks at data does: settle its settings, look, say what is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duiqi.cli.arguments import Arguments
from duiqi.cli.looking_options import (
    DataCheckConfig,
    DataConvertConfig,
    DatasetToReadOptions,
    DataShowConfig,
    DataSplitConfig,
    DataStatsConfig,
    TokenOptions,
)
from duiqi.errors import DataError, SettingsError
from duiqi.settings.resolve import build
from duiqi.types import Example

if TYPE_CHECKING:
    from duiqi.data.loading import Need

_TOKEN_SETTINGS = tuple(TokenOptions.__annotations__)


def show(command: str, arguments: Arguments) -> None:
    """Print rows as the stages see them."""
    config = build(DataShowConfig, arguments.named("dataset"), command=command)
    _refuse_without_model(arguments, config.tokens.model_name_or_path, _TOKEN_SETTINGS, "stage", "tokens")
    asked = config.show
    named = [given.where for given in arguments.given if given.key in ("rows", "lines")]
    counted = [given.where for given in arguments.given if given.key in ("num_rows", "seed")]
    if len({*named}) > 1 or (named and counted):
        raise SettingsError(f"{named[0]} names the rows already", where=[*named[1:], *counted][0], remedy="remove it")

    from rich.console import Console

    from duiqi.inspection.view_text import bare_text, heading, view_text
    from duiqi.inspection.views import choose_rows, rows_at, views_of

    examples = _examples(config.data)
    chosen = (
        rows_at(examples, asked.lines)
        if asked.lines
        else choose_rows(len(examples), rows=asked.rows, num_rows=asked.num_rows, seed=asked.seed)
    )
    lens = _lens(config.tokens) if config.tokens.model_name_or_path is not None else None
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    has_colour = console.is_terminal and not console.no_color
    for index in chosen:
        example = examples[index]
        console.print(heading(example, index + 1))
        if lens is None:
            console.print(bare_text(example))
            continue
        for view in views_of(example, lens, asked.stage):
            console.print(view_text(view, has_colour=has_colour, shows_tokens=asked.tokens))
            console.print()


def check(command: str, arguments: Arguments) -> None:
    """Print everything that is wrong with a dataset; errors (with `strict` warnings too) end it with status 2."""
    config = build(DataCheckConfig, arguments.named("dataset"), command=command)
    asked, tokens = config.check, config.tokens
    _refuse_without_model(arguments, tokens.model_name_or_path, _TOKEN_SETTINGS)
    target = Path(asked.output_file) if asked.output_file is not None else None
    if target is None and asked.overwrite:
        raise SettingsError("there is no output_file to replace", where="overwrite", remedy="remove it")

    from duiqi.inspection.canonical import refuse_existing
    from duiqi.inspection.check import check_dataset
    from duiqi.inspection.report import report_json, report_lines, summary
    from duiqi.journal.files import atomic_write_json

    if target is not None:
        refuse_existing(target, overwrite=asked.overwrite)
    look = None
    if tokens.model_name_or_path is not None:
        from duiqi.inspection.token_look import look_through

        look = partial(look_through, _lens(tokens))
    found = check_dataset(
        config.data.dataset,
        dataset_dir=config.data.dataset_dir,
        eval_dataset=asked.eval_dataset,
        max_samples=config.data.max_samples,
        look=look,
        track=_tracked,
    )
    _say(*report_lines(found))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(target, report_json(found))
        _say(f"the whole report is in {target}")
    errors, warnings = found.count("error"), found.count("warning")
    if errors or (asked.strict and warnings):
        sys.stdout.flush()
        raise DataError(summary(found), remedy="mend what is told above, the first things first")


def convert(command: str, arguments: Arguments) -> None:
    """Write a dataset as JSON lines."""
    config = build(DataConvertConfig, arguments.named("dataset"), command=command)
    asked = config.convert
    target = Path(asked.output_file)

    from duiqi.inspection.canonical import NEEDS, natural_shape, record_of, refuse_existing, write_rows
    from duiqi.inspection.counting import counted

    refuse_existing(target, overwrite=asked.overwrite)
    need = NEEDS.get(asked.to) if asked.to is not None else None
    examples = _examples(config.data, *([need] if need is not None else []))
    shape = asked.to or natural_shape(examples)
    rows = write_rows(target, (record_of(example, shape) for example in _tracked(examples, "rows")))
    _say(f"{counted(rows, 'row')} written to {target} in {shape} format")


def split(command: str, arguments: Arguments) -> None:
    """Deal a dataset out to the stages."""
    config = build(DataSplitConfig, arguments.named("dataset"), command=command)
    asked = config.split

    from duiqi.inspection.canonical import natural_shape, record_of, refuse_existing, write_rows
    from duiqi.inspection.counting import counted
    from duiqi.inspection.phases import deal, parse_names, parse_parts

    shares = parse_parts(asked.parts)
    names = parse_names(asked.names, count=len(shares))
    targets = [Path(asked.output_dir) / f"{name}.jsonl" for name in names]
    for target in targets:
        refuse_existing(target, overwrite=asked.overwrite)
    examples = _examples(config.data)
    shape = natural_shape(examples)
    for target, part in zip(targets, deal(examples, shares, seed=asked.seed), strict=True):
        if part:
            rows = write_rows(target, (record_of(example, shape) for example in part))
            prompts = len({example.prompt for example in part})
            _say(f"{target}: {counted(rows, 'row')}, {counted(prompts, 'prompt')}, {shape} format")
        else:
            _say(f"{target.stem}: no rows, and no file")


def stats(command: str, arguments: Arguments) -> None:
    """Count what a dataset is made of."""
    config = build(DataStatsConfig, arguments.named("dataset"), command=command)
    asked = config.stats
    _refuse_without_model(arguments, asked.model_name_or_path, ("trust_remote_code",))

    from duiqi.inspection.check import gather
    from duiqi.inspection.stats import statistics_lines, statistics_of

    unit: str = "characters"
    count: Callable[[str], int] = len
    if asked.model_name_or_path is not None:
        from duiqi.inspection.lens import count_tokens

        unit, count = "tokens", count_tokens(asked.model_name_or_path, trust_remote_code=asked.trust_remote_code)
    read = gather(config.data.dataset, dataset_dir=config.data.dataset_dir, max_samples=config.data.max_samples)
    if read.refusal is not None:
        raise read.refusal
    found = statistics_of(
        read.examples, read.datasets, malformed=len(read.rejects), unit=unit, count=count, track=_tracked
    )
    _say(
        json.dumps(found.to_json(), ensure_ascii=False, indent=2) if asked.json else "\n".join(statistics_lines(found))
    )


def _examples(data: DatasetToReadOptions, *needs: Need) -> list[Example]:
    """Every row, of the kind that is needed, else of whatever kind.

    Raises:
        DataError: A row is malformed: nothing is left out silently where rows are counted or written.
    """
    from duiqi.inspection.check import gather

    read = gather(
        data.dataset,
        dataset_dir=data.dataset_dir,
        max_samples=data.max_samples,
        needs=needs or ("conversation", "text"),
    )
    if read.refusal is not None:
        raise read.refusal
    if read.rejects:
        from duiqi.inspection.counting import counted

        first, others = read.rejects[0], len(read.rejects) - 1
        more = f" (and {counted(others, 'more malformed row')})" if others else ""
        raise DataError(
            f"{first.reason}{more}", where=f"{first.file}:{first.line}", remedy="duiqi data check lists them all"
        )
    return read.examples


def _lens(tokens: TokenOptions) -> Any:
    from duiqi.inspection.lens import LensSettings, open_lens

    assert tokens.model_name_or_path is not None, "checked before"
    settings = {name: getattr(tokens, name) for name in _TOKEN_SETTINGS if name != "model_name_or_path"}
    return open_lens(tokens.model_name_or_path, LensSettings(**settings))


def _refuse_without_model(arguments: Arguments, model: str | None, settings: Sequence[str], *others: str) -> None:
    """Refuse settings that act on tokens alone where there are none.

    Raises:
        SettingsError: One of them is given.
    """
    names = {*settings, *others} - {"model_name_or_path"}
    idle = [given for given in arguments.given if given.key in names]
    if model is None and idle:
        raise SettingsError(
            "has no effect without a tokenizer", where=idle[0].where, remedy="name one with --model_name_or_path"
        )


def _tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    from duiqi.serving.progress import tracked

    return tracked(items, total=len(items), what=what)


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()

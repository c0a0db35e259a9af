"""What each command that makes data does: settle its settings, call the room that does the work, say what came out."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from duiqi.cli.arguments import Arguments
from duiqi.cli.making_options import (
    MAKING_DEFAULTS,
    CapOptions,
    DialogueConfig,
    EndpointOptions,
    FillConfig,
    JudgeConfig,
    LabelConfig,
    PairConfig,
    SampleConfig,
    TranslateConfig,
)
from duiqi.errors import SettingsError
from duiqi.settings.resolve import build
from duiqi.types import Sampling

if TYPE_CHECKING:
    from duiqi.curation.bureau import Bureau, Made


def sample(command: str, arguments: Arguments) -> None:
    """Draw several answers to every prompt."""
    config = build(SampleConfig, arguments.named("model", "file"), command=command, defaults=MAKING_DEFAULTS[command])

    from duiqi.curation.sample import sample_file

    report = sample_file(
        config.source.model,
        config.files.file,
        config.files.output_file,
        num_answers=config.sample.num_answers,
        sampling=Sampling(**asdict(config.decoding)),
        duplicates=config.sample.duplicates,
        template=config.prompt.template,
        system=config.prompt.system,
        source_prefix=config.prompt.source_prefix,
        max_samples=config.files.max_samples,
        dataset_dir=config.files.dataset_dir,
        batch_size=config.files.batch_size,
        dtype=config.placement.dtype,
        device=config.placement.device,
    )
    _say(*report.lines(), f"written to {config.files.output_file}")


def pair(command: str, arguments: Arguments) -> None:
    """Make preferences of answers."""
    config = build(PairConfig, arguments.named("file"), command=command)
    asked = config.pair
    if asked.by != "reward_model":
        _refuse(arguments, {"batch_size", "dtype", "device"}, f"has no effect with by={asked.by}")

    from duiqi.curation.pair import pair_file

    report = pair_file(
        asked.file,
        asked.output_file,
        by=asked.by,
        take=asked.take,
        min_gap=asked.min_gap,
        reward_model=asked.reward_model,
        labels=asked.labels,
        drop_unfinished=asked.drop_unfinished,
        batch_size=asked.batch_size,
        dtype=config.placement.dtype,
        device=config.placement.device,
    )
    _say(*report.lines(), f"written to {asked.output_file}")


def judge(command: str, arguments: Arguments) -> None:
    """Have answers ranked or rated; exit status 2 where some got no verdict."""
    config = build(JudgeConfig, arguments.named("file"), command=command, defaults=MAKING_DEFAULTS[command])

    from duiqi.curation.judge import judge_file

    made = judge_file(
        config.rows.file,
        config.rows.output_file,
        bureau=_bureau(config.endpoint, config.caps),
        method=config.judge.method,
        rubric=config.judge.rubric,
        language=config.judge.language,
        max_samples=config.rows.max_samples,
    )
    _close(made, config.rows.output_file)


def translate(command: str, arguments: Arguments) -> None:
    """Translate the texts of a file; exit status 2 where some rows could not be."""
    config = build(TranslateConfig, arguments.named("file"), command=command)

    from duiqi.curation.translate import translate_file

    made = translate_file(
        config.rows.file,
        config.rows.output_file,
        bureau=_bureau(config.endpoint, config.caps),
        to=config.translate.to,
        instruction=config.translate.instruction,
        fields=config.translate.fields,
        max_samples=config.rows.max_samples,
    )
    _close(made, config.rows.output_file)


def label(command: str, arguments: Arguments) -> None:
    """Write a file for people to rank answers in."""
    asked = build(LabelConfig, arguments.named("file"), command=command).label

    from duiqi.curation.labels import export_labels

    count = export_labels(asked.file, asked.output_file, seed=asked.seed, max_samples=asked.max_samples)
    _say(
        f"{count} answers to rank, written to {asked.output_file}",
        f"then: duiqi data pair {asked.file} --by labels --labels {asked.output_file} --output_file PREFERENCES.jsonl",
    )


def dialogue(command: str, arguments: Arguments) -> None:
    """Cut a script into conversations."""
    asked = build(DialogueConfig, arguments.named("script"), command=command).dialogue

    from duiqi.curation.dialogue import dialogue_file

    report = dialogue_file(
        asked.script,
        asked.output_file,
        character=asked.character,
        system=asked.system,
        window_characters=asked.window_characters,
        sample_characters=asked.sample_characters,
        overlap=asked.overlap,
        min_characters=asked.min_characters,
        max_stopword_share=asked.max_stopword_share,
        stopwords=asked.stopwords,
    )
    _say(*report.told(), f"written to {asked.output_file}")


def fill(command: str, arguments: Arguments) -> None:
    """Put names in the place of placeholders."""
    asked = build(FillConfig, arguments.named("file"), command=command).filling

    from duiqi.curation.fill import fill_file

    report = fill_file(asked.file, asked.output_file, fill=asked.fill)
    _say(*report.lines(), f"written to {asked.output_file}")


def _bureau(options: EndpointOptions, caps: CapOptions) -> Bureau:
    """Whom to ask; the address and the key come from the environment."""
    from duiqi.curation.bureau import open_bureau
    from duiqi.curation.crew import Effort
    from duiqi.curation.endpoint import endpoint_from_environment
    from duiqi.curation.paid import default_cache
    from duiqi.curation.spending import Caps, Prices

    return open_bureau(
        endpoint_from_environment(timeout_seconds=options.timeout),
        model=options.model,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        request=options.request,
        cache_dir=Path(options.cache_dir) if options.cache_dir else default_cache(),
        caps=Caps(caps.max_requests, caps.max_cost, Prices(caps.prompt_price, caps.answer_price)),
        effort=Effort(options.concurrency, options.max_retries),
    )


def _close(made: Made, output_file: str) -> None:
    """Say what came of it, and raise what is missing."""
    _say(*made.lines, f"written to {output_file}")
    if made.missing is not None:
        raise made.missing


def _refuse(arguments: Arguments, names: Collection[str], problem: str) -> None:
    for given in arguments.given:
        if given.key in names:
            raise SettingsError(problem, where=given.where, remedy="remove it")


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()

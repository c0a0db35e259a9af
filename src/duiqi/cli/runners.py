"""What each command does: settle its settings, call the room that does the work, say what came out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

from duiqi.cli.arguments import Arguments, refuse_more_than
from duiqi.cli.closing import closing_lines
from duiqi.cli.model_options import DecodingOptions
from duiqi.cli.options import (
    DEFAULTS,
    ChatConfig,
    DemoConfig,
    ExamConfig,
    ExportConfig,
    GenerateConfig,
    LabConfig,
    PlanConfig,
    ReportConfig,
    ScoreConfig,
)
from duiqi.errors import GuardStop, SettingsError, did_you_mean
from duiqi.journal.terminal import make_view
from duiqi.legacy.inline import modern
from duiqi.legacy.printed import translation_lines
from duiqi.settings.conditions import listing
from duiqi.settings.recipe import Given
from duiqi.settings.resolve import build, resolve
from duiqi.settings.stages import STAGES, StageName
from duiqi.types import Sampling


def train(command: str, arguments: Arguments) -> None:
    """Run a training stage and close with what it made."""
    refuse_more_than(1, arguments.positionals)
    stage = cast(StageName, command)
    recipe = Path(arguments.positionals[0]) if arguments.positionals else None
    overrides, old_flags = modern(stage, arguments.given)
    if old_flags is not None:
        _say(*translation_lines(old_flags))
    config = resolve(stage, recipe=recipe, overrides=overrides)

    from duiqi.stages.launch import run

    result = run(stage, config, argv=arguments.words, view=make_view())
    _say(*closing_lines(result, config))


def plan(command: str, arguments: Arguments) -> None:
    """Say what a stage will need."""
    refuse_more_than(2, arguments.positionals)
    stage, *recipe = arguments.positionals or ("",)
    if stage not in STAGES:
        remedy = did_you_mean(stage, STAGES) or f"name a stage first: {listing(STAGES, last='or')}"
        raise SettingsError("which stage is to be planned?", where="command line", remedy=remedy)
    own = tuple(given for given in arguments.given if given.key == "json")
    as_json = build(PlanConfig, own, command=command).plan.json
    overrides = [given for given in arguments.given if given not in own]
    config = resolve(stage, recipe=Path(recipe[0]) if recipe else None, overrides=overrides)

    from duiqi.planning.printed import printed_plan

    _say(printed_plan(stage, config, as_json=as_json))


def generate(command: str, arguments: Arguments) -> None:
    """Answer a file of prompts."""
    config = build(GenerateConfig, arguments.named("model", "file"), command=command)

    from duiqi.serving.generate import generate_file

    report = generate_file(
        config.source.model,
        config.files.file,
        config.files.output_file,
        sampling=_sampling(config.decoding),
        num_repeats=config.repeats.num_repeats,
        template=config.prompt.template,
        system=config.prompt.system,
        source_prefix=config.prompt.source_prefix,
        max_samples=config.files.max_samples,
        dataset_dir=config.files.dataset_dir,
        batch_size=config.files.batch_size,
        dtype=config.placement.dtype,
        device=config.placement.device,
    )
    _say(f"{report.answers} answers written to {config.files.output_file}", *report.lines())


def score(command: str, arguments: Arguments) -> None:
    """Score a file of answers or pairs."""
    config = build(ScoreConfig, arguments.named("reward_model", "file"), command=command)

    from duiqi.serving.score import score_file

    rows = score_file(
        config.source.reward_model,
        config.files.file,
        config.files.output_file,
        batch_size=config.files.batch_size,
        max_samples=config.files.max_samples,
        dataset_dir=config.files.dataset_dir,
        dtype=config.placement.dtype,
        device=config.placement.device,
    )
    _say(f"{rows} scored rows written to {config.files.output_file}")


def chat(command: str, arguments: Arguments) -> None:
    """Talk to a model."""
    config = build(ChatConfig, arguments.named("model"), command=command, defaults=DEFAULTS[command])

    from duiqi.serving.chat import chat as talk

    talk(
        config.source.model,
        sampling=_sampling(config.decoding),
        template=config.prompt.template,
        system=config.prompt.system,
        source_prefix=config.prompt.source_prefix,
        dtype=config.placement.dtype,
        device=config.placement.device,
    )


def export(command: str, arguments: Arguments) -> None:
    """Merge a run into a plain model."""
    config = build(ExportConfig, arguments.named("model"), command=command)
    settings = config.export

    from duiqi.serving.export import export as write

    made = write(
        config.source.model,
        settings.output_dir,
        dtype=settings.dtype,
        max_shard_size=settings.max_shard_size,
        prompts_file=settings.prompts,
        device=settings.device,
    )
    merged = f"{made.merged} adapter{'' if made.merged == 1 else 's'} merged"
    _say(
        f"{merged}; on {made.prompts} prompts its outputs differ by {made.gap:.1e} of their size",
        f"written to {made.directory}",
        *(f"note: {note}" for note in made.notes),
    )


def report(command: str, arguments: Arguments) -> None:
    """Write the page that compares runs."""
    runs = (Given("runs", arguments.positionals, where="runs"),) if arguments.positionals else ()
    settings = build(ReportConfig, (*runs, *arguments.given), command=command).report

    from duiqi.reports.html import write_report

    write_report(settings.runs, settings.output, title=settings.title)
    _say(f"report written to {settings.output}")


def exam(command: str, arguments: Arguments) -> None:
    """Examine a reward model; one below `min_grade` ends the command with exit status 3."""
    config = build(ExamConfig, arguments.named("reward_model"), command=command)
    asked = config.exam

    from duiqi.evaluation.exam_result import worst
    from duiqi.reports.exam_text import exam_lines, verdict
    from duiqi.serving.exam import examine

    found = examine(
        asked.reward_model,
        dataset=asked.dataset,
        dataset_dir=asked.dataset_dir,
        max_samples=asked.max_samples,
        seed=asked.seed,
        output_dir=asked.output_dir,
        batch_size=asked.batch_size,
        dtype=config.placement.dtype,
        device=config.placement.device,
    )
    grade = found.exam.grade
    _say(*exam_lines(found.exam), "", f"   written to {found.file} and {found.page}")
    if worst(grade, asked.min_grade) != asked.min_grade:
        sys.stdout.flush()
        raise GuardStop(
            f"{asked.reward_model} has grade {grade}, and {asked.min_grade} is the lowest that passes (min_grade)",
            remedy=verdict(found.exam),
        )


def demo(command: str, arguments: Arguments) -> None:
    """Run the built-in world from end to end."""
    settings = build(DemoConfig, arguments.named(), command=command).demo

    from duiqi.pipeline.demo import run_demo

    run_demo(Path(settings.output_dir), seed=settings.seed, quick=settings.quick)


def lab(command: str, arguments: Arguments) -> None:
    """Run an experiment on the built-in world."""
    settings = build(LabConfig, arguments.named("experiment"), command=command).lab
    seeds = _seeds(settings.seeds)

    from duiqi.pipeline.lab import run_lab

    run_lab(Path(settings.output_dir), seeds=seeds, quick=settings.quick, say=_say, view=make_view)


def _seeds(text: str) -> list[int]:
    """Seeds as they are typed.

    >>> _seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise SettingsError(f"{part!r} is no seed", where="seeds", remedy="write 0, or 0,3, or 0-4")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise SettingsError(f"{text!r} holds no seed", where="seeds", remedy="write the smaller one first: 0-4")
    return seeds


def _sampling(options: DecodingOptions) -> Sampling:
    return Sampling(**asdict(options))


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()

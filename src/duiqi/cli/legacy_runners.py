"""What `duiqi train` and `duiqi legacy` do: translate, show the translation, run what came out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from duiqi.cli.arguments import Arguments, parse
from duiqi.cli.closing import closing_lines
from duiqi.cli.legacy_options import OldCommandConfig, RecipeConfig
from duiqi.cli.options import words_of
from duiqi.cli.runners import export, generate, score
from duiqi.errors import SettingsError
from duiqi.journal.terminal import make_view
from duiqi.legacy.interpreter import interpret
from duiqi.legacy.printed import translation_lines
from duiqi.legacy.recipe import OwnRecipe, read_foreign
from duiqi.legacy.translation import Translation
from duiqi.settings.resolve import build, resolve
from duiqi.settings.stages import STAGES, StageConfig, StageName

_OWN = ("recipe", "dry_run", "strict")


def train_recipe(command: str, arguments: Arguments) -> None:
    """Run a recipe that names its stage."""
    given = arguments.named("recipe")
    options = build(RecipeConfig, [item for item in given if item.key in _OWN], command=command).recipe
    file = Path(options.recipe)
    found = read_foreign(file, [item for item in given if item.key not in _OWN])
    if isinstance(found, OwnRecipe):
        stage = cast(StageName, found.stage)
        config = resolve(stage, recipe=file, overrides=found.overrides)
    else:
        read = _stage_of(found, strict=options.strict, dry_run=options.dry_run)
        if read is None:
            return
        stage, config = read
    if not options.dry_run:
        _run_stage(stage, config, arguments.words)
        return

    from duiqi.planning.printed import printed_plan

    _say(printed_plan(stage, config, as_json=False))


def legacy(command: str, arguments: Arguments) -> None:
    """Run a command line of another tool."""
    words = arguments.words[1:]
    if "--" not in words:
        raise SettingsError(
            "no old command is given",
            where="command line",
            remedy="write it behind --: duiqi legacy -- python src/train_rm.py --do_train ...",
        )
    border = words.index("--")
    ours = parse([command, *words[:border]], [*words_of(command), *words_of("train")])
    given = ours.named()
    options = build(OldCommandConfig, [item for item in given if item.key in _OWN], command=command).old
    later = [item for item in given if item.key not in _OWN]
    found = interpret(words[border + 1 :], later)
    read = _stage_of(found, strict=options.strict, dry_run=options.dry_run)
    if read is not None and not options.dry_run:
        _run_stage(*read, arguments.words)


def _stage_of(found: Translation, *, strict: bool, dry_run: bool) -> tuple[StageName, StageConfig] | None:
    """Show a translation; the stage and settings that it became, None where it became a command that trains nothing.

    Such a command is run here unless dry_run.
    """
    _show(found, strict=strict)
    if found.command in STAGES:
        return found.command, resolve(found.command, overrides=found.given())
    if not dry_run:
        runner = {"generate": generate, "score": score, "export": export}[found.command]
        runner(found.command, parse(found.words[1:], words_of(found.command)))
    return None


def _show(found: Translation, *, strict: bool) -> None:
    """Print a translation; refuse it where a flag has no meaning here and none may be left out."""
    _say(*translation_lines(found, strict=strict))
    sys.stdout.flush()
    if strict:
        found.refuse_troubles()


def _run_stage(stage: StageName, config: StageConfig, words: Sequence[str]) -> None:
    from duiqi.stages.launch import run

    result = run(stage, config, argv=tuple(words), view=make_view())
    _say(*closing_lines(result, config))


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()

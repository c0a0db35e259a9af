"""`duiqi data sample`: several answers of a model to every prompt. Killed at any moment, it goes on to the same file.

The prompts are taken in groups of `PROMPTS_AT_ONCE`. The random numbers of an answer come from its group and its place
within it, so a group that was cut short is drawn again and gives the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from duiqi.curation.answered import Answered, as_dicts
from duiqi.curation.place import Place, digest, making
from duiqi.errors import Interrupted, SettingsError
from duiqi.evaluation.exam_file import weights_digest
from duiqi.journal.lines import JsonLines, read_lines
from duiqi.models.loading import Located, locate
from duiqi.serving.files import read_conversations
from duiqi.serving.progress import tracked
from duiqi.serving.speaker import Speaker, open_speaker
from duiqi.training.interruption import listening
from duiqi.types import Example, Rollout, Sampling

PROMPTS_AT_ONCE = 32
"""Prompts whose answers are drawn together and written together. Part of what fixes the random numbers."""
REDRAWS = 4
_OTHER_NUMBERS = 2**32
"""Between the steps of two draws, so that no group of prompts gets another one's random numbers."""
ROWS = "rows.jsonl"

Duplicates = Literal["mark", "redraw"]


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What was drawn."""

    prompts: int
    answers: int
    duplicates: int
    """Answers that say what an earlier answer to the same prompt says."""
    unfinished: int
    """Answers that the length limit ended."""
    kept: int
    """Prompts that an earlier run of the command had answered."""

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        lines = [f"{self.answers} answers to {self.prompts} prompts"]
        lines += [f"{self.kept} of the prompts had been answered before"] if self.kept else []
        lines += [f"{self.duplicates} say the same as another answer to their prompt"] if self.duplicates else []
        return lines + ([f"{self.unfinished} were cut by max_new_tokens"] if self.unfinished else [])


def sample_file(
    model: str,
    file: str,
    output_file: str,
    *,
    num_answers: int,
    sampling: Sampling,
    duplicates: Duplicates = "mark",
    template: str | None = None,
    system: str | None = None,
    source_prefix: str | None = None,
    max_samples: int | None = None,
    dataset_dir: str = ".",
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "auto",
) -> SampleReport:
    """Draw `num_answers` answers to every prompt of `file`, and write a row per prompt to `output_file`.

    Args:
        duplicates: Answers that are there already: "mark" lists them in the row, "redraw" first tries a few times for
            others.

    Raises:
        UserError: The model or the file cannot be used, or another command made the output.
        Interrupted: It was asked to stop; what is there is kept.
    """
    if sampling.temperature == 0 and num_answers > 1:
        raise SettingsError(
            f"0 gives the same answer {num_answers} times", where="temperature", remedy="set it above 0, such as 1"
        )
    if duplicates == "redraw" and num_answers == 1:
        raise SettingsError("has no effect with num_answers=1", where="duplicates", remedy="remove it")
    examples = read_conversations(file, max_samples=max_samples, dataset_dir=dataset_dir)
    settings: dict[str, Any] = {
        "model": model,
        "weights": _weights(locate(model))[:16],
        "prompts": digest([as_dicts(example.prompt) for example in examples])[:16],
        "num_answers": num_answers,
        "duplicates": duplicates,
        **asdict(sampling),
        "template": template,
        "system": system,
        "source_prefix": source_prefix,
        "dtype": dtype,
    }
    with making(output_file, command="data sample", settings=settings) as place:
        if place.is_finished:
            return _report(read_lines(place.target), kept=len(examples))
        kept = len(read_lines(place.folder / ROWS))
        if kept < len(examples):
            speaker = open_speaker(
                model,
                template=template,
                system=system,
                source_prefix=source_prefix,
                dtype=dtype,
                device=device,
                batch_size=batch_size,
            )
            _draw_all(place, speaker, examples, num_answers=num_answers, sampling=sampling, duplicates=duplicates)
        rows = read_lines(place.folder / ROWS)
        place.write_rows(rows)
        report = _report(rows, kept=kept)
        place.record(asdict(report), is_finished=True)
        (place.folder / ROWS).unlink()
        return report


def _draw_all(
    place: Place,
    speaker: Speaker,
    examples: Sequence[Example],
    *,
    num_answers: int,
    sampling: Sampling,
    duplicates: Duplicates,
) -> None:
    """Add the rows that are missing to those that are there, group by group."""
    rows = JsonLines(place.folder / ROWS)
    done = len(read_lines(rows.path))
    starts = range(done - done % PROMPTS_AT_ONCE, len(examples), PROMPTS_AT_ONCE)
    try:
        with listening() as stop:
            for start in tracked(starts, total=len(starts), what="answers"):
                group = examples[start : start + PROMPTS_AT_ONCE]
                step = start // PROMPTS_AT_ONCE
                drawn = draw_group(speaker, group, num_answers, sampling, step=step, duplicates=duplicates)
                for number, row in enumerate(drawn, start=start):
                    if number >= done:
                        rows.append({"row": number, **row, "sampling": place.identity})
                done = max(done, start + len(group))
                if stop and done < len(examples):
                    raise Interrupted(
                        f"{done} of {len(examples)} prompts are answered and kept; the same command goes on"
                    )
    finally:
        rows.close()


def draw_group(
    speaker: Speaker,
    examples: Sequence[Example],
    num_answers: int,
    sampling: Sampling,
    *,
    step: int,
    duplicates: Duplicates = "mark",
) -> Iterator[dict[str, Any]]:
    """One row per example. The first answers are the same however many are asked for."""
    prompts = [speaker.prompt_ids(example.prompt) for example in examples]
    drawn = speaker.decoder.generate(prompts * num_answers, sampling, step=step)
    answers = [drawn[place :: len(examples)] for place in range(len(examples))]
    if duplicates == "redraw":
        for number in range(1, REDRAWS + 1):
            again = [(row, place) for row, said in enumerate(answers) for place in repeated(said)]
            if not again:
                break
            fresh = speaker.decoder.generate(
                [prompts[row] for row, _ in again], sampling, step=step + number * _OTHER_NUMBERS
            )
            for (row, place), rollout in zip(again, fresh, strict=True):
                answers[row][place] = rollout
    for example, said in zip(examples, answers, strict=True):
        answered = Answered(
            example.prompt,
            tuple(rollout.answer for rollout in said),
            str(example.origin),
            reference=example.answers[0] if example.answers else "",
            finished=tuple(rollout.finished for rollout in said),
        )
        yield answered.row() | {"duplicates": repeated(said)}


def repeated(answers: Sequence[Rollout]) -> list[int]:
    """The places of answers that say what an earlier one says, but for spaces around it."""
    said = [rollout.answer.strip() for rollout in answers]
    return [place for place, text in enumerate(said) if text in said[:place]]


def _weights(where: Located) -> str:
    """What tells an adapter or a model from another one at the same place.

    A whole model is told by the sizes of its files: to read them all would take minutes.
    """
    if where.adapter is not None:
        return weights_digest(where.leaf)
    files = [path for path in Path(where.base).expanduser().glob("*") if path.is_file()]
    return digest(sorted((path.name, path.stat().st_size) for path in files))


def _report(rows: Sequence[dict[str, Any]], *, kept: int) -> SampleReport:
    finished = [flag for row in rows for flag in row["finished"]]
    return SampleReport(
        prompts=len(rows),
        answers=len(finished),
        duplicates=sum(len(row["duplicates"]) for row in rows),
        unfinished=finished.count(False),
        kept=kept,
    )

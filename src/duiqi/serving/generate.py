"""Answers to a file of prompts, one JSON line each, and what can be counted about them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from duiqi.errors import SettingsError
from duiqi.evaluation.text_metrics import INSTALL, TextMetrics, average, can_measure, deviation, text_metrics
from duiqi.journal.files import atomic_write_json, writing
from duiqi.serving.files import new_file, read_conversations
from duiqi.serving.progress import tracked
from duiqi.serving.speaker import Speaker, open_speaker
from duiqi.types import Example, Rollout, Sampling

ROWS_AT_ONCE = 256
"""Rows sorted by length and answered together before they are written. The same whatever the batch size, because the
random numbers of an answer come from its place within them."""


@dataclass(frozen=True, slots=True)
class GenerateReport:
    """What was answered, and how it compares with the labels."""

    prompts: int
    answers: int
    """All of them: prompts times repeats."""
    empty: int
    """Answers without a visible character."""
    cut: int
    """Answers that max_new_tokens ended."""
    labelled: int
    """Prompts with a label, which the metrics are of."""
    metrics: tuple[TextMetrics, ...]
    """The mean over the labelled prompts, for each repeat; none without labels or without the packages."""

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        lines = [
            f"{self.empty} of {self.answers} answers are empty ({self.empty / self.answers:.1%}),"
            f" {self.cut} were cut by max_new_tokens ({self.cut / self.answers:.1%})"
        ]
        if self.metrics:
            means, deviations = average(self.metrics), deviation(self.metrics) if len(self.metrics) > 1 else None
            shown = [
                f"{field.name} {getattr(means, field.name):.4f}"
                + (f" ± {getattr(deviations, field.name):.4f}" if deviations else "")
                for field in fields(TextMetrics)
            ]
            over = f", mean and standard deviation over {len(self.metrics)} repeats" if deviations else ""
            lines.append(f"against the labels of {self.labelled} prompts{over}: {', '.join(shown)}")
        elif self.labelled:
            lines.append(f"BLEU and ROUGE against the labels of {self.labelled} prompts: {INSTALL}")
        return lines


def generate_file(
    model: str,
    file: str,
    output_file: str,
    *,
    sampling: Sampling,
    num_repeats: int = 1,
    template: str | None = None,
    system: str | None = None,
    source_prefix: str | None = None,
    max_samples: int | None = None,
    dataset_dir: str = ".",
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "auto",
) -> GenerateReport:
    """Answer every row of `file` and write `prompt`, `predict` and `label` of each to `output_file`, in order.

    A row without a reference answer gets an empty label. Beside it, NAME.metrics.json gets what was counted.

    Args:
        num_repeats: All rows are answered so many times, one time after another, with the seeds `sampling.seed`,
            `sampling.seed` + 1 ...; above 1 every row says which `repeat` it is, from 0.

    Raises:
        UserError: The model or the file cannot be used, or the output cannot be written.
    """
    if sampling.temperature == 0 and num_repeats > 1:
        raise SettingsError(
            f"0 gives the same answers {num_repeats} times", where="temperature", remedy="set it above 0, such as 1"
        )
    target = new_file(output_file)
    beside = new_file(str(target.with_name(f"{target.stem}.metrics.json")))
    examples = read_conversations(file, max_samples=max_samples, dataset_dir=dataset_dir)
    speaker = open_speaker(
        model,
        template=template,
        system=system,
        source_prefix=source_prefix,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
    )
    repeats: list[list[Rollout]] = []
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.partial")
        with draft.open("w", encoding="utf-8") as lines:
            for repeat in range(num_repeats):
                answered = answers(speaker, examples, replace(sampling, seed=sampling.seed + repeat))
                repeats.append([])
                pairs = zip(examples, answered, strict=True)
                for example, rollout in tracked(pairs, total=len(examples), what="answers"):
                    row = {"prompt": example.prompt[-1].content, "predict": rollout.answer, "label": _label(example)}
                    numbered = row | {"repeat": repeat} if num_repeats > 1 else row
                    lines.write(json.dumps(numbered, ensure_ascii=False) + "\n")
                    repeats[-1].append(rollout)
        draft.replace(target)
        report = _report(examples, repeats)
        _write_metrics(beside, report, model=model, file=file, sampling=sampling)
    return report


def _label(example: Example) -> str:
    return example.answers[0] if example.answers else ""


def _report(examples: Sequence[Example], repeats: Sequence[Sequence[Rollout]]) -> GenerateReport:
    everything = [rollout for rollouts in repeats for rollout in rollouts]
    labelled = [place for place, example in enumerate(examples) if _label(example).strip()]
    labels = [_label(examples[place]) for place in labelled]
    measured = repeats if labels and can_measure() else []
    return GenerateReport(
        prompts=len(examples),
        answers=len(everything),
        empty=sum(not rollout.answer.strip() for rollout in everything),
        cut=sum(not rollout.finished for rollout in everything),
        labelled=len(labelled),
        metrics=tuple(text_metrics([rollouts[place].answer for place in labelled], labels) for rollouts in measured),
    )


def _write_metrics(path: Path, report: GenerateReport, *, model: str, file: str, sampling: Sampling) -> None:
    record = {
        "model": model,
        "file": file,
        "sampling": asdict(sampling),
        "prompts": report.prompts,
        "answers": report.answers,
        "empty_rate": report.empty / report.answers,
        "cut_rate": report.cut / report.answers,
        "labelled": report.labelled,
        "metrics": asdict(average(report.metrics)) if report.metrics else None,
    }
    if len(report.metrics) > 1:
        record |= {
            "standard_deviation": asdict(deviation(report.metrics)),
            "repeats": [asdict(metrics) for metrics in report.metrics],
        }
    atomic_write_json(path, record)


def answers(speaker: Speaker, examples: Sequence[Example], sampling: Sampling) -> Iterator[Rollout]:
    """One answer per example, in order."""
    for start in range(0, len(examples), ROWS_AT_ONCE):
        prompts = [speaker.prompt_ids(example.prompt) for example in examples[start : start + ROWS_AT_ONCE]]
        yield from speaker.decoder.generate(prompts, sampling, step=start)

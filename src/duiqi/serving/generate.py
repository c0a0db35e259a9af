"""Answers to a file of prompts, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from duiqi.journal.files import writing
from duiqi.serving.files import new_file, read_conversations
from duiqi.serving.progress import tracked
from duiqi.serving.speaker import Speaker, open_speaker
from duiqi.types import Example, Rollout, Sampling

ROWS_AT_ONCE = 256
"""Rows sorted by length and answered together before they are written. The same whatever the batch size, because the
random numbers of an answer come from its place within them."""


def generate_file(
    model: str,
    file: str,
    output_file: str,
    *,
    sampling: Sampling,
    template: str | None = None,
    system: str | None = None,
    source_prefix: str | None = None,
    max_samples: int | None = None,
    dataset_dir: str = ".",
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "auto",
) -> int:
    """Answer every row of `file` and write `prompt`, `predict` and `label` of each to `output_file`, in order.

    A row without a reference answer gets an empty label. Returns the number of rows.

    Raises:
        UserError: The model or the file cannot be used, or the output cannot be written.
    """
    target = new_file(output_file)
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
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.partial")
        with draft.open("w", encoding="utf-8") as lines:
            answered = answers(speaker, examples, sampling)
            for example, rollout in tracked(zip(examples, answered, strict=True), total=len(examples), what="answers"):
                row = {
                    "prompt": example.prompt[-1].content,
                    "predict": rollout.answer,
                    "label": example.answers[0] if example.answers else "",
                }
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        draft.replace(target)
    return len(examples)


def answers(speaker: Speaker, examples: Sequence[Example], sampling: Sampling) -> Iterator[Rollout]:
    """One answer per example, in order."""
    for start in range(0, len(examples), ROWS_AT_ONCE):
        prompts = [speaker.prompt_ids(example.prompt) for example in examples[start : start + ROWS_AT_ONCE]]
        yield from speaker.decoder.generate(prompts, sampling, step=start)

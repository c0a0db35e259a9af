"""Scores of a reward model for a file of answers or pairs, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from duiqi.errors import DataError
from duiqi.journal.files import atomic_write_text
from duiqi.rollouts.scoring import Candidate, Scorer
from duiqi.rollouts.standalone import open_reward_model
from duiqi.serving.files import new_file, read_conversations
from duiqi.serving.progress import tracked
from duiqi.types import Example

DEFAULT_CUTOFF = 2048


def score_file(
    reward_model: str,
    file: str,
    output_file: str,
    *,
    batch_size: int = 16,
    max_samples: int | None = None,
    dataset_dir: str = ".",
    dtype: str = "auto",
    device: str = "auto",
) -> int:
    """Add `score` to rows of prompt and answer, `chosen_score` and `rejected_score` to pairs. Returns the rows.

    A ranking of more than two answers also gets `scores`, best answer first.

    Raises:
        UserError: The reward model or the file cannot be used, or the output cannot be written.
    """
    target = new_file(output_file)
    examples = read_conversations(file, max_samples=max_samples, dataset_dir=dataset_dir)
    for example in examples:
        if not example.answers:
            raise DataError("found no answer, expected one to score", where=str(example.origin))
    scorer = open_reward_model(
        reward_model, name="reward", cutoff_len=DEFAULT_CUTOFF, dtype=dtype, device=device, batch_size=batch_size
    )
    rows: list[dict[str, Any]] = []
    starts = range(0, len(examples), batch_size)
    for start in tracked(starts, total=len(starts), what="scores"):
        rows += score_examples(scorer, examples[start : start + batch_size])
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def score_examples(scorer: Scorer, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """One record per example, its answers scored."""
    scores = iter(scorer.score([Candidate(e.prompt, answer) for e in examples for answer in e.answers]).tolist())
    rows = []
    for example in examples:
        got = [next(scores) for _ in example.answers]
        row: dict[str, Any] = {"prompt": example.prompt[-1].content}
        if len(got) == 1:
            row |= {"answer": example.answers[0], "score": got[0]}
        else:
            row |= {"chosen": example.answers[0], "rejected": example.answers[-1]}
            row |= {"chosen_score": got[0], "rejected_score": got[-1]}
            row |= {"scores": got} if len(got) > 2 else {}
        rows.append(row)
    return rows

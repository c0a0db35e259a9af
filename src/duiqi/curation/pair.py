"""`duiqi data pair`: which of the answers to a prompt are better and which worse, as rows for the rm and dpo stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from duiqi.curation.answered import Answered, as_dicts, read_answered
from duiqi.curation.labels import with_labels
from duiqi.curation.place import new_rows_file, write_rows
from duiqi.errors import DataError, SettingsError
from duiqi.rollouts.scoring import Candidate, FunctionScorer, RewardSpec, ScoreMix, Scorer, parse_reward_specs
from duiqi.rollouts.standalone import open_reward_model
from duiqi.serving.progress import tracked
from duiqi.serving.score import DEFAULT_CUTOFF

By = Literal["reference", "scores", "reward_model", "labels"]
Take = Literal["one", "all"]


@dataclass
class PairReport:
    """What became of the prompts and their answers."""

    prompts: int = 0
    rows: int = 0
    pairs: int = 0
    """A ranking of K answers holds K(K-1)/2."""
    without: int = 0
    """Prompts that gave no row."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Answers that were left out, by reason."""

    def drop(self, reason: str, count: int = 1) -> None:
        """Count answers that are left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        lines = [f"{self.pairs} pairs in {self.rows} rows from {self.prompts} prompts"]
        lines += [f"{self.without} prompts gave none"] if self.without else []
        return lines + [f"{count} answers left out: {reason}" for reason, count in self.dropped.items()]


def pair_file(
    file: str,
    output_file: str,
    *,
    by: By,
    take: Take = "one",
    min_gap: float = 0.0,
    reward_model: str | None = None,
    labels: str | None = None,
    drop_unfinished: bool = False,
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "auto",
) -> PairReport:
    """Make preferences of the answers in `file`.

    Args:
        by: What says which answer is better: the data's own answer ("reference": it is chosen, and the model's answers
            are rejected), scores that stand in the rows, scores that a reward model gives now, or ranks that people
            wrote into a label file.
        take: "one" pair per prompt: the best and the worst answer, or the reference and the first answer that differs
            from it. "all": a ranking of all answers, or the reference with every answer.
        min_gap: Answers whose scores are not this far apart are not told apart. 0: any difference counts.
        reward_model: What scores, as in PPO: a run, or file.py:function, or several with weights.
        labels: The label file.
        drop_unfinished: Leave out answers that the length limit cut.

    Raises:
        UserError: A file, the reward model or the labels cannot be used, or no pair came out.
    """
    _check(by, reward_model=reward_model, labels=labels, min_gap=min_gap)
    target = new_rows_file(output_file)
    rows = read_answered(file)
    if drop_unfinished and not any(row.finished for row in rows):
        raise SettingsError(
            f"has no effect: {file} does not say which answers were cut", where="drop_unfinished", remedy="remove it"
        )
    report = PairReport(prompts=len(rows))
    if by == "labels" and labels is not None:
        rows = with_labels(rows, Path(labels))
    kept = [_usable(row, report, drop_unfinished=drop_unfinished) for row in rows]
    if by == "reward_model" and reward_model is not None:
        scorer = _open(parse_reward_specs(reward_model), batch_size=batch_size, dtype=dtype, device=device)
        kept = with_scores(kept, scorer, batch_size=batch_size)
    made = []
    for row in kept:
        pairs = list(
            _against_reference(row, take, report) if by == "reference" else _by_score(row, take, min_gap, report)
        )
        report.without += not pairs
        made += pairs
    if not made:
        raise DataError(f"no pair came out ({'; '.join(report.lines()[1:])})", where=file)
    report.rows = len(made)
    write_rows(target, made)
    return report


def with_scores(rows: Sequence[Answered], scorer: ScoreMix, *, batch_size: int) -> list[Answered]:
    """The same rows with the scores that a reward model gives to their answers."""
    candidates = [Candidate(row.prompt, answer) for row in rows for answer in row.answers]
    scores: list[float] = []
    starts = range(0, len(candidates), batch_size)
    for start in tracked(starts, total=len(starts), what="scores"):
        scores += scorer.score(candidates[start : start + batch_size]).total.tolist()
    given = iter(scores)
    return [replace(row, scores=tuple(next(given) for _ in row.answers)) for row in rows]


def _check(by: By, *, reward_model: str | None, labels: str | None, min_gap: float) -> None:
    """Refuse settings that are missing or without effect."""
    for name, value in (("reward_model", reward_model), ("labels", labels)):
        if by == name and value is None:
            raise SettingsError(
                "required, but not given", where=name, remedy=f"by={name} asks it which answer is better"
            )
        if by != name and value is not None:
            raise SettingsError(f"has no effect with by={by}", where=name, remedy=f"remove it, or set by={name}")
    if by == "reference" and min_gap:
        raise SettingsError("has no effect with by=reference", where="min_gap", remedy="remove it")


def _open(specs: Sequence[RewardSpec], *, batch_size: int, dtype: str, device: str) -> ScoreMix:
    def scorer(spec: RewardSpec) -> Scorer:
        if spec.function:
            return FunctionScorer(*spec.function)
        return open_reward_model(
            spec.source,
            name=Path(spec.source).name,
            cutoff_len=DEFAULT_CUTOFF,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            spell_out=True,
        )

    return ScoreMix(tuple((scorer(spec), spec.weight) for spec in specs))


def _usable(row: Answered, report: PairReport, *, drop_unfinished: bool) -> Answered:
    """The row without answers that are empty, cut where that is asked for, or there already."""
    places: list[int] = []
    seen: set[str] = set()
    for place, answer in enumerate(row.answers):
        if not answer.strip():
            report.drop("empty")
        elif drop_unfinished and row.finished and not row.finished[place]:
            report.drop("cut by the length limit")
        elif answer.strip() in seen:
            report.drop("says the same as another answer")
        else:
            places.append(place)
            seen.add(answer.strip())
    return replace(
        row,
        answers=tuple(row.answers[place] for place in places),
        scores=tuple(row.scores[place] for place in places) if row.scores else (),
        finished=tuple(row.finished[place] for place in places) if row.finished else (),
    )


def _against_reference(row: Answered, take: Take, report: PairReport) -> Iterator[dict[str, Any]]:
    if not row.reference.strip():
        raise DataError(
            "found no reference answer",
            where=row.where,
            remedy="sample from rows that have answers, or pair by scores, a reward model or labels",
        )
    other = [answer for answer in row.answers if answer.strip() != row.reference.strip()]
    report.drop("identical to the reference", len(row.answers) - len(other))
    for answer in other[: 1 if take == "one" else None]:
        report.pairs += 1
        yield {"prompt": as_dicts(row.prompt), "chosen": row.reference, "rejected": answer}


def _by_score(row: Answered, take: Take, min_gap: float, report: PairReport) -> Iterator[dict[str, Any]]:
    if not row.answers:
        return
    if not row.scores:
        raise DataError(
            "found no scores",
            where=row.where,
            remedy="have the answers judged (duiqi data judge), or pair by a reward model or labels",
        )
    order = sorted(range(len(row.answers)), key=lambda place: -row.scores[place])
    if take == "one":
        best, worst = order[0], order[-1]
        if not _is_apart(row.scores[best], row.scores[worst], min_gap):
            report.drop("no better or worse than the others", len(order))
            return
        report.pairs += 1
        yield {
            "prompt": as_dicts(row.prompt),
            "chosen": row.answers[best],
            "rejected": row.answers[worst],
            "chosen_score": row.scores[best],
            "rejected_score": row.scores[worst],
        }
        return
    ranked = order[:1]
    for place in order[1:]:
        if _is_apart(row.scores[ranked[-1]], row.scores[place], min_gap):
            ranked.append(place)
    report.drop("too near to the next better one", len(order) - len(ranked))
    if len(ranked) > 1:
        report.pairs += len(ranked) * (len(ranked) - 1) // 2
        scores = [row.scores[place] for place in ranked]
        yield {"prompt": as_dicts(row.prompt), "output": [row.answers[place] for place in ranked], "scores": scores}


def _is_apart(better: float, worse: float, min_gap: float) -> bool:
    return better > worse and better - worse >= min_gap

"""The examination of a reward model: what it is asked, and what its scores say of it.

`set_paper` makes the questions, the caller has them scored, `mark` reads the scores. Scores are plain numbers here, so
that whatever scores (a network, a function, a fake in a test) is examined in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, pstdev

from duiqi.evaluation.exam_grades import grade_of_probe, grade_parts, overall_grade
from duiqi.evaluation.exam_result import (
    About,
    Accuracy,
    Calibration,
    Case,
    Exam,
    LengthBias,
    ProbeResult,
    Slice,
    Spread,
    Stability,
)
from duiqi.evaluation.exam_statistics import Rate, centred, correlation, quantiles, reliability, wilson, win
from duiqi.evaluation.probes import FATAL, TITLES, Kind, Probe, make_probes
from duiqi.rollouts.scoring import Candidate, Conversation
from duiqi.types import Example, ranked_pairs, readable

PROBED_PROMPTS = 100
"""Prompts that probes are made of: with none of 100, the interval ends at 3.7 %."""
WORST_CASES = 3
"""Kept of each kind of probe."""
LENGTH_SLICES: tuple[tuple[str, float], ...] = (
    ("less than half as long", 0.5),
    ("shorter", 0.9),
    ("about as long", 1.1),
    ("longer", 2.0),
    ("more than twice as long", float("inf")),
)
"""How long the better answer is beside the worse one: the name of each slice and where it ends."""


@dataclass(frozen=True)
class Reading:
    """An answer as the reward model reads it."""

    row: Hashable
    """Equal for two answers that it cannot tell apart, such as those cut to the same tokens."""
    length: int
    """Tokens for a network, words (Chinese: characters) for a function."""


@dataclass(frozen=True)
class Question:
    """A prompt with its real answers."""

    prompt: Conversation
    answers: tuple[str, ...]
    """Best first, at least two that read differently."""
    lengths: tuple[int, ...]
    source: str
    scores: tuple[float, ...] = ()
    """What the data scored them, where it says; answers it scored alike are not compared."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The places of every (better, worse) pair of answers."""
        return ranked_pairs(self.answers, self.scores)


@dataclass(frozen=True)
class Paper:
    """Everything that is to be scored."""

    questions: tuple[Question, ...]
    probes: tuple[Probe, ...]
    """Their rows count the questions."""

    @property
    def candidates(self) -> list[Candidate]:
        """The real answers question by question, then the probes."""
        real = [Candidate(q.prompt, answer) for q in self.questions for answer in q.answers]
        return [*real, *(Candidate(self.questions[p.row].prompt, p.answer) for p in self.probes)]


@dataclass(frozen=True)
class _Pair:
    """Two answers to one prompt, and what the scores say."""

    row: int
    gap: float
    """Score of the better less score of the worse."""
    better: int
    """Its length."""
    worse: int
    weight: float
    """The pairs of a prompt share the weight 1."""


def set_paper(
    examples: Sequence[Example],
    read: Callable[[Conversation, str], Reading],
    *,
    seed: int,
    max_samples: int,
    marks: Sequence[str] = (),
) -> Paper:
    """The questions of an examination: at most `max_samples` prompts, and probes for the first hundred of them.

    Answers that the reward model reads as it reads a better one are left out, and so are probes that it reads as a real
    answer to their prompt.

    Args:
        examples: Rankings.
        read: How the reward model reads an answer.
        seed: Of the choice of prompts and of the probes.
        marks: Special tokens of its tokenizer, as they are written.
    """
    order = list(range(len(examples)))
    Random(f"exam:{seed}").shuffle(order)
    kept: list[Example] = []
    questions: list[Question] = []
    rows: list[frozenset[Hashable]] = []
    for place in order:
        if len(questions) == max_samples:
            break
        example = examples[place]
        readings: dict[Hashable, tuple[str, int, int]] = {}
        for number, answer in enumerate(example.answers):
            reading = read(example.prompt, answer)
            readings.setdefault(reading.row, (answer, reading.length, number))
        answers, lengths, numbers = zip(*readings.values(), strict=True)
        scores = tuple(example.scores[number] for number in numbers) if example.scores else ()
        question = Question(example.prompt, answers, lengths, example.origin.dataset, scores)
        if not question.pairs:
            continue
        kept.append(example)
        questions.append(question)
        rows.append(frozenset(readings))
    probes = [
        probe
        for probe in make_probes(kept[:PROBED_PROMPTS], seed=seed, marks=marks)
        if read(kept[probe.row].prompt, probe.answer).row not in rows[probe.row]
    ]
    return Paper(tuple(questions), tuple(probes))


def mark(paper: Paper, scores: Sequence[float], *, stability: Stability, about: About) -> Exam:
    """What the scores of `paper.candidates` say of who gave them."""
    given = iter(scores)
    real = [[next(given) for _ in question.answers] for question in paper.questions]
    of_probes = list(given)
    pairs = _pairs(paper, real)
    everything = [score for scores_of_one in real for score in scores_of_one]
    probes = tuple(_probe_result(kind, paper, real, of_probes) for kind in TITLES)
    accuracy = _accuracy(paper, pairs)
    length = _length_bias(paper, real, pairs)
    error, bins = reliability([pair.gap for pair in pairs], [pair.weight for pair in pairs])
    calibration = Calibration(error, tuple(bins))
    spreads = (
        _spread("best answers", [found[0] for found in real]),
        _spread("worst answers", [found[-1] for found in real]),
    )
    is_constant = bool(everything) and max(everything) == min(everything)
    parts = grade_parts(probes, accuracy, length, calibration, stability, is_constant=is_constant)
    return Exam(overall_grade(parts), about, parts, probes, accuracy, length, calibration, spreads, stability)


def _pairs(paper: Paper, real: Sequence[Sequence[float]]) -> list[_Pair]:
    found: list[_Pair] = []
    for row, (question, scores) in enumerate(zip(paper.questions, real, strict=True)):
        places = question.pairs
        found += [
            _Pair(row, scores[i] - scores[j], question.lengths[i], question.lengths[j], 1.0 / len(places))
            for i, j in places
        ]
    return found


def _share(pairs: Sequence[_Pair], wins: Callable[[_Pair], float]) -> Rate:
    """The weighted share of pairs that are won. The interval is that of as many trials as there are prompts."""
    return wilson(sum(wins(pair) * pair.weight for pair in pairs), sum(pair.weight for pair in pairs))


def _accuracy(paper: Paper, pairs: Sequence[_Pair]) -> Accuracy:
    sources = list(dict.fromkeys(question.source for question in paper.questions))
    by_source = [
        Slice(name, _share([p for p in pairs if paper.questions[p.row].source == name], _is_right)) for name in sources
    ]
    by_length: list[Slice] = []
    low = 0.0
    for name, high in LENGTH_SLICES:
        members = [p for p in pairs if low <= (p.better + 1) / (p.worse + 1) < high]
        if members:
            by_length.append(Slice(name, _share(members, _is_right)))
        low = high
    return Accuracy(
        overall=_share(pairs, _is_right),
        longer_wins=_share(pairs, lambda pair: win(pair.better, pair.worse)),
        shorter_wins=_share(pairs, lambda pair: win(pair.worse, pair.better)),
        by_source=tuple(by_source),
        by_length=tuple(by_length),
        pairs=len(pairs),
    )


def _is_right(pair: _Pair) -> float:
    return win(pair.gap, 0.0)


def _length_bias(paper: Paper, real: Sequence[Sequence[float]], pairs: Sequence[_Pair]) -> LengthBias:
    unequal = [pair for pair in pairs if pair.better != pair.worse]
    when_longer = _share([pair for pair in unequal if pair.better > pair.worse], _is_right)
    when_shorter = _share([pair for pair in unequal if pair.better < pair.worse], _is_right)
    is_known = bool(when_longer.trials and when_shorter.trials)
    scores = [score for found in real for score in found]
    lengths = [float(length) for question in paper.questions for length in question.lengths]
    groups = [row for row, question in enumerate(paper.questions) for _ in question.lengths]
    return LengthBias(
        model_prefers_longer=_share(unequal, lambda p: win(p.gap, 0.0) if p.better > p.worse else win(0.0, p.gap)),
        labels_prefer_longer=_share(unequal, lambda p: win(p.better, p.worse)),
        right_when_longer=when_longer,
        right_when_shorter=when_shorter,
        bias=(when_longer.share - when_shorter.share) / 2 if is_known else None,
        correlation_within=correlation(centred(scores, groups), centred(lengths, groups)),
        correlation_overall=correlation(scores, lengths),
    )


def _probe_result(kind: Kind, paper: Paper, real: Sequence[Sequence[float]], of_probes: Sequence[float]) -> ProbeResult:
    found = [(p, score) for p, score in zip(paper.probes, of_probes, strict=True) if p.kind == kind]
    beats_best = wilson(sum(win(score, real[p.row][0]) for p, score in found), len(found))
    cases = [
        Case(
            prompt=readable(paper.questions[p.row].prompt),
            real=paper.questions[p.row].answers[0],
            real_score=real[p.row][0],
            probe=p.answer,
            probe_score=score,
        )
        for p, score in sorted(found, key=lambda each: real[each[0].row][0] - each[1])[:WORST_CASES]
    ]
    return ProbeResult(
        kind=kind,
        title=TITLES[kind],
        is_fatal=kind in FATAL,
        beats_best=beats_best,
        beats_worst=wilson(sum(win(score, real[p.row][-1]) for p, score in found), len(found)),
        grade=grade_of_probe(beats_best, is_fatal=kind in FATAL) if found else None,
        scores=quantiles([score for _, score in found]),
        worst_cases=tuple(cases),
    )


def _spread(name: str, scores: Sequence[float]) -> Spread:
    return Spread(name, fmean(scores), pstdev(scores), quantiles(scores))

"""`duiqi exam`: opens a reward model, finds pairs that it should be examined on, and writes down what came out."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

import duiqi
from duiqi.data.loading import load_examples, split_validation
from duiqi.data.registry import parse_dataset_spec
from duiqi.errors import DataError, ModelError, SettingsError
from duiqi.evaluation.exam import Paper, Reading, mark, set_paper
from duiqi.evaluation.exam_file import exam_place, weights_digest, write_exam
from duiqi.evaluation.exam_result import About, Exam, Stability
from duiqi.evaluation.exam_stability import ROWS, measure_stability, with_other_precision
from duiqi.guards.answers import units
from duiqi.journal.files import writing
from duiqi.models.card import run_home
from duiqi.models.loading import choose_device, choose_dtype, locate
from duiqi.reports.exam_page import write_exam_page
from duiqi.rollouts.scoring import Candidate, Conversation, FunctionScorer, ModelScorer, RewardSpec
from duiqi.rollouts.standalone import open_reward_model
from duiqi.serving.progress import tracked
from duiqi.serving.score import DEFAULT_CUTOFF
from duiqi.settings.resolve import resolve
from duiqi.settings.stages import RewardModelConfig
from duiqi.types import Example

OTHER_PRECISION = {"float32": "bfloat16", "bfloat16": "float32", "float16": "float32"}


@dataclass(frozen=True)
class Examined:
    """An examination, and where it was written."""

    exam: Exam
    file: Path
    page: Path


@dataclass(frozen=True)
class Pairs:
    """Rankings to examine on, and what is to be said of them."""

    examples: list[Example]
    name: str
    notes: tuple[str, ...] = ()


def examine(
    reward_model: str,
    *,
    dataset: str | None = None,
    dataset_dir: str | None = None,
    max_samples: int = 200,
    seed: int = 0,
    output_dir: str | None = None,
    batch_size: int = 16,
    dtype: str = "auto",
    device: str = "auto",
) -> Examined:
    """Examine a reward model and write exam.json and exam.html.

    Args:
        reward_model: A reward-model run, a sequence classifier with one label, or `file.py:function`.
        dataset: Rankings, named like the setting of a stage. Default: those of the run, held-out ones before others.
        dataset_dir: Default: the run's, else `data`.
        max_samples: Prompts at most.
        seed: Of the choice of prompts and of the probes.
        output_dir: Default: where the reward model is.
        batch_size: Rows computed at once.

    Raises:
        UserError: The reward model or the rankings cannot be used, or nothing can be written there.
    """
    file = exam_place(reward_model, output_dir)
    if file is None:
        raise SettingsError(
            "this reward model has no directory here to write to", where="output_dir", remedy="give one: --output_dir"
        )
    function = RewardSpec(reward_model).function
    config = None if function else _config_of(reward_model)
    pairs = find_pairs(config, reward_model, dataset=dataset, dataset_dir=dataset_dir)
    cutoff_len = config.data.cutoff_len if config is not None else DEFAULT_CUTOFF
    precision = "" if function else str(choose_dtype(dtype, choose_device(device))).removeprefix("torch.")

    def open_in(precision: str) -> ModelScorer | FunctionScorer:
        if function:
            return FunctionScorer(*function)
        return open_reward_model(
            reward_model,
            name=reward_model,
            cutoff_len=cutoff_len,
            dtype=precision,
            device=device,
            batch_size=max(batch_size, ROWS),
            spell_out=True,
        )

    paper, scores, stability = _sit(
        open_in, pairs, precision=precision, max_samples=max_samples, seed=seed, batch_size=batch_size
    )
    about = About(
        reward_model=reward_model,
        digest=weights_digest(reward_model),
        dataset=pairs.name,
        prompts=len(paper.questions),
        seed=seed,
        precision=precision,
        version=duiqi.__version__,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=pairs.notes,
    )
    exam = mark(paper, scores, stability=stability, about=about)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    page = file.with_suffix(".html")
    write_exam_page(exam, page)
    write_exam(exam, file)
    return Examined(exam, file, page)


def find_pairs(
    config: RewardModelConfig | None, reward_model: str, *, dataset: str | None, dataset_dir: str | None
) -> Pairs:
    """The rankings that are named, or those that the run held out, or else those that it learned from.

    Raises:
        SettingsError: Nothing is named, and there is no run to look in.
        DataError: They are missing, malformed or no rankings.
    """
    folder = dataset_dir or (config.data.dataset_dir if config is not None else "data")
    if dataset is not None:
        loaded = load_examples(parse_dataset_spec(dataset), dataset_dir=folder, need="ranking", seed=0)
        return Pairs(loaded.examples, dataset)
    if config is None:
        raise SettingsError(
            f"{reward_model} does not say what it was trained on",
            where="dataset",
            remedy="name rankings that it has not seen: --dataset PAIRS",
        )
    data, seed = config.data, config.optimizer.seed
    try:
        loaded = load_examples(
            parse_dataset_spec(data.eval_dataset or data.dataset),
            dataset_dir=folder,
            need="ranking",
            seed=seed,
            max_samples=None if data.eval_dataset else data.max_samples,
            max_bad_rows=data.max_bad_rows,
        )
    except DataError as error:
        raise DataError(
            f"the data of this run cannot be read any more ({error.problem})",
            where=error.where,
            remedy="name rankings with --dataset, or their folder with --dataset_dir",
        ) from error
    if data.eval_dataset:
        return Pairs(loaded.examples, data.eval_dataset)
    if data.val_size:
        _, held_out = split_validation(loaded.examples, data.val_size, seed=seed)
        return Pairs(held_out, f"{data.dataset}, the part that was held out")
    seen = "it learned from these very rows, so its accuracy here is too good: name others with --dataset"
    return Pairs(loaded.examples, data.dataset, (seen,))


def _config_of(reward_model: str) -> RewardModelConfig | None:
    """The settings of the run that a reward model is the result or a checkpoint of; None where there are none."""
    where = locate(reward_model)
    recipe = run_home(Path(where.adapter or where.base).expanduser()) / "config.yaml"
    is_ours = where.card is not None and where.card.stage == "rm" and recipe.is_file()
    return resolve("rm", recipe=recipe) if is_ours else None


def _sit(
    open_in: Callable[[str], ModelScorer | FunctionScorer],
    pairs: Pairs,
    *,
    precision: str,
    max_samples: int,
    seed: int,
    batch_size: int,
) -> tuple[Paper, list[float], Stability]:
    """Have everything scored: the paper, a few rows of it in other company, and some in another precision."""
    paper, scores, stability = _first_sitting(open_in(precision), pairs, max_samples, seed, batch_size)
    if not precision:
        return paper, scores, stability
    gc.collect()  # the two precisions need not be held at the same time
    other = OTHER_PRECISION[precision]
    try:
        return paper, scores, with_other_precision(stability, paper, scores, _scores_of(open_in(other)), name=other)
    except torch.OutOfMemoryError:
        return paper, scores, replace(stability, other_precision=other)


def _first_sitting(
    scorer: ModelScorer | FunctionScorer, pairs: Pairs, max_samples: int, seed: int, batch_size: int
) -> tuple[Paper, list[float], Stability]:
    """All but the other precision."""
    marks = scorer.marks if isinstance(scorer, ModelScorer) else ()
    paper = set_paper(pairs.examples, _reader(scorer), seed=seed, max_samples=max_samples, marks=marks)
    if not paper.questions:
        raise DataError(
            "no row has two answers that the reward model reads differently",
            where=f"dataset: {pairs.name}",
            remedy="name other rankings with --dataset",
        )
    candidates = paper.candidates
    order = sorted(range(len(candidates)), key=lambda i: -len(candidates[i].answer))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    scores = [0.0] * len(candidates)
    for chunk in tracked(chunks, total=len(chunks), what="answers and probes"):
        for place, score in zip(chunk, scorer.score([candidates[i] for i in chunk]).tolist(), strict=True):
            scores[place] = score
    for candidate, score in zip(candidates, scores, strict=True):
        if not math.isfinite(score):
            raise ModelError(
                f"gives the score {score} to the answer {candidate.answer[:60]!r}",
                where=scorer.name,
                remedy="try --dtype float32; if that does not help, its weights are broken",
            )
    return paper, scores, measure_stability(paper, scores, _scores_of(scorer))


def _reader(scorer: ModelScorer | FunctionScorer) -> Callable[[Conversation, str], Reading]:
    if isinstance(scorer, FunctionScorer):
        return lambda _prompt, answer: Reading(answer, len(units(answer)))
    network = scorer

    def read(prompt: Conversation, answer: str) -> Reading:
        row = network.row(prompt, answer)
        return Reading(row, len(row) - len(network.row(prompt, "")))

    return read


def _scores_of(scorer: ModelScorer | FunctionScorer) -> Callable[[Sequence[Candidate]], list[float]]:
    return lambda candidates: scorer.score(candidates).tolist()

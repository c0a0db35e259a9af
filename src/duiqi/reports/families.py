"""Which metrics belong in one chart, in which order, and what the chart says in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

_EVALUATION_PREFIXES = ("eval_", "validation_", "test_")


@dataclass(frozen=True)
class Family:
    """Metrics drawn in one chart."""

    title: str
    patterns: tuple[str, ...]
    """Names as logged, without `eval_`; the first family with a pattern that fits takes the metric."""
    hint: str = ""
    higher_is_better: bool | None = None
    in_report: bool = True
    """Whether the chart is always in view; the others are folded away."""


FAMILIES = (
    Family("Loss", ("loss", "train_loss"), "lower is better", False),
    Family("Score", ("score", "score_mean", "score_raw", "raw_score", "reward_score"), "from the reward model", True),
    Family("Second opinion", ("opinion", "opinion_*"), "a judge that training never learns from", True),
    Family("Gold reward", ("gold*",), "the known judge, never shown to training", True),
    Family("Accuracy", ("accuracy", "accuracies", "rewards/accuracies", "reward_accuracy", "accuracy_*"),
           "pairs ordered as people did; 0.5 is chance", True),
    Family("Margin", ("margin", "margins", "*_margin", "rewards/margins"), "chosen minus rejected", True),
    Family("Chosen and rejected", ("chosen_score*", "rejected_score*", "chosen_reward*", "rejected_reward*",
                                   "score_chosen", "score_rejected", "reward_chosen", "reward_rejected",
                                   "rewards/chosen", "rewards/rejected"),
           "mean of each side"),
    Family("Log-probability of answers", ("*log_prob*", "logps*", "*_logps"),
           "both falling together deserves a look"),
    Family("KL coefficient", ("kl_coefficient", "kl_coef", "kl_beta", "beta"), "price of leaving the reference"),
    Family("KL of one update", ("approx_kl", "policy_kl"), "from the policy that sampled"),
    Family("KL from the reference", ("kl", "kl_*", "*_kl"), "distance from where training began"),
    Family("Answer length", ("answer_length*", "length*", "*_length"), "tokens; ended: of answers that end"),
    Family("Answers that end", ("eos_rate", "finished_rate"), "share that stops by itself", True),
    Family("Empty answers", ("empty_rate", "empty*", "ends_at_once"), "share", False),
    Family("Alarms that ring", ("findings",), "of the watch, on held-out answers", False, False),
    Family("Variety", ("distinct*", "self_bleu*"), "distinct n-grams, share"),
    Family("Repetition", ("repetition*", "self_similarity"), "within an answer, and between answers", False),
    Family("What would pay more", ("pays/*",), "share of prompts for which the reward model likes that better", False),
    Family("Other language", ("language_switch",), "than the prompt's, share", False, False),
    Family("Entropy", ("entropy*",), "nats per token; a collapse is a warning"),
    Family("Perplexity", ("perplexity",), "exp of the loss", False, False),
    Family("Clipped share", ("clip_fraction*", "*_clip_fraction", "clipfrac*"), "tokens whose ratio left its range"),
    Family("Value explained", ("*explained_variance*",), "1 is perfect, 0 is no better than the mean", True),
    Family("Policy and value loss", ("policy_loss", "value_loss", "*_loss"), "parts of the objective"),
    Family("Probability ratio", ("ratio*", "*_ratio"), "new over old; 1 before the first update"),
    Family("Learning rate", ("learning_rate", "lr"), "after warm-up and decay", None, False),
    Family("Gradient norm", ("gradient_norm*", "grad_norm*"), "before clipping", None, False),
    Family("Tokens per second", ("*tokens_per_second*", "tokens/s*"), "by phase", None, False),
    Family("Seconds", ("*seconds*", "time_*", "*_time", "step_time*"), "per step", None, False),
    Family("Memory", ("*memory*",), "peak", None, False),
    Family("Score in detail", ("score_*", "score/*", "reward", "reward_*", "rewards/*", "reward/*", "penalty/*"),
           "parts and spread"),
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Metric:
    """A logged name taken apart."""

    base: str
    is_evaluation: bool


def parse(name: str) -> Metric:
    """Split the evaluation prefix off a name.

    >>> parse("eval_loss"), parse("kl")
    (Metric(base='loss', is_evaluation=True), Metric(base='kl', is_evaluation=False))
    """
    for prefix in _EVALUATION_PREFIXES:
        if name.startswith(prefix):
            return Metric(name.removeprefix(prefix).removeprefix("/"), True)
    return Metric(name, False)


def group(names: Iterable[str]) -> list[tuple[Family, list[str]]]:
    """Sort names into families, known families first; a name that none knows becomes a family of its own.

    >>> [(family.title, names) for family, names in group(["kl", "surprise_me", "eval_loss", "loss"])]
    [('Loss', ['eval_loss', 'loss']), ('KL from the reference', ['kl']), ('Surprise me', ['surprise_me'])]
    """
    known: dict[Family, list[str]] = {family: [] for family in FAMILIES}
    unknown: dict[str, list[str]] = {}
    for name in names:
        base = parse(name).base
        family = next((f for f in FAMILIES if any(fnmatch(base, pattern) for pattern in f.patterns)), None)
        (known[family] if family else unknown.setdefault(base, [])).append(name)
    others = [(Family(words(base).capitalize(), (base,), in_report=False), found) for base, found in unknown.items()]
    return [(family, found) for family, found in known.items() if found] + others


def words(name: str) -> str:
    """A name as words.

    >>> words("value_clip_fraction")
    'value clip fraction'
    """
    return name.replace("/", " ").replace("_", " ")

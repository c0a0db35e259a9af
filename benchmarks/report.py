"""Writes the results into docs/benchmarks.md and its Chinese twin, between two marker comments; the prose stays.

    python benchmarks/report.py                 # the newest full comparison in build/bench/results.jsonl
    python benchmarks/report.py --print         # shows the table, writes nothing

Only runs of the whole work count (those without --flags). The machine and the versions are those noted with the runs;
the last column is what the FLOPs alone would give (benchmarks/floor.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from floor import Count, count_work
from results import Measurement, Verdict, judge_all, latest_of_each, read_results
from work import BENCH, REPOSITORY, SIZES, BenchmarkError, main_guard

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
RIVALS = {"trl": "TRL", "llamafactory": "LLaMA-Factory", "duiqi": "duiqi"}


@dataclass(frozen=True)
class Language:
    """What the table says besides numbers."""

    page: Path
    header: tuple[str, ...]
    titles: dict[str, str]
    """Of contests, by their English title; missing ones stay English."""
    seconds: str
    facts: str

    def title(self, verdict: Verdict) -> str:
        return self.titles.get(verdict.contest.title, verdict.contest.title)


ENGLISH = Language(
    page=REPOSITORY / "docs" / "benchmarks.md",
    header=(
        "work",
        "base",
        "duiqi",
        "better peer",
        "times as fast (in single rounds)",
        "goal",
        "peak memory",
        "share of the smaller peer's",
        "goal",
        "by FLOPs alone",
    ),
    titles={},
    seconds="{:.1f} s",
    facts="{machine}; {threads} threads a run; medians of {rounds} rounds, {date}; duiqi {revision}. "
    "Versions: {versions}.",
)
CHINESE = Language(
    page=REPOSITORY / "docs" / "zh" / "benchmarks.md",
    header=(
        "任务",
        "基座精度",
        "duiqi",
        "较快的同类工具",
        "快多少倍（各轮范围）",
        "目标",
        "峰值内存",
        "占较省者的比例",
        "目标",
        "仅按计算量",
    ),
    titles={
        "reward model": "奖励模型",
        "DPO again, reference remembered": "再次 DPO，参考值已缓存",
        "PPO, critic: shared": "PPO，critic: shared",
        "PPO, critic: adapter": "PPO，critic: adapter",
        "PPO, critic: model": "PPO，critic: model",
        "GRPO, 8 answers": "GRPO，每题 8 个回答",
    },
    seconds="{:.1f} 秒",
    facts="{machine}；每次运行 {threads} 个线程；{rounds} 轮的中位数，{date}；duiqi {revision}。版本：{versions}。",
)


def table(verdicts: Sequence[Verdict], counts: dict[tuple[str, str], Count], language: Language) -> str:
    """The table in Markdown."""
    rows = [
        row(verdict, counts.get((verdict.contest.work, verdict.contest.contender)), language) for verdict in verdicts
    ]
    lines = [language.header, ["---"] * len(language.header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row(verdict: Verdict, count: Count | None, language: Language) -> list[str]:
    """A line of the table; targets that were missed are set in bold."""
    v = verdict
    ratio, share = f"{v.ratio:.2f}", f"{v.memory_share:.2f}"
    if v.contest.contender == "duiqi-cached":
        memory, by_flops = ["–", "–"], "–"
    else:
        memory = [f"{v.peak_mb:.0f} MB", share if v.is_small_enough else f"**{share}**"]
        by_flops = "–" if count is None else f"{count.ratio:.2f}"
    return [
        language.title(v),
        v.dtype,
        language.seconds.format(v.seconds),
        f"{RIVALS[v.rival]} {language.seconds.format(v.rival_seconds)}",
        f"{ratio if v.is_fast_enough else f'**{ratio}**'} ({v.lowest:.2f}–{v.highest:.2f})",
        "–" if v.speed_target is None else f"≥ {v.speed_target:g}",
        *memory,
        "–" if v.contest.memory is None else f"≤ {v.contest.memory:g}",
        by_flops,
    ]


def facts(measurements: Sequence[Measurement], language: Language) -> str:
    """Machine, date and versions of the newest run, in a sentence."""
    newest = max(measurements, key=lambda m: (m.session, m.round))
    return language.facts.format(
        machine=newest.machine,
        threads=newest.threads,
        rounds=1 + max(m.round for m in measurements),
        date=newest.session.partition("T")[0],
        revision=newest.revision,
        versions="; ".join(versions_in_words(measurements)),
    )


def versions_in_words(measurements: Sequence[Measurement]) -> list[str]:
    """What everybody ran on; an environment that several pieces of work share is named once."""
    found: dict[str, None] = {}
    for m in measurements:
        name = RIVALS[m.contender.partition("-")[0]]
        packages = ", ".join(
            f"{package} {version}" for package, version in sorted(m.versions.items()) if package != "duiqi"
        )
        found[f"{name}: {packages}"] = None
    return sorted(found)


def between_markers(text: str, new: str, *, page: Path) -> str:
    """The page with `new` between its markers.

    Raises:
        BenchmarkError: The page has no markers.

    >>> between_markers(f"a {BEGIN} old {END} z", "new", page=Path("x")).split()
    ['a', '<!--', 'table:begin', '-->', 'new', '<!--', 'table:end', '-->', 'z']
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"{page} has no {BEGIN} ... {END} to write between")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def write(language: Language, text: str) -> None:
    """Put the table into a page.

    Raises:
        BenchmarkError: The page is missing.
    """
    if not language.page.is_file():
        raise BenchmarkError(f"{language.page} is missing")
    page = language.page.read_text(encoding="utf-8")
    language.page.write_text(between_markers(page, text, page=language.page), encoding="utf-8")
    print(f"wrote {language.page.relative_to(REPOSITORY)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=BENCH / "results.jsonl", help="what compare.py wrote")
    parser.add_argument("--root", type=Path, default=BENCH, help="where models and work files are")
    parser.add_argument("--size", default="small", choices=SIZES, help="of the model")
    parser.add_argument("--flags", default="", help="take the runs with these extra flags instead (for trying it out)")
    parser.add_argument("--print", dest="only_print", action="store_true", help="show the table and write nothing")
    args = parser.parse_args()
    wanted = [m for m in read_results(args.results) if (m.size, m.flags) == (args.size, args.flags)]
    verdicts = judge_all(latest_of_each(wanted))
    if not verdicts:
        raise BenchmarkError(f"{args.results} holds nothing to compare: run `make bench`")
    counts = count_work(args.root, args.size)
    for language in (ENGLISH, CHINESE):
        text = f"{table(verdicts, counts, language)}\n\n{facts(latest_of_each(wanted), language)}"
        print(text + "\n") if args.only_print else write(language, text)


if __name__ == "__main__":
    main_guard(main)

"""duiqi and its peers on the same work, one after the other in every round: who is how fast, and in how much memory.

    make bench                                              # everything: hours on two cores
    make bench ARGS="--only sft,rm --set fp32 --repeats 3"
    make bench ARGS="--continue"                            # goes on where a comparison was broken off
    make bench ARGS="--table"                               # what the results say so far; runs nothing

Every run is a process of its own. Its line goes to build/bench/results.jsonl at once, so nothing is lost when this is
stopped. A run that other processes held up is run again, at most --tries times; the least disturbed one is kept and
marked. A contender that fails is reported and left out of the later rounds; the others go on.
The peers' environments are built by `make bench-peers`, their scripts are in the folder named with --peers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from environments import python_of
from machine import this_machine, wait_until_idle
from results import Measurement, Verdict, in_words, judge_all, latest_of_each, parse, read_results
from work import (
    BENCH,
    DTYPES,
    PEERS,
    REPOSITORY,
    SIZES,
    WORKS,
    BenchmarkError,
    main_guard,
    make_assets,
    peer_script,
)

HERE = Path(__file__).resolve().parent
GUESS_SECONDS = 90.0
"""How long a run takes as long as none has ended."""
CRITICS = ("shared", "adapter", "model")


@dataclass(frozen=True)
class Contender:
    """Who takes part in a piece of work, and how it is started."""

    work: str
    name: str
    script: str
    environment: str = "base"
    flags: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether the script lies beside this one, not with the peers."""
        return (HERE / self.script).is_file()

    def command(self, peers: Path) -> list[str]:
        """Interpreter, script and flags.

        Raises:
            BenchmarkError: The environment or the script is missing.
        """
        script = HERE / self.script if self.is_ours else peer_script(peers, self.script)
        return [str(python_of(self.environment)), str(script), *self.flags]


def duiqi(work: str, name: str = "duiqi", *flags: str) -> Contender:
    return Contender(work, name, "duiqi_run.py", flags=("--stage", work, *flags))


CONTENDERS: tuple[Contender, ...] = (
    duiqi("sft"),
    Contender("sft", "trl", "trl_sft.py"),
    Contender("sft", "llamafactory", "lf_sft.py", "lf"),
    duiqi("rm"),
    Contender("rm", "trl", "trl_rm.py"),
    Contender("rm", "llamafactory", "lf_rm.py", "lf"),
    duiqi("dpo"),
    duiqi(
        "dpo", "duiqi-cached", "--reference", "warm", "--note", "cached"
    ),  # remembers what the run before it computed
    Contender("dpo", "trl", "trl_dpo.py"),
    Contender("dpo", "llamafactory", "lf_dpo.py", "lf"),
    *(duiqi("ppo", f"duiqi-{critic}", "--critic", critic, "--note", critic) for critic in CRITICS),
    Contender("ppo", "trl", "trl_ppo.py", "trl-ppo"),
    duiqi("grpo", "duiqi", "--answers", "8"),
    Contender("grpo", "trl", "peer_grpo.py", flags=("--answers", "8")),
)


@dataclass(frozen=True)
class Task:
    """One run that is to be made."""

    contender: Contender
    dtype: str
    round: int

    def __str__(self) -> str:
        return f"{self.contender.work} {self.dtype} {self.contender.name}"


def plan(works: Sequence[str], dtypes: Sequence[str], repeats: int, critics: Sequence[str]) -> list[Task]:
    """All runs in their order: within a round everybody takes a turn, so a slow hour of the machine hits all alike."""
    unwanted = {f"duiqi-{critic}" for critic in CRITICS if critic not in critics}
    return [
        Task(contender, dtype, number)
        for dtype in dtypes
        for work in works
        for number in range(repeats)
        for contender in CONTENDERS
        if contender.work == work and contender.name not in unwanted
    ]


class Clock:
    """How much time has passed, and how much is left by what runs took so far."""

    def __init__(self, earlier: Iterable[Measurement], *, size: str, flags: str) -> None:
        self._begin = time.monotonic()
        self._seconds: dict[tuple[str, str, str], list[float]] = {}
        for m in earlier:
            if (m.size, m.flags) == (size, flags):
                self.note((m.work, m.dtype, m.contender), m.wall_s)

    def note(self, run: tuple[str, str, str], seconds: float) -> None:
        self._seconds.setdefault(run, []).append(seconds)

    def guess(self, task: Task) -> float:
        """Seconds that a task will take: as before, or as long as others did."""
        known = self._seconds.get((task.contender.work, task.dtype, task.contender.name))
        everything = [seconds for times in self._seconds.values() for seconds in times]
        return median(known or everything or [GUESS_SECONDS])

    def status(self, left: Sequence[Task]) -> str:
        """Elapsed and estimated time in words."""
        elapsed = time.monotonic() - self._begin
        return f"{_duration(elapsed)} so far, about {_duration(sum(map(self.guess, left)))} left"


def _duration(seconds: float) -> str:
    """
    >>> _duration(75), _duration(4000)
    ('1:15', '1:06:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class RunFailed(Exception):
    """A contender's process ended badly; says how."""


def run_once(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Run a task in a process of its own. Returns the JSON line that it printed, with what was seen from outside.

    Raises:
        RunFailed: It failed, took too long or printed no result.
    """
    work_flags = ["--root", str(args.root), "--size", args.size, "--dtype", task.dtype, "--threads", str(args.threads)]
    command = [*task.contender.command(args.peers), *work_flags, *shlex.split(args.flags)]
    if args.nice:
        command = ["nice", "-n", str(args.nice), *command]
    cpu_before, begin = _children_seconds(), time.monotonic()
    printed = _output_of(command, environment(task.contender, args), args.timeout)
    wall, cpu = time.monotonic() - begin, _children_seconds() - cpu_before
    lines = [line for line in printed.splitlines() if line.startswith('{"stage"')]
    if not lines:
        raise RunFailed(f"it printed no result:\n{printed[-500:]}")
    line: dict[str, Any] = json.loads(lines[-1])
    waiting = line["queue_wait_s"] / max(cpu + line["queue_wait_s"], 1e-9)
    return line | {
        "work": task.contender.work,
        "contender": task.contender.name,
        "flags": args.flags,
        "session": args.session,
        "round": task.round,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 1),
        "waiting_share": round(waiting, 3),
        "is_disturbed": waiting > args.max_waiting,
        "revision": args.revision,
        "machine": str(this_machine()),
    }


def environment(contender: Contender, args: argparse.Namespace) -> dict[str, str]:
    """The variables of a run: threads, no network, and the peers' folder where our own script imports from it."""
    threads = str(args.threads)
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    variables |= {"PYTHONDONTWRITEBYTECODE": "1"}  # nothing is written into the peers' folder
    variables.pop("PYTHONPATH", None)
    if contender.script == "peer_grpo.py":
        peer_script(args.peers, "common.py")
        variables["PYTHONPATH"] = str(args.peers)
    return variables


def _output_of(command: Sequence[str], variables: dict[str, str], timeout: float) -> str:
    """What a command prints, started in a session of its own so that all of it can be ended.

    Raises:
        RunFailed: It failed or took too long.
    """
    process = subprocess.Popen(
        command,
        env=variables,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"it took more than {timeout:.0f} s (--timeout)") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RunFailed(f"exit status {process.returncode}:\n{complaints[-1500:]}")
    return printed


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_undisturbed(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """The least disturbed of at most `--tries` runs; the first one that was left alone ends them.

    Raises:
        RunFailed: The first of them failed.
    """
    best: dict[str, Any] | None = None
    for _ in range(args.tries):
        if args.wait:
            wait_until_idle(args.wait)
        line = run_once(task, args)
        if best is None or line["waiting_share"] < best["waiting_share"]:
            best = line
        if not line["is_disturbed"]:
            break
    assert best is not None
    return best


def run_all(tasks: Sequence[Task], args: argparse.Namespace) -> list[str]:
    """Run what is to be run; every result is written as soon as it is there. Returns the failures in words."""
    clock = Clock(read_results(args.results), size=args.size, flags=args.flags)
    failures: dict[str, str] = {}
    for number, task in enumerate(tasks):
        left = [later for later in tasks[number:] if str(later) not in failures]
        if str(task) in failures:
            continue
        print(f"[{number + 1}/{len(tasks)}] {task}, round {task.round + 1} ({clock.status(left)})", flush=True)
        try:
            line = run_undisturbed(task, args)
        except (RunFailed, BenchmarkError) as failure:
            failures[str(task)] = str(failure)
            print(f"    failed, and is left out from now on: {failure}", file=sys.stderr, flush=True)
            continue
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        measured = parse(line)
        clock.note((measured.work, measured.dtype, measured.contender), measured.wall_s)
        held_up = f", held up {measured.waiting_share:.0%} of the time" if measured.is_disturbed else ""
        print(
            f"    {measured.train_s:.1f} s, {measured.real_tokens / measured.train_s:.0f} tokens/s, "
            f"{measured.peak_rss_mb:.0f} MB{held_up}",
            flush=True,
        )
    return [f"{task}: {reason.splitlines()[0]}" for task, reason in failures.items()]


def without_done(tasks: Sequence[Task], done: Iterable[Measurement]) -> list[Task]:
    """The tasks that have no result yet."""
    there = {(m.work, m.contender, m.dtype, m.round) for m in done}
    return [t for t in tasks if (t.contender.work, t.contender.name, t.dtype, t.round) not in there]


def known_critics() -> tuple[str, ...]:
    """The critics that this version of duiqi has."""
    from duiqi.settings.describe import known_settings

    choices = next(setting.choices for setting in known_settings("ppo") if setting.name == "critic")
    return tuple(critic for critic in CRITICS if critic in choices)


def revision() -> str:
    """duiqi's git revision, with + when tracked files were changed since; empty where git does not know."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(WORKS), help=f"which work, of {','.join(WORKS)}")
    parser.add_argument("--set", default=",".join(DTYPES), help="which precisions, of fp32,bf16")
    parser.add_argument(
        "--critics", default="shared,adapter", help="ppo: which critics of duiqi, of shared,adapter,model"
    )
    parser.add_argument("--size", default="small", choices=SIZES, help="of the model")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on with the last comparison")
    parser.add_argument("--table", action="store_true", help="run nothing, show what the results say")
    parser.add_argument("--assets-only", action="store_true", help="make models and work files, and stop")
    parser.add_argument("--flags", default="", help='more flags for every script, as "--samples 8": a work of its own')
    parser.add_argument("--peers", type=Path, default=PEERS, help="the folder of the peers' scripts")
    parser.add_argument("--root", type=Path, default=BENCH, help="where models and work files are")
    parser.add_argument("--results", type=Path, default=BENCH / "results.jsonl", help="where lines are added")
    parser.add_argument("--threads", type=int, default=2, help="of each run")
    parser.add_argument("--nice", type=int, default=0, help="niceness of the runs; below 0 needs rights")
    parser.add_argument("--tries", type=int, default=3, help="runs to get one that others did not hold up")
    parser.add_argument(
        "--max-waiting", type=float, default=0.05, help="share of waiting above which a run is disturbed"
    )
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for an idle machine; 0: do not look")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a run has failed")
    args = parser.parse_args(argv)
    args.only, args.set, args.critics = (_choice(parser, *given) for given in (
        ("--only", args.only, WORKS), ("--set", args.set, DTYPES), ("--critics", args.critics, CRITICS)
    ))  # fmt: skip
    args.peers, args.root = args.peers.resolve(), args.root.resolve()
    return args


def _choice(parser: argparse.ArgumentParser, flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The words of a list with commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in words if word not in allowed]:
        parser.error(f"{flag}: there is no {', '.join(unknown)}; there are {', '.join(allowed)}")
    return words


def compare(args: argparse.Namespace) -> tuple[list[Verdict], list[str]]:
    """Run the comparison. Returns the verdicts on its work, and what failed."""
    make_assets(args.root, args.size, args.peers)
    earlier = [m for m in read_results(args.results) if (m.size, m.flags) == (args.size, args.flags)]
    args.session = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    tasks = plan(args.only, args.set, args.repeats, [c for c in args.critics if c in known_critics()])
    if args.resume and earlier:
        args.session = max(m.session for m in earlier)
        tasks = without_done(tasks, (m for m in earlier if m.session == args.session))
    args.revision = revision()
    args.results.parent.mkdir(parents=True, exist_ok=True)
    failures = run_all(tasks, args)
    return verdicts_so_far(args), failures


def verdicts_so_far(args: argparse.Namespace) -> list[Verdict]:
    """What the results file says of the work asked for."""
    wanted = (m for m in read_results(args.results) if (m.size, m.flags) == (args.size, args.flags))
    return judge_all([m for m in latest_of_each(wanted) if m.dtype in args.set], args.only)


def main() -> None:
    args = parse_arguments()
    if args.assets_only:
        make_assets(args.root, args.size, args.peers)
        return
    verdicts, failures = (verdicts_so_far(args), []) if args.table else compare(args)
    print("\n".join(["", *map(in_words, verdicts)]) if verdicts else "no results to compare yet")
    for failure in failures:
        print(f"FAILED {failure}")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    main_guard(main)

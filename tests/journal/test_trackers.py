"""Trackers: told what the journal writes, each step once, also over interruptions; and never able to stop a run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duiqi.errors import Interrupted, SettingsError
from duiqi.journal.lines import read_lines
from duiqi.journal.run import Run
from duiqi.journal.terminal import SilentView
from duiqi.journal.trackers.registry import SERVICES, make_tracking
from duiqi.journal.trackers.tracker import NOTHING, Opened, Outcome, TrackedRun
from duiqi.journal.trackers.tracking import Tracking
from duiqi.settings.groups import TrackerName
from duiqi.types import TrainingTotals

Kind = Literal["keeps", "rewinds", "begins anew"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TOTALS = TrainingTotals(1.0, 2.5, 10.0, 6.4, 0.8)


class Service:
    """A stand-in for a tracker's store, which outlives the process that writes to it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.sampled: list[tuple[int, list[Any]]] = []
        self.ids: list[str] = []
        self.runs: list[TrackedRun] = []
        self.outcomes: list[Outcome] = []

    def client(self) -> Client:
        return Client(self)


class Client:
    """A tracker as a process sees it."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def open(self, run: TrackedRun) -> Opened:
        service = self.service
        service.runs.append(run)
        service.ids.append(run.id or f"id-{len(service.ids)}")
        known = {"keeps": run.told, "rewinds": min(run.told, run.step), "begins anew": NOTHING}[service.kind]
        if service.kind != "keeps":
            service.rows = [row for row in service.rows if row[0] <= known]
        return Opened(service.ids[-1], known, "see it here")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.service.rows.append((step, dict(values)))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.service.sampled.append((step, list(rows)))

    def close(self, outcome: Outcome) -> None:
        self.service.outcomes.append(outcome)


class Broken(Client):
    """Fails in one of its methods, from the given call on."""

    def __init__(self, service: Service, method: str, *, after: int = 0) -> None:
        super().__init__(service)
        self.method, self.calls_left = method, after

    def _pass(self, method: str) -> None:
        if method == self.method:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise ConnectionError("no route to host")

    def open(self, run: TrackedRun) -> Opened:
        self._pass("open")
        return super().open(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._pass("log")
        super().log(step, values)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._pass("samples")
        super().samples(step, rows)

    def close(self, outcome: Outcome) -> None:
        self._pass("close")
        super().close(outcome)


class Notes(SilentView):
    """Remembers what the user was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def open_run(directory: Path, *services: Service, **options: Any) -> Run:
    makers = {f"fake-{number}": service.client for number, service in enumerate(services)}
    given = {"stage": "sft", "settings": {"seed": 7}, "argv": [], "resume": True, "tracking": Tracking(makers)}
    return Run.open(directory, **{**given, **options})


def train(run: Run, start: int, stop: int) -> None:
    """Steps `start`+1 to `stop`, as a session logs them: every second one is evaluated as well."""
    run.track(start)
    if start == NOTHING:
        run.metrics(0, {"eval_loss": 9.0})
    for step in range(max(start, 0) + 1, stop + 1):
        run.metrics(step, {"loss": 1 / step, "epoch": step / 10})
        if step % 2 == 0:
            run.metrics(step, {"eval_loss": 2 / step})


def kill(run: Run) -> None:
    """What is left of a run whose process is gone: nothing is closed but the lock, which the system drops."""
    run._lock.release()


def told_of(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """metrics.jsonl as a tracker should have it."""
    rows = read_lines(directory / "metrics.jsonl")
    named = [
        {f"eval/{n[5:]}" if n.startswith("eval_") else f"train/{n}": v for n, v in row.items() if n != "step"}
        for row in rows
    ]
    return [(row["step"], values) for row, values in zip(rows, named, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tracker_is_told_the_lines_of_metrics_in_their_order(tmp_path: Path, kind: Kind) -> None:
    service = Service(kind)
    with open_run(tmp_path, service) as run:
        train(run, NOTHING, 4)
    assert service.rows == told_of(tmp_path)
    assert [step for step, _ in service.rows] == [0, 1, 2, 2, 3, 4, 4]
    assert service.outcomes == ["finished"]


def test_a_tracker_learns_the_settings_and_where_it_may_write(tmp_path: Path) -> None:
    service = Service("keeps")
    with open_run(tmp_path / "ppo", service, settings={"seed": 7, "resume_from_checkpoint": True}) as run:
        run.track(NOTHING)
    (seen,) = service.runs
    assert seen == TrackedRun(tmp_path / "ppo/trackers/fake-0", None, "ppo", {"seed": 7}, None, NOTHING, NOTHING)


def test_the_name_and_project_of_the_settings_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_PROJECT", "theirs")
    for project, expected in ((None, "theirs"), ("ours", "ours")):
        service = Service("keeps")
        tracking = Tracking({"fake": service.client}, project=project, name="run 1")
        with open_run(tmp_path / expected, tracking=tracking) as run:
            run.track(NOTHING)
        assert service.runs[0].name == "run 1"
        assert service.runs[0].project_or("THEIR_PROJECT") == expected
        assert service.runs[0].project_or("NOT_SET") == (project or "duiqi")


def test_the_user_reads_where_to_look(tmp_path: Path) -> None:
    view = Notes()
    with open_run(tmp_path, Service("keeps"), view=view) as run:
        run.track(NOTHING)
    assert view.texts == ["fake-0: see it here"]
    assert json.loads((tmp_path / "manifest.json").read_text())["trackers"] == {"fake-0": "see it here"}


def test_numbers_that_are_not_finite_stay_numbers_over_a_resumption(tmp_path: Path) -> None:
    run = open_run(tmp_path, Service("keeps"))
    run.track(NOTHING)
    run.metrics(1, {"loss": float("inf")})
    kill(run)
    service = Service("begins anew")
    with open_run(tmp_path, service) as run:
        run.track(1)
    assert service.rows == [(1, {"train/loss": float("inf")})]


def test_samples_are_told_at_their_step(tmp_path: Path) -> None:
    service = Service("keeps")
    rows = [{"prompt": "你是谁？", "answer": "我是小对。", "score": 0.5}]
    with open_run(tmp_path, service) as run:
        run.track(NOTHING)
        run.samples(2, iter(rows))
    assert service.sampled == [(2, rows)]
    assert read_lines(tmp_path / "samples.jsonl") == [{"step": 2, **rows[0]}]


def test_the_results_are_told_at_the_last_step_unless_they_were_told(tmp_path: Path) -> None:
    service = Service("keeps")
    with open_run(tmp_path, service) as run:
        train(run, NOTHING, 4)
        run.finish(TOTALS, {"eval_loss": 0.5, "perplexity": 1.6})
    step, values = service.rows[-1]
    assert step == 4
    assert values.keys() == {
        "train/train_loss", "train/train_runtime", "train/train_samples_per_second", "train/train_steps_per_second",
        "train/perplexity",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_that_is_resumed_tells_nothing_twice(tmp_path: Path, kind: Kind) -> None:
    service = Service(kind)
    for start in (NOTHING, 4):
        with open_run(tmp_path, service) as run:
            run.rewind(start)
            train(run, start, 4)
            run.finish(TOTALS, {"eval_loss": 0.5})
        if start == NOTHING:
            before = list(service.rows)
    assert service.rows == before


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(Interrupted("saved"), "interrupted"), (KeyboardInterrupt(), "interrupted"), (OSError("lost"), "failed")],
)
def test_a_tracker_hears_how_the_run_ended(tmp_path: Path, error: BaseException, outcome: str) -> None:
    service = Service("keeps")
    run = open_run(tmp_path, service)
    run.track(NOTHING)
    with pytest.raises(type(error)), run:
        raise error
    assert service.outcomes == [outcome]


class TestFailures:
    @pytest.mark.parametrize("method", ["open", "log", "samples", "close"])
    def test_a_tracker_that_fails_is_warned_of_once_and_the_rest_goes_on(self, tmp_path: Path, method: str) -> None:
        broken, sound, view = Service("keeps"), Service("keeps"), Notes()
        tracking = Tracking({"broken": lambda: Broken(broken, method), "sound": sound.client})
        with open_run(tmp_path, tracking=tracking, view=view) as run:
            train(run, NOTHING, 2)
            run.samples(2, [{"prompt": "p", "answer": "a"}])
            run.metrics(3, {"loss": 0.1})
        assert sound.rows == told_of(tmp_path)
        assert (len(sound.sampled), sound.outcomes, broken.outcomes) == (1, ["finished"], [])
        warnings = [event["text"] for event in read_lines(tmp_path / "events.jsonl") if event["kind"] == "warning"]
        assert warnings == [
            "broken failed and is told no more, the run goes on without it (ConnectionError: no route to host)"
        ]
        assert [text for text in view.texts if "warning" in text] == [f"warning: {warnings[0]}"]

    def test_a_package_that_cannot_be_imported_is_such_a_failure(self, tmp_path: Path) -> None:
        def make() -> Client:
            raise ImportError("DLL load failed")

        with open_run(tmp_path, tracking=Tracking({"fake": make})) as run:
            train(run, NOTHING, 2)
        assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 2]

    def test_after_a_failure_the_next_start_tells_what_is_missing(self, tmp_path: Path) -> None:
        service = Service("keeps")
        run = open_run(tmp_path, tracking=Tracking({"fake-0": lambda: Broken(service, "log", after=3)}))
        train(run, NOTHING, 6)
        kill(run)
        assert [step for step, _ in service.rows] == [0, 1, 2]
        with open_run(tmp_path, service) as run:
            run.rewind(6)
            train(run, 6, 8)
        assert [step for step, _ in service.rows] == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]
        assert set(service.ids) == {"id-0"}

    def test_a_run_without_trackers_has_no_folder_for_them(self, tmp_path: Path) -> None:
        with open_run(tmp_path) as run:
            train(run, NOTHING, 2)
        assert not (tmp_path / "trackers").exists()


class TestResumption:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_run_goes_on(self, tmp_path: Path, kind: Kind) -> None:
        service = Service(kind)
        run = open_run(tmp_path, service)
        train(run, NOTHING, 7)
        kill(run)
        with open_run(tmp_path, service) as run:
            run.rewind(4)
            train(run, 4, 8)
        assert service.rows == told_of(tmp_path)
        assert service.ids == ["id-0", "id-0"]

    def test_a_tracker_named_only_now_is_told_everything(self, tmp_path: Path) -> None:
        first, second = Service("keeps"), Service("keeps")
        run = open_run(tmp_path, first)
        train(run, NOTHING, 5)
        kill(run)
        with open_run(tmp_path, first, second) as run:
            run.rewind(4)
            train(run, 4, 6)
        assert second.rows == told_of(tmp_path)

    def test_what_one_start_did_not_name_is_not_forgotten(self, tmp_path: Path) -> None:
        service = Service("keeps")
        for start, services in ((NOTHING, [service]), (2, [Service("keeps")]), (4, [Service("keeps"), service])):
            makers = {("one" if each is service else "other"): each.client for each in services}
            with open_run(tmp_path, tracking=Tracking(makers)) as run:
                run.rewind(start)
                train(run, start, max(start, 0) + 2)
        assert service.rows == told_of(tmp_path)

    def test_records_that_cannot_be_read_begin_new_runs(self, tmp_path: Path) -> None:
        service = Service("keeps")
        with open_run(tmp_path, service) as run:
            train(run, NOTHING, 2)
        (tmp_path / "trackers/runs.json").write_text("{")
        with open_run(tmp_path, service) as run:
            run.track(2)
        assert service.ids == ["id-0", "id-1"]

    def test_overwriting_the_run_begins_new_runs(self, tmp_path: Path) -> None:
        service = Service("keeps")
        for _ in range(2):
            with open_run(tmp_path, service, resume=False, overwrite=True) as run:
                train(run, NOTHING, 2)
        assert service.ids == ["id-0", "id-1"]

    @settings(max_examples=20, deadline=None)
    @example("keeps", [(4, 4), (0, 0)])
    @given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=3))
    def test_whatever_was_killed_no_step_is_missing_or_told_twice(
        self, tmp_path_factory: pytest.TempPathFactory, kind: Kind, kills: list[tuple[int, int]]
    ) -> None:
        """A start runs some steps and is killed; the next goes on from a checkpoint some steps back, or from none."""
        directory, service, start, furthest = tmp_path_factory.mktemp("run"), Service(kind), NOTHING, 0
        for steps, lost in kills:
            run = open_run(directory, service)
            run.rewind(start)
            end = max(start, 0) + steps
            train(run, start, end)
            kill(run)
            start, furthest = max(end - lost, NOTHING), max(furthest, end)
        with open_run(directory, service) as run:
            run.rewind(start)
            train(run, start, furthest + 3)
        steps_told = [step for step, _ in service.rows]
        assert steps_told == sorted(steps_told)
        assert service.rows == told_of(directory)


class TestAsAGuest:
    def open_and_do(self, directory: Path, act: Any) -> Run:
        class Acting(Client):
            def open(self, run: TrackedRun) -> Opened:
                act()
                return super().open(run)

        run = open_run(directory, tracking=Tracking({"fake": lambda: Acting(Service("keeps"))}))
        run.track(NOTHING)
        return run

    def test_it_cannot_wait_for_an_answer(self, tmp_path: Path) -> None:
        self.open_and_do(tmp_path, lambda: input("your key: ")).close()
        assert "log in with its own command before the run" in read_lines(tmp_path / "events.jsonl")[-1]["text"]

    def test_it_does_not_write_on_stdout(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.open_and_do(tmp_path, lambda: sys.stdout.write("created new run\n")).close()
        assert capsys.readouterr().out == ""

    def test_the_signals_and_the_exception_hook_are_ours_again(self, tmp_path: Path) -> None:
        def take_over() -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.excepthook = print

        before = signal.getsignal(signal.SIGINT), sys.excepthook
        self.open_and_do(tmp_path, take_over).close()
        assert (signal.getsignal(signal.SIGINT), sys.excepthook) == before

    def test_the_random_numbers_are_those_without_it(self, tmp_path: Path) -> None:
        random.seed(5)
        expected = random.random()
        random.seed(5)
        self.open_and_do(tmp_path, random.random).close()
        assert random.random() == expected


class TestPackages:
    """Stand-ins for the packages, on a path of their own."""

    @pytest.fixture
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "packages"
        for name in ("wandb", "trackio"):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(FAKE_TRACKIO)
        monkeypatch.syspath_prepend(folder)
        return folder

    def test_there_is_one_for_every_name_of_the_setting(self) -> None:
        assert set(SERVICES) == set(get_args(TrackerName))
        assert len(SERVICES) == 5

    def test_one_that_is_missing_is_refused_with_the_line_that_installs_it(self) -> None:
        with pytest.raises(SettingsError, match=r"report_to: swanlab is not installed\n  -> pip install swanlab, or"):
            make_tracking(["swanlab"])

    def test_a_folder_of_its_name_is_not_the_package(self, installed: Path) -> None:
        (installed / "swanlab").mkdir()
        with pytest.raises(SettingsError, match="swanlab is not installed"):
            make_tracking(["swanlab"])

    def test_only_what_is_named_is_imported_and_nothing_heavy(self, installed: Path, tmp_path: Path) -> None:
        script = f"""
import json, sys
sys.path.insert(0, {str(installed)!r})
from pathlib import Path
from duiqi.journal.run import Run
from duiqi.journal.trackers.registry import SERVICES, make_tracking

heavy = {{"torch", "transformers", *SERVICES}}
tracking = make_tracking(["trackio"])
before = sorted(heavy & sys.modules.keys())
with Run.open({str(tmp_path / "run")!r}, stage="sft", settings={{}}, argv=[], tracking=tracking) as run:
    run.track(-1)
    run.metrics(1, {{"loss": 0.5}})
print(json.dumps([before, sorted(heavy & sys.modules.keys()), sys.modules["trackio"].told]))
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == [[], ["trackio"], [[1, {"train/loss": 0.5}]]]


FAKE_TRACKIO = """
told = []
class Run:
    def log(self, metrics, step): told.append((step, metrics))
    def finish(self): pass
def init(project, name, **options):
    print("* created", name)
    return Run()
"""

"""The page stands alone, shows what there is, and trusts nothing that a model wrote."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.reports.conftest import WriteRun

from duiqi.errors import RunError
from duiqi.journal.run import Run
from duiqi.reports.html import write_report

COMPARISONS: list[dict[str, Any]] = [
    {
        "prompt": "讲个<b>笑话</b>",
        "answers": [
            {"model": "base", "answer": "", "score": -1.0, "length": 0},
            {"model": "ppo@20", "answer": "<script>alert('笑')</script>", "score": 0.5, "length": 9},
        ],
    }
]


class Outline(HTMLParser):
    """Collects the tags of a page and checks that they are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "meta":
            assert self._open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def report(tmp_path: Path, *runs: Path, **options: Any) -> str:
    return write_report(runs, tmp_path / "out/report.html", **options).read_text(encoding="utf-8")


def test_the_page_is_balanced_and_loads_nothing(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("ppo"), comparisons=COMPARISONS)
    links = [
        value for _, attributes in Outline(page).tags for key, value in attributes.items() if key in ("src", "href")
    ]
    assert links
    assert all(link is not None and link.startswith("#") for link in links)
    assert not re.search(r"@import|url\(", page)


def test_what_a_model_wrote_is_text_and_never_markup(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("ppo"), comparisons=COMPARISONS, title="<i>mine</i>")
    assert Outline(page).count("script") == 1
    assert "&lt;script&gt;alert(&#x27;笑&#x27;)&lt;/script&gt;" in page
    assert "讲个&lt;b&gt;笑话&lt;/b&gt;" in page
    assert "<i>mine</i>" not in page


def test_empty_answers_are_shown_as_empty(tmp_path: Path, write_run: WriteRun) -> None:
    assert "∅ (empty)" in report(tmp_path, write_run("ppo"), comparisons=COMPARISONS)


def test_only_measured_metrics_are_drawn(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("ppo"))
    assert Outline(page).count("svg") == 2
    assert "KL from the reference" in page
    assert "Answers that end" not in page


def test_a_broken_value_is_marked_in_its_chart(tmp_path: Path, write_run: WriteRun) -> None:
    assert report(tmp_path, write_run("ppo")).count("✕") == 1


def test_runs_of_one_stage_share_their_charts_and_their_differences_come_first(
    tmp_path: Path, write_run: WriteRun
) -> None:
    page = report(tmp_path, write_run("slow"), write_run("fast", learning_rate=1e-3))
    assert Outline(page).count("svg") == 2
    table = page[page.index("Settings</summary>") :]
    assert table.index("learning_rate") < table.index("model_name_or_path")
    assert re.findall(r"></i>(\w+) training", page) == ["slow", "fast"]


def test_without_comparisons_runs_are_compared_on_the_prompts_they_share(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("sft", stage="sft"), write_run("ppo"))
    assert "The same prompts, answered by each model" in page
    assert "The same prompts" not in report(tmp_path, tmp_path / "ppo")


def test_the_summary_says_what_became_of_the_run(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("ppo"))
    assert '<strong class="better">0.8</strong>' in page
    assert "From base, on demo, 20 steps" in page
    assert "unfinished" not in page
    assert "unfinished" in report(tmp_path, write_run("killed", is_finished=False))


def test_settings_provenance_and_events_are_there(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("ppo"))
    for fact in ("duiqi ppo &#x27;a b.yaml&#x27;", "sha256 f00d", "小对", "finished", "transformers"):
        assert fact in page


def test_a_run_that_measured_nothing_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert "nothing was measured" in report(tmp_path, tmp_path)


def test_comparisons_of_another_shape_are_refused_with_the_right_one(tmp_path: Path, write_run: WriteRun) -> None:
    (tmp_path / "comparisons.json").write_text('[{"prompt": "p"}]')
    with pytest.raises(RunError, match=r'comparisons.json: these are not comparisons.*\n.*"prompt": ..., "answers"'):
        report(tmp_path, write_run("ppo"), comparisons=tmp_path / "comparisons.json")


def test_half_an_emoji_does_not_spoil_the_page(tmp_path: Path, write_run: WriteRun) -> None:
    comparisons = [{"prompt": "p", "answers": [{"model": "m", "answer": "好\ud83d"}]}]
    assert "好?" in report(tmp_path, write_run("ppo"), comparisons=comparisons)


def watched_run(tmp_path: Path) -> Path:
    """A run of PPO that was evaluated, saved, warned and stopped."""
    with Run.open(tmp_path / "ppo", stage="ppo", settings={"dataset": "demo"}, argv=[]) as run:
        for step, (kl, score, opinion) in {0: (0.0, 1.0, 0.5), 10: (1.5, 2.0, 0.7), 20: (4.0, 3.0, 0.1)}.items():
            run.metrics(step, {"eval_kl": kl, "eval_score": score, "eval_opinion": opinion})
            run.checkpoint_dir(step).mkdir(parents=True)
            run.event("checkpoint", step=step, best=step == 10)
        evidence = [{"prompt": "<b>q</b>", "answer": "", "score": 0.9, "length": 1}]
        shown = {"name": "shorter", "value": 0.3, "limit": 0.6, "text": "answers become short", "remedy": "raise it"}
        run.event("finding", step=20, action="stop", evidence=evidence, **shown)
        run.event("stopped_by_watch", step=20, name="shorter", best_step=10)
    return tmp_path / "ppo"


def test_what_the_watch_saw_is_shown_with_the_answers_that_show_it(tmp_path: Path) -> None:
    page = report(tmp_path, watched_run(tmp_path))
    Outline(page)
    assert "What the watch saw in ppo" in page
    assert "answers become short" in page
    assert "went back and ended" in page
    assert "&lt;b&gt;q&lt;/b&gt; → ∅" in re.sub(r"</?span[^>]*>", "", page)


def test_the_frontier_has_every_evaluation_and_marks_the_best(tmp_path: Path) -> None:
    page = report(tmp_path, watched_run(tmp_path))
    assert "Score against KL" in page
    assert "Second opinion against KL" in page
    assert page.count(">10 best<") == 2
    assert "Checkpoints on the disk: 0, 10, 20" in page


def test_a_run_without_a_watch_has_neither(tmp_path: Path, write_run: WriteRun) -> None:
    page = report(tmp_path, write_run("sft", stage="sft"))
    assert "What the watch saw" not in page
    assert "against KL" not in page

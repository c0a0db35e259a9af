"""Sampling: the same answers however often the making was cut short, and no other settings in the same file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.conftest import Workshop
from tests.curation.stand_in import read_rows, write_rows

import duiqi.curation.sample
from duiqi.curation.sample import sample_file
from duiqi.errors import DataError, Interrupted, SettingsError
from duiqi.serving.speaker import open_speaker
from duiqi.types import Sampling

SAMPLING = Sampling(max_new_tokens=8, seed=3)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    names = ["阿海", "小满", "老周", "小林", "阿青"]
    return write_rows(
        tmp_path / "prompts.jsonl", [{"instruction": f"{n}，你好吗？", "output": f"好{n}"} for n in names]
    )


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duiqi.curation.sample, "PROMPTS_AT_ONCE", 2)


def sample(workshop: Workshop, prompts: str, out: Path, num_answers: int = 3, **more: Any) -> list[dict[str, Any]]:
    sample_file(workshop.sft, prompts, str(out), num_answers=num_answers, sampling=SAMPLING, **more)
    return read_rows(out)


def test_every_prompt_gets_its_answers_in_order(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    rows = sample(workshop, prompts, tmp_path / "a.jsonl")
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["prompt"][-1]["content"][:2] for row in rows] == ["阿海", "小满", "老周", "小林", "阿青"]
    assert [row["reference"] for row in rows] == ["好阿海", "好小满", "好老周", "好小林", "好阿青"]
    assert {len(row["answers"]) for row in rows} == {3} == {len(row["finished"]) for row in rows}
    assert len({answer for row in rows for answer in row["answers"]}) > 5
    assert len({row["sampling"] for row in rows}) == 1


def test_an_answer_is_the_decoder_s_for_its_place(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    rows = sample(workshop, prompts, tmp_path / "a.jsonl", num_answers=2)
    speaker = open_speaker(workshop.sft)
    from duiqi.serving.files import read_conversations

    ids = [speaker.prompt_ids(example.prompt) for example in read_conversations(prompts, max_samples=None)]
    drawn = [rollout.answer for rollout in speaker.decoder.generate(ids + ids, SAMPLING, step=0)]
    assert [row["answers"][0] for row in rows] == drawn[:5]
    assert [row["answers"][1] for row in rows] == drawn[5:]


def test_the_first_answers_do_not_depend_on_how_many_are_asked_for(
    workshop: Workshop, prompts: str, tmp_path: Path
) -> None:
    few = sample(workshop, prompts, tmp_path / "few.jsonl", num_answers=2)
    many = sample(workshop, prompts, tmp_path / "many.jsonl", num_answers=5)
    assert [row["answers"] for row in few] == [row["answers"][:2] for row in many]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 5])
def test_cut_short_anywhere_it_goes_on_to_the_same_file(
    workshop: Workshop, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    sample(workshop, prompts, whole)
    draw = duiqi.curation.sample.draw_group
    written = 0

    def draw_some(*args: Any, **keywords: Any) -> Iterator[dict[str, Any]]:
        nonlocal written
        for row in draw(*args, **keywords):
            if written == cut:
                raise MemoryError
            written += 1
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(duiqi.curation.sample, "draw_group", draw_some)
        if cut < 5:
            with pytest.raises(MemoryError):
                sample(workshop, prompts, parts)
            assert not parts.exists()
            half = tmp_path / "parts.jsonl.making" / "rows.jsonl"
            half.write_bytes(
                half.read_bytes() + '{"row": 9, "answers": ["半'.encode()
            )  # killed in the middle of a line
    sample(workshop, prompts, parts)
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_file(workshop: Workshop, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "many.jsonl", [{"prompt": f"第{number}个问题：你好吗？"} for number in range(70)])
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    options = ["--num_answers", "4", "--max_new_tokens", "24", "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "duiqi", "data", "sample", workshop.sft, prompts, *options, "--output_file"]
    process = subprocess.Popen([*command, str(parts)], env=os.environ, stderr=subprocess.PIPE)
    rows = tmp_path / "parts.jsonl.making" / "rows.jsonl"
    while not (rows.exists() and rows.stat().st_size):
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not parts.exists()
    kept = len(rows.read_bytes().splitlines())
    sampling, here = Sampling(max_new_tokens=24), {"device": "cpu", "dtype": "float32"}
    report = sample_file(workshop.sft, prompts, str(parts), num_answers=4, sampling=sampling, **here)  # type: ignore[arg-type]
    sample_file(workshop.sft, prompts, str(whole), num_answers=4, sampling=sampling, **here)  # type: ignore[arg-type]
    assert parts.read_bytes() == whole.read_bytes()
    assert report.kept == kept > 0


@pytest.mark.usefixtures("small_groups")
def test_asked_to_stop_it_keeps_what_is_there_and_says_how_to_go_on(
    workshop: Workshop, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    sample(workshop, prompts, whole)
    draw = duiqi.curation.sample.draw_group

    def draw_and_stop(*args: Any, **keywords: Any) -> Iterator[dict[str, Any]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args, **keywords)

    monkeypatch.setattr(duiqi.curation.sample, "draw_group", draw_and_stop)
    with pytest.raises(Interrupted, match="2 of 5 prompts are answered and kept") as caught:
        sample(workshop, prompts, parts)
    monkeypatch.setattr(duiqi.curation.sample, "draw_group", draw)
    assert caught.value.exit_code == 0
    sample(workshop, prompts, parts)
    assert parts.read_bytes() == whole.read_bytes()


def test_another_model_at_the_same_place_is_refused(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    model = tmp_path / "sft"
    shutil.copytree(workshop.sft, model, ignore=shutil.ignore_patterns("checkpoints", "best", "last"))
    settings: dict[str, Any] = {"num_answers": 2, "sampling": SAMPLING}
    sample_file(str(model), prompts, str(tmp_path / "a.jsonl"), **settings)
    tensors = load_file(model / "adapter_model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, model / "adapter_model.safetensors")
    with pytest.raises(DataError, match=r"weights was '.*' and is '"):
        sample_file(str(model), prompts, str(tmp_path / "a.jsonl"), **settings)


def test_another_setting_is_refused_and_named(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    sample(workshop, prompts, out)
    with pytest.raises(DataError, match="begun with other settings: num_answers was 3 and is 4"):
        sample(workshop, prompts, out, num_answers=4)
    out.unlink()
    with pytest.raises(DataError, match="begun with other settings"):
        sample(workshop, prompts, out, num_answers=4)


def test_other_prompts_under_the_same_name_are_refused(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    sample(workshop, prompts, out)
    write_rows(Path(prompts), [{"prompt": "别的"}])
    with pytest.raises(DataError, match=r"prompts was '.*' and is '"):
        sample(workshop, prompts, out)


def test_a_finished_file_is_left_as_it_is(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    sample(workshop, prompts, out)
    before = out.stat().st_mtime_ns
    report = sample_file(workshop.sft, prompts, str(out), num_answers=3, sampling=SAMPLING)
    assert out.stat().st_mtime_ns == before
    assert (report.prompts, report.answers, report.kept) == (5, 15, 5)


def test_a_file_of_somebody_else_is_not_touched(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match="this file is already there"):
        sample(workshop, prompts, out)
    assert out.read_text() == "mine"


def test_the_same_answer_twice_is_marked_or_drawn_again(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    cold = Sampling(max_new_tokens=2, temperature=0.2, seed=1)
    marked, redrawn = tmp_path / "marked.jsonl", tmp_path / "redrawn.jsonl"
    sample_file(workshop.sft, prompts, str(marked), num_answers=6, sampling=cold)
    sample_file(workshop.sft, prompts, str(redrawn), num_answers=6, sampling=cold, duplicates="redraw")
    for row in read_rows(marked):
        said = [answer.strip() for answer in row["answers"]]
        assert len(set(said)) == 6 - len(row["duplicates"])
        assert all(said[place] in said[:place] for place in row["duplicates"])
    count = {out: sum(len(row["duplicates"]) for row in read_rows(out)) for out in (marked, redrawn)}
    assert count[redrawn] < count[marked]
    for one, other in zip(read_rows(marked), read_rows(redrawn), strict=True):
        kept = [place for place in range(6) if place not in one["duplicates"]]
        assert [one["answers"][place] for place in kept] == [other["answers"][place] for place in kept]


def test_several_answers_without_randomness_are_refused(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="temperature: 0 gives the same answer 2 times"):
        sample_file(workshop.sft, prompts, str(tmp_path / "a.jsonl"), num_answers=2, sampling=Sampling(temperature=0.0))


def test_drawing_a_single_answer_again_is_refused(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="duplicates: has no effect with num_answers=1"):
        sample(workshop, prompts, tmp_path / "a.jsonl", num_answers=1, duplicates="redraw")


def test_the_output_must_be_readable_again(workshop: Workshop, prompts: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found the extension '\.csv', expected \.jsonl or \.json"):
        sample(workshop, prompts, tmp_path / "a.csv")

"""Using a result: chat streams what generate gives, files keep their rows and their order."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop

from duiqi.errors import DataError, SettingsError
from duiqi.evaluation.text_metrics import can_measure, text_metrics
from duiqi.rollouts.standalone import open_reward_model
from duiqi.serving.chat import chat
from duiqi.serving.generate import generate_file
from duiqi.serving.score import score_examples, score_file
from duiqi.serving.speaker import open_speaker
from duiqi.types import Example, Message, Origin, Sampling

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return str(path)


def talk(workshop: Workshop, *lines: str) -> list[str]:
    out = io.StringIO()
    chat(workshop.sft, sampling=GREEDY, input_lines=lines, output=out)
    return out.getvalue().splitlines()[2:]


def test_chat_says_what_the_decoder_says_turn_by_turn(workshop: Workshop) -> None:
    speaker = open_speaker(workshop.sft)
    first = [Message("user", "你好")]
    answer = speaker.decoder.generate([speaker.prompt_ids(first)], GREEDY)[0].answer
    second = [*first, Message("assistant", answer), Message("user", "再见")]
    farewell = speaker.decoder.generate([speaker.prompt_ids(second)], GREEDY)[0].answer
    assert "\n".join(talk(workshop, "你好", "再见")) == f"{answer}\n{farewell}"


def test_clear_forgets_and_stop_leaves(workshop: Workshop) -> None:
    said = talk(workshop, "你好", "clear", "你好", "stop", "你好")
    separator = said.index("(a new conversation)")
    assert said[:separator] == said[separator + 1 :]


def test_the_prompt_of_chat_is_the_prompt_of_training(workshop: Workshop) -> None:
    speaker = open_speaker(workshop.sft)
    messages = [Message("user", "阿海，你好")]
    text = speaker.tokenizer.apply_chat_template(
        [{"role": "user", "content": "阿海，你好"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert speaker.prompt_ids(messages) == text


def test_generate_keeps_order_and_rows_without_a_reference(workshop: Workshop, tmp_path: Path) -> None:
    data = write_rows(
        tmp_path / "rows.jsonl",
        {"instruction": "一", "input": "", "output": "a"},
        {"instruction": "二", "input": "", "output": ""},
        {"instruction": "三个字", "input": "", "output": "c"},
    )
    out = tmp_path / "out.jsonl"
    assert generate_file(workshop.sft, data, str(out), sampling=GREEDY, batch_size=2).answers == 3
    got = rows(out)
    assert [row["prompt"] for row in got] == ["一", "二", "三个字"]
    assert [row["label"] for row in got] == ["a", "", "c"]
    alone = tmp_path / "alone.jsonl"
    generate_file(workshop.sft, data, str(alone), sampling=GREEDY, batch_size=1)
    assert rows(alone) == got


def test_sampled_answers_do_not_depend_on_the_batch(workshop: Workshop, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", *({"instruction": f"问题{i}", "output": "a"} for i in range(9)))
    sampling = Sampling(max_new_tokens=6, seed=5)
    for size in (2, 9):
        generate_file(workshop.sft, data, str(tmp_path / f"{size}.jsonl"), sampling=sampling, batch_size=size)
    assert rows(tmp_path / "2.jsonl") == rows(tmp_path / "9.jsonl")


def three_rows(place: Path) -> str:
    """Two rows with a label, and one without between them."""
    return write_rows(
        place / "rows.jsonl",
        {"instruction": "一", "output": "好的"},
        {"instruction": "二", "output": ""},
        {"instruction": "三个字", "output": "我很好"},
    )


def test_two_runs_with_one_seed_write_the_same_file(workshop: Workshop, tmp_path: Path) -> None:
    data, sampling = three_rows(tmp_path), Sampling(max_new_tokens=6, seed=5)
    for name in ("a", "b"):
        generate_file(workshop.sft, data, str(tmp_path / f"{name}.jsonl"), sampling=sampling, num_repeats=2)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.metrics.json").read_bytes() == (tmp_path / "b.metrics.json").read_bytes()


def test_a_repeat_is_a_run_with_the_next_seed(workshop: Workshop, tmp_path: Path) -> None:
    data = three_rows(tmp_path)
    repeated = tmp_path / "repeated.jsonl"
    generate_file(workshop.sft, data, str(repeated), sampling=Sampling(max_new_tokens=6, seed=5), num_repeats=3)
    got = rows(repeated)
    places = [(row.pop("repeat"), row["prompt"]) for row in got]
    assert places == [(repeat, prompt) for repeat in range(3) for prompt in ("一", "二", "三个字")]
    for repeat in range(3):
        alone = tmp_path / f"{repeat}.jsonl"
        generate_file(workshop.sft, data, str(alone), sampling=Sampling(max_new_tokens=6, seed=5 + repeat))
        assert rows(alone) == got[3 * repeat : 3 * repeat + 3]


def test_the_same_answers_three_times_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the same answers 3 times"):
        generate_file(workshop.sft, three_rows(tmp_path), str(tmp_path / "a.jsonl"), sampling=GREEDY, num_repeats=3)


def test_the_rates_are_of_what_was_written(workshop: Workshop, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=1, min_new_tokens=0, seed=1)
    out = tmp_path / "out.jsonl"
    report = generate_file(workshop.sft, three_rows(tmp_path), str(out), sampling=sampling, num_repeats=4)
    assert (report.prompts, report.answers) == (3, 12)
    assert report.empty == sum(not row["predict"].strip() for row in rows(out))
    assert report.lines()[0].startswith(f"{report.empty} of 12 answers are empty (")
    record = json.loads((tmp_path / "out.metrics.json").read_text(encoding="utf-8"))
    assert (record["answers"], record["empty_rate"], record["cut_rate"]) == (12, report.empty / 12, report.cut / 12)
    assert record["sampling"]["seed"] == 1


@pytest.mark.skipif(not can_measure(), reason="needs duiqi[metrics]")
def test_the_metrics_are_of_the_rows_with_a_label(workshop: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    sampling = Sampling(max_new_tokens=6, seed=5)
    report = generate_file(workshop.sft, three_rows(tmp_path), str(out), sampling=sampling, num_repeats=2)
    answers = [row["predict"] for row in rows(out)]
    apart = [text_metrics([answers[first], answers[first + 2]], ["好的", "我很好"]) for first in (0, 3)]
    assert list(report.metrics) == apart
    record = json.loads((tmp_path / "out.metrics.json").read_text(encoding="utf-8"))
    assert record["labelled"] == 2
    assert record["metrics"]["rouge_1"] == pytest.approx((apart[0].rouge_1 + apart[1].rouge_1) / 2)
    assert set(record["standard_deviation"]) == {"bleu_4", "rouge_1", "rouge_2", "rouge_l", "accuracy"}
    assert "mean and standard deviation over 2 repeats: bleu_4 " in report.lines()[1]


def test_without_the_packages_one_line_says_how_to_get_them(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duiqi.serving.generate.can_measure", lambda: False)
    report = generate_file(workshop.sft, three_rows(tmp_path), str(tmp_path / "out.jsonl"), sampling=GREEDY)
    assert report.lines()[1:] == ["BLEU and ROUGE against the labels of 2 prompts: pip install duiqi[metrics]"]
    unlabelled = write_rows(tmp_path / "prompts.jsonl", {"instruction": "一", "output": ""})
    report = generate_file(workshop.sft, unlabelled, str(tmp_path / "more.jsonl"), sampling=GREEDY)
    assert len(report.lines()) == 1


def test_an_output_file_is_never_written_over(workshop: Workshop, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"instruction": "一", "output": "a"})
    with pytest.raises(DataError, match="already there"):
        generate_file(workshop.sft, data, data, sampling=GREEDY)
    with pytest.raises(DataError, match="already there"):
        score_file(workshop.rm, data, data)


def test_scores_of_a_file_are_those_of_python(workshop: Workshop, tmp_path: Path) -> None:
    data = write_rows(
        tmp_path / "rows.jsonl",
        {"instruction": "你好", "input": "", "output": ["我很好。", "好"]},
        {"instruction": "再见", "input": "", "output": ["再见！", "走", "嗯"]},
    )
    out = tmp_path / "scores.jsonl"
    assert score_file(workshop.rm, data, str(out)) == 2
    pair, ranking = rows(out)
    assert {"chosen_score", "rejected_score"} <= set(pair)
    assert ranking["scores"][0] == ranking["chosen_score"]
    scorer = open_reward_model(workshop.rm, name="rm", cutoff_len=128)
    example = Example("ranking", (Message("user", "你好"),), ("我很好。", "好"), Origin("test"))
    again = score_examples(scorer, [example])[0]
    assert again["chosen_score"] == pytest.approx(pair["chosen_score"], abs=1e-5)


def test_a_row_of_one_answer_gets_a_score(workshop: Workshop, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"instruction": "你好", "input": "", "output": "我很好。"})
    score_file(workshop.rm, data, str(tmp_path / "scores.jsonl"))
    assert set(rows(tmp_path / "scores.jsonl")[0]) == {"prompt", "answer", "score"}


def test_max_samples_takes_the_first_rows(workshop: Workshop, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", *({"instruction": f"问题{i}", "output": "a"} for i in range(9)))
    report = generate_file(workshop.sft, data, str(tmp_path / "out.jsonl"), sampling=GREEDY, max_samples=2)
    assert report.prompts == 2
    assert [row["prompt"] for row in rows(tmp_path / "out.jsonl")] == ["问题0", "问题1"]

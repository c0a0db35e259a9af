"""Using a result: chat streams what generate gives, files keep their rows and their order."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop

from duiqi.errors import DataError
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
    assert generate_file(workshop.sft, data, str(out), sampling=GREEDY, batch_size=2) == 3
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
    assert generate_file(workshop.sft, data, str(tmp_path / "out.jsonl"), sampling=GREEDY, max_samples=2) == 2
    assert [row["prompt"] for row in rows(tmp_path / "out.jsonl")] == ["问题0", "问题1"]

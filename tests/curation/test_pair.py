"""Pairs and rankings out of answers, and the way there through people's labels; every output loads as a ranking."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop
from tests.curation.stand_in import read_rows, write_rows

import duiqi
from duiqi.cli.main import main
from duiqi.curation.labels import export_labels
from duiqi.curation.pair import PairReport, pair_file
from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec
from duiqi.errors import DataError, SettingsError
from duiqi.rollouts.scoring import Candidate
from duiqi.rollouts.standalone import open_reward_model
from duiqi.types import Example, Message

SYSTEM = {"role": "system", "content": "你是小满。"}


def sampled(*answers: str, **more: Any) -> dict[str, Any]:
    return {"prompt": [SYSTEM, {"role": "user", "content": "你好"}], "answers": list(answers), **more}


def pair(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[PairReport, list[dict[str, Any]]]:
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}.jsonl"
    report = pair_file(write_rows(tmp_path / "in.jsonl", rows), str(out), **settings)
    return report, read_rows(out)


def loaded(rows: list[dict[str, Any]], folder: Path) -> list[Example]:
    file = write_rows(folder / "again.jsonl", rows)
    return load_examples([DatasetSpec(file)], dataset_dir=".", need="ranking", seed=0).examples


class TestByReference:
    def test_the_reference_is_chosen_and_the_model_s_own_answer_rejected(self, tmp_path: Path) -> None:
        rows = [
            sampled("在", "忙", reference="你好呀"),
            sampled("同样 ", reference="同样"),
            sampled("x", reference="y"),
        ]
        report, made = pair(tmp_path, rows, by="reference")
        assert [(row["chosen"], row["rejected"]) for row in made] == [("你好呀", "在"), ("y", "x")]
        assert (report.prompts, report.pairs, report.without) == (3, 2, 1)
        assert report.dropped == {"identical to the reference": 1}
        example = loaded(made, tmp_path)[0]
        assert example.prompt == (Message("system", "你是小满。"), Message("user", "你好"))
        assert example.answers == ("你好呀", "在")

    def test_all_takes_every_other_answer(self, tmp_path: Path) -> None:
        _, made = pair(tmp_path, [sampled("一", "好", "二", "一", reference="好")], by="reference", take="all")
        assert [row["rejected"] for row in made] == ["一", "二"]

    def test_answers_of_generate_do_too(self, tmp_path: Path) -> None:
        _, made = pair(tmp_path, [{"prompt": "你好", "predict": "在", "label": "你好呀"}], by="reference")
        assert loaded(made, tmp_path)[0].answers == ("你好呀", "在")

    def test_rows_without_a_reference_are_refused_with_their_line(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"in\.jsonl:2: found no reference answer"):
            pair(tmp_path, [sampled("一", reference="好"), sampled("一")], by="reference")


class TestByScores:
    ROW = sampled("丙", "甲", "乙", "丁", scores=[0.2, 0.9, 0.6, 0.55])

    def test_best_against_worst_with_their_scores(self, tmp_path: Path) -> None:
        _, made = pair(tmp_path, [self.ROW], by="scores")
        assert {key: made[0][key] for key in ("chosen", "rejected", "chosen_score", "rejected_score")} == {
            "chosen": "甲",
            "rejected": "丙",
            "chosen_score": 0.9,
            "rejected_score": 0.2,
        }

    def test_the_whole_ranking(self, tmp_path: Path) -> None:
        report, made = pair(tmp_path, [self.ROW], by="scores", take="all")
        assert (made[0]["output"], made[0]["scores"]) == (["甲", "乙", "丁", "丙"], [0.9, 0.6, 0.55, 0.2])
        assert report.pairs == 6 == len(loaded(made, tmp_path)[0].pairs())

    def test_a_ranking_leaves_out_what_is_too_near_to_the_next_better(self, tmp_path: Path) -> None:
        report, made = pair(tmp_path, [self.ROW], by="scores", take="all", min_gap=0.1)
        assert made[0]["output"] == ["甲", "乙", "丙"]
        assert report.dropped == {"too near to the next better one": 1}

    def test_equal_scores_are_no_preference(self, tmp_path: Path) -> None:
        rows = [sampled("一", "二", scores=[0.5, 0.5]), self.ROW]
        report, made = pair(tmp_path, rows, by="scores")
        assert len(made) == 1
        assert (report.without, report.dropped) == (1, {"no better or worse than the others": 2})

    def test_a_gap_that_is_just_reached_counts(self, tmp_path: Path) -> None:
        assert len(pair(tmp_path, [sampled("一", "二", scores=[1.0, 0.5])], by="scores", min_gap=0.5)[1]) == 1
        with pytest.raises(DataError, match="no pair came out"):
            pair(tmp_path, [sampled("一", "二", scores=[1.0, 0.5])], by="scores", min_gap=0.501)

    def test_empty_cut_and_repeated_answers_are_left_out(self, tmp_path: Path) -> None:
        row = sampled(" ", "甲", "甲 ", "乙", "丙", scores=[9, 3, 3, 2, 1], finished=[True, True, True, True, False])
        report, made = pair(tmp_path, [row], by="scores", take="all", drop_unfinished=True)
        assert made[0]["output"] == ["甲", "乙"]
        assert report.dropped == {"empty": 1, "says the same as another answer": 1, "cut by the length limit": 1}

    def test_rows_without_scores_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="found no scores"):
            pair(tmp_path, [sampled("一", "二")], by="scores")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scores": [1.0]}, "scores: found a list of 1, expected a list of 2, one for each answer"),
            ({"scores": [1.0, "2"]}, "scores: found a list of 2, expected finite numbers"),
            ({"answers": []}, "answers: found a list of 0, expected a list of texts"),
            ({"prompt": [{"role": "me", "content": "x"}]}, "prompt: found an object with role, content, expected"),
        ],
    )
    def test_malformed_rows_are_refused_with_their_line(
        self, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(DataError, match=rf"in\.jsonl:2: {message}"):
            pair(tmp_path, [self.ROW, {**sampled("一", "二", scores=[1, 2]), **changes}], by="scores")


class TestByRewardModel:
    def test_a_function_of_one_s_own_decides(self, tmp_path: Path) -> None:
        file = tmp_path / "rule.py"
        file.write_text("def short(prompts, answers):\n    return [-len(answer) for answer in answers]\n")
        rows = [sampled("一二三", "一", "一二")]
        _, made = pair(tmp_path, rows, by="reward_model", reward_model=f"{file}:short", take="all")
        assert (made[0]["output"], made[0]["scores"]) == (["一", "一二", "一二三"], [-1.0, -2.0, -3.0])

    def test_a_reward_model_decides_as_it_scores(self, workshop: Workshop, tmp_path: Path) -> None:
        rows = [sampled("我很好。", "不好", "谢谢你，我很好。")]
        _, made = pair(tmp_path, rows, by="reward_model", reward_model=workshop.rm, take="all", device="cpu")
        scorer = open_reward_model(workshop.rm, name="rm", cutoff_len=2048, device="cpu")
        prompt = (Message("system", "你是小满。"), Message("user", "你好"))
        scores = {answer: scorer.score([Candidate(prompt, answer)]).item() for answer in rows[0]["answers"]}
        assert made[0]["output"] == sorted(scores, key=lambda answer: -scores[answer])
        assert made[0]["scores"] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)


class TestByLabels:
    def ranked(self, sheet: Path, ranks: dict[str, str], *, encoding: str = "utf-8-sig") -> None:
        """Fill in a label file as a person or a script would."""
        with sheet.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        with sheet.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows({**row, "rank": ranks.get(row["answer"], "")} for row in rows)

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "gb18030"])
    def test_sample_rank_and_train(self, workshop: Workshop, tmp_path: Path, encoding: str) -> None:
        """Sampled answers are exported, ranked by a script, imported, and a reward model learns from them."""
        sampled_file, sheet, out = tmp_path / "sampled.jsonl", tmp_path / "labels.csv", tmp_path / "ranked.jsonl"
        prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"阿海{n}，你好吗？"} for n in range(4)])
        options = ["--num_answers", "3", "--max_new_tokens", "6", "--device", "cpu"]
        assert main(["data", "sample", workshop.sft, prompts, "--output_file", str(sampled_file), *options]) == 0
        assert main(["data", "label", str(sampled_file), "--output_file", str(sheet)]) == 0
        answers = {answer for row in read_rows(sampled_file) for answer in row["answers"]}
        order = sorted(answers, key=len)
        self.ranked(sheet, {answer: str(place + 1) for place, answer in enumerate(order)}, encoding=encoding)
        words = ["data", "pair", str(sampled_file), "--by", "labels", "--labels", str(sheet), "--take", "all"]
        assert main([*words, "--output_file", str(out)]) == 0
        for row in read_rows(out):
            assert row["output"] == sorted(row["output"], key=order.index)
        settings = workshop.settings("rm", tmp_path / "rm", dataset=str(out), eval_dataset=None, max_steps=1)
        assert duiqi.run("rm", **settings).steps == 1

    def test_only_answers_with_a_rank_count_and_equal_ranks_are_a_tie(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "in.jsonl", [sampled("一", "二", "三"), sampled("四", "五")])
        sheet = tmp_path / "labels.csv"
        assert export_labels(file, str(sheet)) == 5
        self.ranked(sheet, {"一": "2", "三": "1", "四": "1", "五": "1"})
        report = pair_file(file, str(tmp_path / "out.jsonl"), by="labels", labels=str(sheet), take="all")
        (row,) = read_rows(tmp_path / "out.jsonl")
        assert (row["output"], row["scores"]) == (["三", "一"], [-1.0, -2.0])
        assert report.without == 1

    def test_the_order_shown_says_nothing_and_is_fixed_by_the_seed(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "in.jsonl", [sampled(*"一二三四五") for _ in range(20)])
        shown = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            export_labels(file, str(tmp_path / f"{name}.csv"), seed=seed)
            with (tmp_path / f"{name}.csv").open(encoding="utf-8-sig", newline="") as sheet:
                shown.append([row["answer"] for row in csv.DictReader(sheet)])
        assert shown[0] == shown[1] != shown[2]
        assert len({shown[0][start] for start in range(0, 100, 5)}) > 1

    def test_a_spreadsheet_takes_no_answer_for_a_formula(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "in.jsonl", [sampled("=1+1", "- a list", "text")])
        export_labels(file, str(tmp_path / "a.csv"))
        with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as sheet:
            assert sorted(row["answer"] for row in csv.DictReader(sheet)) == ["'- a list", "'=1+1", "text"]

    @pytest.mark.parametrize(
        ("ranks", "message"),
        [
            ({}, "no answer has a rank yet"),
            ({"一": "best"}, "labels.csv:2: rank: found 'best', expected 1 for the best"),
            ({"一": "0"}, "rank: found '0'"),
        ],
    )
    def test_what_is_no_rank_is_refused_with_its_line(
        self, tmp_path: Path, ranks: dict[str, str], message: str
    ) -> None:
        file = write_rows(tmp_path / "in.jsonl", [sampled("一", "二")])
        sheet = tmp_path / "labels.csv"
        export_labels(file, str(sheet), seed=1)
        self.ranked(sheet, ranks)
        with pytest.raises(DataError) as caught:
            pair_file(file, str(tmp_path / "out.jsonl"), by="labels", labels=str(sheet))
        assert message.removeprefix("labels.csv:2: ") in str(caught.value)

    def test_labels_of_other_answers_are_refused(self, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "in.jsonl", [sampled("一", "二")])
        sheet = tmp_path / "labels.csv"
        export_labels(file, str(sheet))
        self.ranked(sheet, {"一": "1", "二": "2"})
        write_rows(tmp_path / "in.jsonl", [sampled("一", "三")])
        with pytest.raises(DataError, match="1 of its answers are not in the file that is paired"):
            pair_file(file, str(tmp_path / "out.jsonl"), by="labels", labels=str(sheet))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "scores", "--batch_size", "4"], "--batch_size: has no effect with by=scores"),
        (["--by", "scores", "--device", "cpu"], "--device: has no effect with by=scores"),
        (["--by", "scores", "--reward_model", "x"], "reward_model: has no effect with by=scores"),
        (["--by", "reward_model"], "reward_model: required, but not given"),
        (["--by", "labels"], "labels: required, but not given"),
        (["--by", "scores", "--drop_unfinished"], "drop_unfinished: has no effect"),
        (["--by", "reference", "--min_gap", "1"], "min_gap: has no effect with by=reference"),
    ],
)
def test_settings_without_effect_or_missing_are_refused(
    tmp_path: Path, words: list[str], message: str, capsys: Any
) -> None:
    file = write_rows(tmp_path / "in.jsonl", [sampled("一", "二", scores=[1, 2])])
    assert main(["data", "pair", file, "--output_file", str(tmp_path / "o.jsonl"), *words]) == 2
    assert message in capsys.readouterr().err


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "in.jsonl", [sampled("一", "二", scores=[1, 2])])
    with pytest.raises(DataError, match="already there"):
        pair_file(file, file, by="scores")
    with pytest.raises(SettingsError):
        pair_file(file, str(tmp_path / "new.jsonl"), by="scores", labels="x")

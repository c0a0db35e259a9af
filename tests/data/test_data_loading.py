"""From names to examples: what a stage needs, caps, bad rows, fingerprints, and rows held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duiqi.data.hub import read_hub
from duiqi.data.loading import LoadedData, Need, load_examples, split_validation
from duiqi.data.registry import parse_dataset_spec
from duiqi.errors import DataError, UserError
from duiqi.types import Example, Message, Origin

Write = Callable[..., Path]
REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real"

DEMONSTRATIONS = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(20)]
RANKINGS = [{"instruction": f"r{i}", "output": ["good", "bad"]} for i in range(5)]


def load(dataset: str | Path, need: Need = "demonstration", **options: Any) -> LoadedData:
    options = {"seed": 0, "dataset_dir": "nowhere"} | options
    return load_examples(parse_dataset_spec(str(dataset)), need=need, **options)


def test_examples_know_their_file_and_line(write: Write) -> None:
    path = write("a.jsonl", DEMONSTRATIONS)
    assert load(path).examples[2] == Example(
        "demonstration", (Message("user", "q2"),), ("a2",), Origin(str(path), str(path), 3)
    )


def test_prompts_are_made_of_demonstrations_and_rankings_without_their_answers(write: Write) -> None:
    both = f"{write('a.json', DEMONSTRATIONS)},{write('b.json', RANKINGS)}"
    prompts = load(both, "prompt").examples
    assert len(prompts) == 25
    assert {(example.kind, example.answers) for example in prompts} == {("prompt", ())}
    assert [len(example.answers) for example in load(both, "conversation").examples] == [1] * 20 + [2] * 5


@pytest.mark.parametrize(
    ("need", "name", "message", "remedy"),
    [
        ("ranking", "a.json", "is in alpaca format .*, expected at least two answers per row", "sft stage"),
        ("demonstration", "b.json", "is in comparison format .*, expected one answer per row", "rm and dpo stages"),
        ("demonstration", "c.txt", "is in text format .*, expected one answer per row", "pretrain"),
        ("text", "a.json", "is in alpaca format .*, expected plain text", "sft stage"),
        ("prompt", "c.txt", "is in text format .*, expected prompts", "prompt or an instruction"),
    ],
)
def test_data_of_the_wrong_kind_is_refused_with_a_remedy(
    write: Write, need: Need, name: str, message: str, remedy: str
) -> None:
    write("a.json", DEMONSTRATIONS)
    write("b.json", RANKINGS)
    directory = write("c.txt", "some text\n").parent
    with pytest.raises(DataError, match=message) as caught:
        load(directory / name, need)
    assert remedy in (caught.value.remedy or "")


def test_text_is_loaded_for_pretraining(write: Write) -> None:
    examples = load(write("c.txt", "一\n二\n"), "text").examples
    assert [(example.kind, example.answers) for example in examples] == [("text", ("一",)), ("text", ("二",))]


def test_a_cap_samples_by_seed_and_keeps_the_order(write: Write) -> None:
    path = write("a.json", DEMONSTRATIONS)
    lines = [example.origin.line for example in load(f"{path}@8").examples]
    assert len(lines) == 8
    assert lines == sorted(lines)
    assert lines == [example.origin.line for example in load(f"{path}@8").examples]
    assert lines != [example.origin.line for example in load(f"{path}@8", seed=1).examples]


def test_the_smallest_cap_counts_for_each_dataset(write: Write) -> None:
    write("a.json", DEMONSTRATIONS)
    write("b.json", DEMONSTRATIONS)
    entries = {name: {"file_name": f"{name}.json", "num_samples": 6} for name in "ab"}
    directory = write("dataset_info.json", entries).parent
    report = load("a@3,b", dataset_dir=directory, max_samples=10).report
    assert [(dataset.rows, dataset.used) for dataset in report.datasets] == [(20, 3), (20, 6)]
    assert report.lines()[0] == "a: alpaca format (instruction, input, output, history), 3 of 20 rows"


def test_the_registry_gives_columns_and_a_system_message(write: Write) -> None:
    write("f.jsonl", [{"q": "question", "a": "answer"}])
    entry = {"file_name": "f.jsonl", "columns": {"prompt": "q", "response": "a"}, "system": "be kind"}
    directory = write("dataset_info.json", {"f": entry}).parent
    (example,) = load("f", dataset_dir=directory).examples
    assert example.prompt == (Message("system", "be kind"), Message("user", "question"))
    assert example.answers == ("answer",)


def test_columns_that_are_not_there_are_refused(write: Write) -> None:
    write("f.jsonl", [{"question": "q"}])
    entry = {"file_name": "f.jsonl", "columns": {"prompt": "q", "response": "a"}}
    directory = write("dataset_info.json", {"f": entry}).parent
    with pytest.raises(DataError, match=r"found the columns question, expected those that .* names: q, a"):
        load("f", dataset_dir=directory)


def test_a_registry_that_promises_rankings_is_held_to_it(write: Write) -> None:
    write("f.jsonl", DEMONSTRATIONS)
    directory = write("dataset_info.json", {"f": {"file_name": "f.jsonl", "ranking": True}}).parent
    with pytest.raises(DataError, match="says ranking, but f is in alpaca format"):
        load("f", dataset_dir=directory)


def test_a_changed_file_is_told_from_its_sha1(write: Write) -> None:
    path = write("f.jsonl", DEMONSTRATIONS)
    entries = {
        "right": {"file_name": "f.jsonl", "file_sha1": hashlib.sha1(path.read_bytes()).hexdigest()},
        "wrong": {"file_name": "f.jsonl", "file_sha1": "0" * 40},
    }
    directory = write("dataset_info.json", entries).parent
    right, wrong = load("right,wrong", dataset_dir=directory).report.datasets
    assert right.notes == ()
    assert f"warning: {path} has sha1 " in wrong.lines()[1]
    assert wrong.lines()[1].endswith("but dataset_info.json says " + "0" * 40)


def test_a_folder_has_no_sha1_to_check_and_that_is_said(write: Write) -> None:
    folder = write("part.jsonl", DEMONSTRATIONS).parent / "folder"
    folder.mkdir()
    (folder.parent / "part.jsonl").rename(folder / "part.jsonl")
    entries = {"f": {"file_name": "folder", "file_sha1": "0" * 40}}
    (report,) = load("f", dataset_dir=write("dataset_info.json", entries).parent).report.datasets
    assert f"{folder} is a folder" in report.lines()[1]
    assert "cannot be checked" in report.lines()[1]


BAD_ROWS = [{"instruction": "q", "output": 1}, {"instruction": "", "output": "a"}, *DEMONSTRATIONS]


def test_bad_rows_stop_the_load_and_the_message_counts_them(write: Write) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: output: found the value 1, expected text") as caught:
        load(write("a.jsonl", BAD_ROWS), max_bad_rows=1)
    assert "set max_bad_rows: 2 to skip the 2 malformed rows" in (caught.value.remedy or "")


def test_bad_rows_within_the_limit_are_collected(write: Write) -> None:
    data = load(write("a.jsonl", BAD_ROWS), max_bad_rows=2)
    assert len(data.examples) == 20
    assert [(bad.line, bad.row) for bad in data.report.rejects] == [(1, BAD_ROWS[0]), (2, BAD_ROWS[1])]
    assert "malformed rows skipped: 2, the first at" in data.report.lines()[-1]


def test_a_row_without_an_answer_is_bad_for_sft_and_good_for_ppo(write: Write) -> None:
    path = write("a.jsonl", [{"instruction": "q", "output": ""}, *DEMONSTRATIONS])
    with pytest.raises(DataError, match=r"a\.jsonl:1: found no answer, expected one answer per row to learn from"):
        load(path)
    assert len(load(path, "prompt").examples) == 21


HC3 = [
    {"question": "q1", "human_answers": ["h"], "chatgpt_answers": ["c1", "c2"]},
    {"question": "q2", "human_answers": ["h"], "chatgpt_answers": []},
    {"question": "q3", "human_answers": ["h1", "h2"], "chatgpt_answers": ["c"]},
]


def test_a_row_may_give_several_examples_or_none_and_the_report_says_so(write: Write) -> None:
    path = write("hc3.jsonl", HC3)
    loaded = load(path)
    assert [example.answers for example in loaded.examples] == [("c1",), ("c2",), ("c",)]
    assert loaded.report.lines() == [
        f"{path}: hc3 format (question, human_answers, chatgpt_answers), 3 examples of 3 rows",
        f"rows of {path} left out, because ChatGPT gave no answer: 1",
    ]
    assert [example.prompt[0].content for example in load(path, "prompt").examples] == ["q1", "q3"]


def test_a_format_in_brackets_reads_the_same_rows_otherwise(write: Write) -> None:
    path = write("hc3.jsonl", HC3)
    pairs = load(f"{path}[hc3_prefer_human]", "ranking").examples
    assert [example.pairs() for example in pairs] == [[("h", "c1"), ("h", "c2")], [("h1", "c"), ("h2", "c")]]
    with pytest.raises(DataError, match="is in hc3 format"):
        load(path, "ranking")


def test_messages_that_name_their_parents_become_trees(write: Write) -> None:
    def message(name: str, parent: str | None, text: str, rank: int | None = None) -> dict[str, Any]:
        role = "assistant" if text.startswith("a") else "prompter"
        return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank}

    rows = [
        message("1", None, "q1"),
        message("2", "1", "a worse", 1),
        message("3", "1", "a better", 0),
        message("4", "3", "q2"),
        message("6", "lost", "a nowhere"),
        message("5", "4", "a last"),
        message("7", None, "q nobody answered"),
        message("8", "9", "q round"),
        message("9", "8", "a round"),
    ]
    path = write("oasst.jsonl", rows)
    with pytest.raises(DataError, match=r"oasst\.jsonl:5: the message lost, which comes before it, is not in the data"):
        load(path, "ranking")
    (ranked,) = load(path, "ranking", max_bad_rows=3).examples
    assert (ranked.answers, ranked.origin.line) == (("a better", "a worse"), 1)
    (told,) = load(path, max_bad_rows=3).examples
    assert [message.content for message in told.prompt] == ["q1", "a better", "q2"]
    assert told.answers == ("a last",)
    asked = load(path, "prompt", max_bad_rows=3)
    assert len(asked.examples) == 2
    assert [bad.line for bad in asked.report.rejects] == [5, 8, 9]


def test_rows_that_tell_likes_are_for_their_own_loss(write: Write) -> None:
    path = write("kto.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    assert [example.liked for example in load(path, "feedback").examples] == [True]
    for need in ("ranking", "demonstration"):
        with pytest.raises(DataError, match="is in feedback format") as caught:
            load(path, need)
        assert "pref_loss: kto" in (caught.value.remedy or "")
    with pytest.raises(DataError, match="expected one answer per row and whether it was liked") as caught:
        load(write("pairs.jsonl", RANKINGS), "feedback")
    assert "kto_pair" in (caught.value.remedy or "")


def test_fingerprints_name_every_file_of_a_folder(write: Write) -> None:
    write("set/b.jsonl", RANKINGS)
    folder = write("set/a.jsonl", RANKINGS[:2]).parent
    files = load(folder, "ranking").report.files
    assert [(Path(file.file).name, file.rows) for file in files] == [("a.jsonl", 2), ("b.jsonl", 5)]
    assert files[0].sha256 == hashlib.sha256((folder / "a.jsonl").read_bytes()).hexdigest()


def test_parquet_rows_are_rows_like_any_other(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(RANKINGS).to_parquet(tmp_path / "a.parquet")
    assert [example.answers for example in load(tmp_path / "a.parquet", "ranking").examples] == [("good", "bad")] * 5


def test_without_the_datasets_package_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("duiqi.data.hub.importlib.import_module", missing)
    with pytest.raises(UserError, match=r"pip install duiqi\[hub\]"):
        read_hub("owner/name")


def test_a_part_of_a_hub_dataset_is_asked_for_by_its_names(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    asked: list[tuple[Any, ...]] = []

    class Datasets:
        @staticmethod
        def load_dataset(*names: str | None, **part: str | None) -> list[dict[str, str]]:
            asked.append((*names, *sorted(part.items())))
            return [{"content": "print()"}]

    monkeypatch.setattr("duiqi.data.hub.importlib.import_module", lambda _: Datasets)
    entry = {"hf_hub_url": "owner/code", "subset": "zh", "folder": "python", "columns": {"prompt": "content"}}
    directory = write("dataset_info.json", {"code": entry}).parent
    (example,) = load("code", "text", dataset_dir=directory).examples
    assert (example.answers, example.origin.file) == (("print()",), "hub:owner/code")
    assert asked == [("owner/code", "zh", ("data_dir", "python"), ("split", "train"))]


def examples_of(prompts: list[str]) -> list[Example]:
    return [Example("prompt", (Message("user", text),), (), Origin("set", line=i)) for i, text in enumerate(prompts)]


@pytest.mark.parametrize(("val_size", "held_out"), [(0, 0), (0.1, 2), (0.01, 1), (5, 5), (19, 19)])
def test_validation_is_a_share_or_a_count_in_order(val_size: float, held_out: int) -> None:
    examples = examples_of([str(i) for i in range(20)])
    train, validation = split_validation(examples, val_size, seed=0)
    assert len(validation) == held_out
    assert sorted(train + validation, key=lambda example: example.origin.line) == examples
    assert [e.origin.line for e in validation] == sorted(e.origin.line for e in validation)


def test_a_prompt_never_stands_on_both_sides() -> None:
    examples = examples_of([str(i // 3) for i in range(30)])
    train, validation = split_validation(examples, 0.2, seed=3)
    assert len(validation) == 6
    assert not {example.prompt for example in train} & {example.prompt for example in validation}


def test_validation_by_another_seed_is_another_one() -> None:
    examples = examples_of([str(i) for i in range(50)])
    assert split_validation(examples, 5, seed=0) == split_validation(examples, 5, seed=0)
    assert split_validation(examples, 5, seed=0) != split_validation(examples, 5, seed=1)


@pytest.mark.parametrize("val_size", [20, 100])
def test_holding_out_everything_is_refused(val_size: float) -> None:
    with pytest.raises(DataError, match="cannot be held out"):
        split_validation(examples_of([str(i) for i in range(20)]), val_size, seed=0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared real data is not here")
@pytest.mark.parametrize(
    ("name", "need", "rows"),
    [
        ("oaast_sft_zh.json", "demonstration", 689),
        ("oaast_rm_zh.json", "ranking", 775),
        ("alpaca_zh_demo.json", "prompt", 1000),
    ],
)
def test_real_files_load_whole(name: str, need: Need, rows: int) -> None:
    assert len(load(REAL / name, need).examples) == rows

"""The commands of `duiqi data` that look at data: what they print, write, refuse, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.inspection.tokenizers_to_try import build

from duiqi.cli.arguments import parse
from duiqi.cli.looking_commands import LOOKING_COMMANDS
from duiqi.cli.main import main
from duiqi.cli.options import CONFIGS, words_of
from duiqi.settings.resolve import build as settle

PAIRS = [
    {"prompt": f"第{number}个问题是什么？", "chosen": f"第{number}个回答，比较长一点。", "rejected": f"回答{number}"}
    for number in range(20)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., str]:
    def write(**spoilt: Any) -> str:
        rows = [dict(row) for row in PAIRS]
        rows[6] |= spoilt
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def model(tmp_path: Path) -> str:
    build().save_pretrained(tmp_path / "tiny-chat")
    return str(tmp_path / "tiny-chat")


@pytest.mark.parametrize("name", LOOKING_COMMANDS)
def test_the_example_of_a_command_settles(name: str) -> None:
    words = LOOKING_COMMANDS[name].example.split()[1:]
    assert " ".join(words[:2]) == name
    arguments = parse([name, *words[2:]], words_of(name))
    settle(CONFIGS[name], arguments.named("dataset"), command=name)


def test_a_check_of_texts_imports_no_torch(pairs: Callable[..., str]) -> None:
    code = (
        "import sys; from duiqi.cli.main import main; main(['data', 'check', sys.argv[1]])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, pairs()], check=True, capture_output=True)


def test_a_check_ends_with_0_unless_there_are_errors(pairs: Callable[..., str], capsys: Any) -> None:
    assert main(["data", "check", pairs()]) == 0
    assert "20 rows, 1 warning" in capsys.readouterr().out  # the better answer is always the longer one
    assert main(["data", "check", pairs(rejected=PAIRS[6]["chosen"])]) == 2
    seen = capsys.readouterr()
    assert "chosen and rejected are the same text" in seen.out
    assert f"{pairs()}:7" in seen.out
    assert "20 rows, 1 error\n" in seen.err
    assert "Traceback" not in seen.err


def test_a_strict_check_ends_with_2_for_warnings_too(pairs: Callable[..., str]) -> None:
    assert main(["data", "check", pairs(), "--strict", "true"]) == 2
    assert main(["data", "check", pairs(), "--strict", "false"]) == 0


def test_a_check_writes_its_report_and_replaces_it_only_when_told(
    pairs: Callable[..., str], tmp_path: Path, capsys: Any
) -> None:
    report = tmp_path / "out" / "report.json"
    words = ["data", "check", pairs(chosen="\ufffd" * 3), "--output_file", str(report)]
    assert main(words) == 0
    told = json.loads(report.read_text(encoding="utf-8"))
    assert [place["line"] for found in told["findings"] if found["kind"] == "replacement_character"
            for place in found["places"]] == [7]  # fmt: skip
    capsys.readouterr()
    assert main(words) == 2
    assert "already there" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_a_check_through_a_tokenizer_answers_the_questions_to_it(
    pairs: Callable[..., str], model: str, capsys: Any
) -> None:
    assert main(["data", "check", pairs(), "--model_name_or_path", model, "--cutoff_len", "64"]) == 0
    text = capsys.readouterr().out
    assert "an answer ends with <|im_end|> (token 2), and it is learned" in " ".join(text.split())
    assert "what cutoff_len cuts" in text


def test_a_run_brings_its_own_template(workshop: Any, capsys: Any) -> None:
    words = ["--dataset_dir", workshop.data, "--model_name_or_path", workshop.sft]
    assert main(["data", "check", "rm", "--eval_dataset", "rm_heldout", *words]) in (0, 2)
    assert "is a prompt the same in every stage?" in capsys.readouterr().out
    assert main(["data", "show", "sft", "--rows", "2", *words]) == 0
    assert "⟦" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "FILE", "--template", "zh_qa"], "--template: has no effect without a tokenizer"),
        (["check", "FILE", "--overwrite"], "overwrite: there is no output_file to replace"),
        (["show", "FILE", "--stage", "rm"], "--stage: has no effect without a tokenizer"),
        (["show", "FILE", "--rows", "3", "--num_rows", "2"], "--num_rows: --rows names the rows already"),
        (["show", "FILE", "--lines", "3", "--rows", "3"], "--rows: --lines names the rows already"),
        (["show", "FILE", "--lines", "99"], "lines: no row begins at line '99'"),
        (["show", "FILE", "--rows", "99"], "rows: '99' names no row; there are 20"),
        (["stats", "FILE", "--trust_remote_code"], "--trust_remote_code: has no effect without a tokenizer"),
        (["convert", "FILE"], "output_file: required, but not given"),
        (["convert", "FILE", "--output_file", "FILE"], "FILE: this file is already there"),
        (["convert", "FILE", "--output_file", "new.jsonl", "--to", "text"], "FILE:1: found a ranking, and text rows"),
        (["split", "FILE", "--output_dir", "parts", "--parts", "1,x"], "parts: '1,x' does not say how to share"),
        (["split", "FILE", "--output_dir", "parts", "--names", "a,b"], "names: 'a,b' does not name 3 parts"),
        (["check", "nowhere.json"], "dataset: nowhere.json: no dataset and no file is named"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], message: str, pairs: Callable[..., str], capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = pairs()
    assert main(["data", *(file if word == "FILE" else word for word in words)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message.replace('FILE', file)}")
    assert not (tmp_path / "new.jsonl").exists()
    assert not (tmp_path / "parts").exists()


def test_malformed_rows_stop_what_writes_rows(pairs: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "convert", pairs(chosen=7), "--output_file", str(tmp_path / "new.jsonl")]) == 2
    seen = capsys.readouterr().err
    assert f"{pairs()}:7: " in seen
    assert "duiqi data check lists them all" in seen


def test_convert_and_split(pairs: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    assert main(["data", "convert", pairs(), "--output_file", str(tmp_path / "new.jsonl"), "--to", "alpaca"]) == 0
    assert capsys.readouterr().out.endswith("20 rows written to " + str(tmp_path / "new.jsonl") + " in alpaca format\n")
    assert main(["data", "split", pairs(), "--output_dir", str(tmp_path / "parts"), "--parts", "2,0,8"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/parts/sft.jsonl: 4 rows, 4 prompts, preference format",
        "rm: no rows, and no file",
        f"{tmp_path}/parts/ppo.jsonl: 16 rows, 16 prompts, preference format",
    ]
    rows = [json.loads(line) for part in ("sft", "ppo") for line in (tmp_path / "parts" / f"{part}.jsonl").open()]
    assert sorted(row["chosen"] for row in rows) == sorted(row["chosen"] for row in PAIRS)


def test_show_without_a_tokenizer(pairs: Callable[..., str], capsys: Any) -> None:
    assert main(["data", "show", pairs(), "--lines", "7"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith(f"── row 7, ranking, {pairs()}:7 ")
    assert "   rejected: ⟦回答6⟧  (3 characters)" in text
    assert "\x1b" not in text


def test_stats_as_text_and_as_json(pairs: Callable[..., str], model: str, capsys: Any) -> None:
    assert main(["data", "stats", pairs()]) == 0
    assert "rows      20: 20 ranking" in capsys.readouterr().out
    assert main(["data", "stats", pairs(), "--json", "--model_name_or_path", model]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unit"] == "tokens"
    assert told["answer_lengths"]["most"] == len(str(PAIRS[10]["chosen"]).encode())

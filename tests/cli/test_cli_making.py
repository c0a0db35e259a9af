"""What the commands that make data hand to the rooms below."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from duiqi.cli.main import main
from duiqi.curation.bureau import Made
from duiqi.curation.crew import Effort
from duiqi.curation.spending import Caps, Prices
from duiqi.errors import RunError
from duiqi.types import Sampling

KEY = "sk-not-to-be-seen"


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that the work of the last command was given; a judge and a translator fail."""
    seen: dict[str, Any] = {}

    def put(path: str, result: Any) -> None:
        name, attribute = path.split(":")

        def work(*args: Any, **keywords: Any) -> Any:
            seen.clear()
            seen.update(keywords, args=args)
            return result

        module = types.ModuleType(name)
        setattr(module, attribute, work)
        monkeypatch.setitem(sys.modules, name, module)

    report = types.SimpleNamespace(lines=lambda: ["told"], told=lambda: ["told"])
    made = Made(["2 of 3 rows"], RunError("1 of 3 rows are missing", where="out.jsonl", remedy="again"))
    put("duiqi.curation.sample:sample_file", report)
    put("duiqi.curation.dialogue:dialogue_file", report)
    put("duiqi.curation.judge:judge_file", made)
    put("duiqi.curation.translate:translate_file", made)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return seen


def test_sampling_is_random_unless_it_is_told_otherwise(handed: dict[str, Any], capsys: Any) -> None:
    assert main(["data", "sample", "runs/sft", "p.json", "--output_file", "o.jsonl", "--seed", "5"]) == 0
    assert handed["args"] == ("runs/sft", "p.json", "o.jsonl")
    assert handed["sampling"] == Sampling(max_new_tokens=256, temperature=1.0, seed=5)
    assert (handed["num_answers"], handed["duplicates"]) == (4, "mark")
    assert capsys.readouterr().out == "told\nwritten to o.jsonl\n"


def test_a_judge_is_opened_from_the_environment(handed: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    words = ["data", "judge", "a.jsonl", "--output_file", "o.jsonl", "--model", "m", "--cache_dir", str(tmp_path)]
    words += ["--concurrency", "3", "--max_retries", "1", "--max_cost", "2.5", "--prompt_price", "1", "--timeout", "9"]
    assert main(words) == 2
    bureau = handed["bureau"]
    assert (bureau.endpoint.base_url, bureau.endpoint.api_key) == ("http://127.0.0.1:8000/v1", KEY)
    assert bureau.endpoint.timeout_seconds == 9
    assert bureau.parameters == {"temperature": 0.0, "max_tokens": 1024}
    assert bureau.caps == Caps(None, 2.5, Prices(1.0, 0.0))
    assert bureau.effort == Effort(concurrency=3, max_retries=1)
    assert bureau.paid.folder == tmp_path
    seen = capsys.readouterr()
    assert seen.out.startswith("2 of 3 rows\n")
    assert seen.err == "error: out.jsonl: 1 of 3 rows are missing\n  -> again\n"


def test_a_translation_may_be_as_long_as_the_endpoint_allows(handed: dict[str, Any], capsys: Any) -> None:
    words = ["data", "translate", "a.json", "--output_file", "o.json", "--model", "m", "--to", "zh"]
    assert main([*words, "--instruction", "口语化、活泼一点"]) == 2
    assert handed["bureau"].parameters == {"temperature": 0.0}
    assert (handed["to"], handed["instruction"], handed["fields"]) == ("zh", "口语化、活泼一点", None)
    assert KEY not in capsys.readouterr().err


def test_a_key_on_the_command_line_is_no_setting(handed: dict[str, Any], capsys: Any) -> None:
    words = ["data", "judge", "a.jsonl", "--output_file", "o.jsonl", "--model", "m", "--api_key", KEY]
    assert main(words) == 2
    assert "--api_key: unknown setting" in capsys.readouterr().err
    assert handed == {}


def test_a_cap_on_the_cost_without_prices_is_refused(handed: dict[str, Any], capsys: Any) -> None:
    words = ["data", "judge", "a.jsonl", "--output_file", "o.jsonl", "--model", "m", "--max_cost", "1"]
    assert main(words) == 2
    assert "max_cost: cannot be kept without prices" in capsys.readouterr().err
    assert handed == {}


def test_dialogue(handed: dict[str, Any]) -> None:
    assert main(["data", "dialogue", "s.txt", "--output_file", "o.jsonl", "--character", "小满", "overlap=2"]) == 0
    assert handed["args"] == ("s.txt", "o.jsonl")
    assert (handed["window_characters"], handed["sample_characters"], handed["overlap"]) == (128, 384, 2)
    assert (handed["character"], handed["min_characters"], handed["max_stopword_share"]) == ("小满", 6, 1.0)

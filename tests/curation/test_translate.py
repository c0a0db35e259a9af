"""Translation: the shape of rows stays, code and addresses too, and an interruption loses and doubles nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curation.stand_in import KEY, Body, Mishap, StandIn, read_rows, stand_in, write_rows

from duiqi.cli.main import main
from duiqi.curation.crew import Malformed
from duiqi.curation.translate import masked, needs_translation
from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec

Named = Callable[[StandIn], None]


def inside(body: Body) -> str:
    text: str = body["messages"][1]["content"]
    return text.removeprefix("<text>\n").removesuffix("\n</text>")


def translated(body: Body) -> str:
    return f"译〔{inside(body)}〕"


def translate(tmp_path: Path, rows: list[dict[str, Any]], *words: str) -> tuple[int, list[dict[str, Any]]]:
    out = tmp_path / "out.jsonl"
    file = write_rows(tmp_path / "in.jsonl", rows)
    status = main(["data", "translate", file, "--to", "zh", "--model", "m", "--output_file", str(out), *words])
    return status, read_rows(out) if out.exists() else []


def test_every_format_keeps_its_shape(tmp_path: Path, named: Named) -> None:
    rows = [
        {"instruction": "Say hi", "input": "", "output": "Hello!", "history": [["One?", "Two."]], "id": "row one"},
        {"prompt": "Who?", "chosen": "Me.", "rejected": "You.", "margin": 0.5},
        {"instruction": "Rank", "output": ["good one", "bad one"]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hey"}], "source": "web"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hey"}]},
    ]
    with stand_in(translated) as server:
        named(server)
        status, got = translate(tmp_path, rows)
    assert status == 0
    assert got[0] == {
        "instruction": "译〔Say hi〕",
        "input": "",
        "output": "译〔Hello!〕",
        "history": [["译〔One?〕", "译〔Two.〕"]],
        "id": "row one",
    }
    assert list(got[0]) == list(rows[0])
    assert got[1] == {"prompt": "译〔Who?〕", "chosen": "译〔Me.〕", "rejected": "译〔You.〕", "margin": 0.5}
    assert got[2] == {"instruction": "译〔Rank〕", "output": ["译〔good one〕", "译〔bad one〕"]}
    roles = [{"role": "user", "content": "译〔Hi〕"}, {"role": "assistant", "content": "译〔Hey〕"}]
    assert got[3] == {"messages": roles, "source": "web"}
    assert got[4]["conversations"] == [{"from": "human", "value": "译〔Hi〕"}, {"from": "gpt", "value": "译〔Hey〕"}]
    assert sum(inside(body) == "Hi" for body in server.bodies) == 1  # the same text is paid once
    file = tmp_path / "prefs.jsonl"
    write_rows(file, got[1:2])
    assert load_examples([DatasetSpec(str(file))], dataset_dir=".", need="ranking", seed=0).examples[0].answers == (
        "译〔Me.〕",
        "译〔You.〕",
    )


def test_code_addresses_and_placeholders_come_through_untouched(tmp_path: Path, named: Named) -> None:
    code = "```python\nprint('hello world')  # say it\n```"
    text = f"Run `make test` first, see https://a.cn/x?y=1.\n{code}\nI am [NAME], write to me@a.cn."
    with stand_in(lambda body: translated(body).upper()) as server:
        named(server)
        _, got = translate(tmp_path, [{"text": text}])
    for part in (code, "`make test`", "https://a.cn/x?y=1", "[NAME]", "me@a.cn"):
        assert part in got[0]["text"]
        assert part not in inside(server.bodies[0])
    assert "FIRST, SEE" in got[0]["text"]


def test_what_ends_a_sentence_is_no_part_of_an_address() -> None:
    hidden = masked("See https://a.cn/x?y=1. Or (http://b.cn), me@a.cn! 看https://c.cn/路。")
    assert hidden.kept == ("https://a.cn/x?y=1", "http://b.cn", "me@a.cn", "https://c.cn/")
    assert hidden.text == "See ⟦1⟧. Or (⟦2⟧), ⟦3⟧! 看⟦4⟧路。"


def test_what_needs_no_translation_is_not_asked_about(tmp_path: Path, named: Named, capsys: Any) -> None:
    texts = [
        "",
        "  ",
        "https://a.cn/x",
        "```\nprint(1)\n```",
        "42 + 1 = 43",
        "!?",
        "已经是中文了",
        "用 Python 写 print",
    ]
    with stand_in(translated) as server:
        named(server)
        status, got = translate(tmp_path, [{"text": text} for text in texts])
    assert status == 0
    assert [row["text"] for row in got] == texts
    assert server.bodies == []
    assert "8 of 8 texts needed no translation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "zh", "en"),
    [
        ("Hello", True, False),
        ("你好", False, True),
        ("こんにちは、世界", True, True),
        ("été", True, False),
        ("The word 道 means way", True, True),
        ("안녕", True, True),
    ],
)
def test_which_texts_need_it(text: str, zh: bool, en: bool) -> None:
    assert (needs_translation(text, "zh"), needs_translation(text, "en")) == (zh, en)


PIECES = [*"ab `\n⟦1⟧[NAME]<>@.x你：/:", "```", "http://a.b", "[NAME]", "⟦2⟧"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES)))
def test_masking_and_restoring_gives_back_any_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    hidden = masked(text)
    if hidden.text.strip():
        assert hidden.restored(f"<text>\n{hidden.text}\n</text>") == text


@pytest.mark.parametrize("answer", ["", "  ", "译文没有记号", "⟦1⟧ 和 ⟦1⟧", "⟦1⟧ ⟦2⟧"])
def test_a_translation_that_loses_doubles_or_invents_a_mark_is_malformed(answer: str) -> None:
    with pytest.raises(Malformed):
        masked("see `code` there").restored(answer)


def test_a_lost_mark_is_asked_for_again(tmp_path: Path, named: Named) -> None:
    said = iter(["没有记号", "看 ⟦1⟧"])
    with stand_in(lambda _: next(said)) as server:
        named(server)
        _, got = translate(tmp_path, [{"text": "see `x`"}])
    assert got == [{"text": "看 `x`"}]
    assert len(server.bodies) == 2


def test_white_space_around_a_text_stays(tmp_path: Path, named: Named) -> None:
    with stand_in(lambda body: f"  {translated(body)}\n\n") as server:
        named(server)
        _, got = translate(tmp_path, [{"text": "\n hi \n"}])
    assert got == [{"text": "\n 译〔hi〕 \n"}]


def test_the_style_is_part_of_the_question_and_of_what_the_file_is(tmp_path: Path, named: Named, capsys: Any) -> None:
    with stand_in(translated) as server:
        named(server)
        translate(tmp_path, [{"text": "hi"}], "--instruction", "口语化、活泼一点")
        assert "口语化、活泼一点" in server.bodies[0]["messages"][0]["content"]
        assert translate(tmp_path, [{"text": "hi"}])[0] == 2
    assert "instruction was '口语化、活泼一点' and is ''" in capsys.readouterr().err


def test_columns_can_be_named(tmp_path: Path, named: Named, capsys: Any) -> None:
    with stand_in(translated) as server:
        named(server)
        _, got = translate(tmp_path, [{"text": "hi", "note": "ho", "other": "hu"}], "--fields", "note,other")
        assert got == [{"text": "hi", "note": "译〔ho〕", "other": "译〔hu〕"}]
        assert translate(tmp_path, [{"text": "hi"}], "--fields", "texr")[0] == 2
    assert "did you mean text?" in capsys.readouterr().err


def test_a_row_with_a_text_that_failed_is_left_out_and_listed(tmp_path: Path, named: Named, capsys: Any) -> None:
    def no_second(body: Body, _before: int) -> Mishap | None:
        return Mishap(400, body="too long") if inside(body) == "two" else None

    with stand_in(translated, no_second) as server:
        named(server)
        status, got = translate(tmp_path, [{"text": text} for text in ("one", "two", "three")])
    assert status == 2
    assert [row["text"] for row in got] == ["译〔one〕", "译〔three〕"]
    (failure,) = read_rows(tmp_path / "out.jsonl.making" / "failures.jsonl")
    assert failure == {"where": f"{tmp_path}/in.jsonl:2", "reason": "the server answered 400: too long"}
    assert "1 of 3 rows are missing" in capsys.readouterr().err


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_thirty_rows_killed_after_fifteen_are_thirty_unique_rows_in_the_end(
    tmp_path: Path, blow: signal.Signals
) -> None:
    """The server also fails now and then and repeats the key in its errors; nothing of it may be found anywhere."""
    rows = [{"id": number, "text": f"sentence number {number}"} for number in range(30)]
    file, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    killed = False

    def mishaps(_body: Body, before: int) -> Mishap | None:
        if before == 0 and len(server.seen) % 5 == 0:
            return Mishap(500, body=json.dumps({"error": {"message": f"{KEY} broke it"}}))
        return Mishap(delay_seconds=0.3) if not killed and sum(server.answered.values()) >= 15 else None

    with stand_in(lambda body: f"{translated(body)}{KEY}", mishaps) as server:
        variables = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [
            sys.executable,
            "-m",
            "duiqi",
            "data",
            "translate",
            file,
            "--to",
            "zh",
            "--model",
            "m",
            "--output_file",
        ]
        command += [str(out), "--concurrency", "3", "--debug"]
        environment = {**os.environ, **variables}
        first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while sum(server.answered.values()) < 15:
            time.sleep(0.01)
            assert first.poll() is None
        first.send_signal(blow)
        said = b"".join(first.communicate(timeout=20))
        assert first.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 0)
        if blow != signal.SIGKILL:
            assert b"what has been translated is kept; the same command goes on" in said
        assert not out.exists()
        killed = True
        again = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
        assert again.returncode == 0, again.stderr
    assert [row["id"] for row in read_rows(out)] == list(range(30))
    assert len({row["text"] for row in read_rows(out)}) == 30
    paid_twice = [contents for contents, count in server.answered.items() if count > 1]
    assert len(paid_twice) <= 3  # under way when the blow fell, and lost with the process
    if blow != signal.SIGKILL:
        assert paid_twice == []
    assert server.authorizations[0] == f"Bearer {KEY}"
    for found in [said, again.stdout, again.stderr, *(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())]:
        assert KEY.encode() not in found


def test_two_processes_do_not_make_the_same_file(tmp_path: Path, named: Named, capsys: Any) -> None:
    from duiqi.journal.lock import DirectoryLock

    (tmp_path / "out.jsonl.making").mkdir()
    lock = DirectoryLock(tmp_path / "out.jsonl.making")
    with stand_in(translated) as server:
        named(server)
        assert translate(tmp_path, [{"text": "hi"}])[0] == 2
    assert "another process is writing this file" in capsys.readouterr().err
    lock.release()


def test_judging_and_translating_need_no_torch() -> None:
    code = "import sys, duiqi.curation.judge, duiqi.curation.translate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

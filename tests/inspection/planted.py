"""A clean dataset, and every fault that can be planted in it: what is written where, and what must be found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = 24
LINE = 17
"""Where faults are planted: the 17th row of a .jsonl file."""

Row = dict[str, Any]

CHINESE = ["茶叶", "竹子", "月亮", "长江", "毛笔", "豆腐", "自行车", "灯笼", "风筝", "熊猫", "稻田", "石桥"]
ENGLISH = [
    *("bread", "rivers", "clocks", "maps", "bees", "snow", "violins", "bridges"),
    "lamps",
    "trains",
    "chalk",
    "sand",
]
SUBJECTS = [*CHINESE, *ENGLISH]
assert len(set(SUBJECTS)) == ROWS


def demonstrations() -> list[Row]:
    """Questions with one answer each, half in Chinese, half in English; nothing is wrong with them."""
    rows = []
    for number, subject in enumerate(SUBJECTS):
        if subject.isascii():
            question = f"Tell me something about {subject}, please."
            answer = (
                f"There is much to say about {subject}: people have used them for {number + 200} years, and still do."
            )
        else:
            question = f"请介绍一下{subject}，说两句就好。"
            answer = (
                f"{subject}很常见，有{number + 200}年以上的历史。"
                + "很多人小时候就见过它，长大以后也想起它，讲给孩子听。"
            )
        rows.append({"instruction": question, "input": "", "output": answer})
    return rows


def rankings() -> list[Row]:
    """The same questions with a better and a worse answer, the longer one as often the better."""
    rows = []
    for number, row in enumerate(demonstrations()):
        worse = row["output"] + (" 别的就不知道了。" if number % 2 else "")
        worse = worse.replace("常见", "少见").replace("much", "little")
        worse = worse if number % 2 else worse[:-6] + "。"
        rows.append({"prompt": row["instruction"], "chosen": row["output"], "rejected": worse})
    return rows


def opinions() -> list[Row]:
    """The same questions and answers, every other one liked."""
    return [
        {"prompt": row["instruction"], "completion": row["output"], "label": number % 2 == 0}
        for number, row in enumerate(demonstrations())
    ]


@dataclass(frozen=True)
class Plant:
    """One fault: how it is planted, and how it is found."""

    kind: str
    severity: str
    change: Callable[[list[Row]], None]
    """Spoils the row of LINE (index LINE - 1)."""
    rankings: bool = False
    opinions: bool = False
    cutoff_len: int = 0
    """Not 0: the fault shows when the rows are looked at as tokens, so many at most in a row."""
    id: str = ""
    seen: str = ""
    """Part of the excerpt."""


def spoil(column: str, make: Callable[[str], Any]) -> Callable[[list[Row]], None]:
    """A change of one column of the row of LINE."""

    def change(rows: list[Row]) -> None:
        rows[LINE - 1][column] = make(rows[LINE - 1][column])

    return change


def ends(text: str) -> Callable[[list[Row]], None]:
    """The answer of LINE with something behind it."""
    return spoil("output", lambda answer: answer + text)


def says(answer: str) -> Callable[[list[Row]], None]:
    """Another answer in LINE."""
    return put(output=answer)


def put(**columns: Any) -> Callable[[list[Row]], None]:
    """The row of LINE with these columns changed or added."""

    def change(rows: list[Row]) -> None:
        rows[LINE - 1].update(columns)

    return change


def again(change: Callable[[Row], Row] = dict) -> Callable[[list[Row]], None]:
    """The row of LINE becomes a copy of the fifth, changed."""

    def spoil_rows(rows: list[Row]) -> None:
        rows[LINE - 1] = change(copy.deepcopy(rows[4]))

    return spoil_rows


def drop(column: str) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        del rows[LINE - 1][column]

    return change


def replaced(rows: list[Row], row: Any) -> None:
    rows[LINE - 1] = row


def _misread(text: str, code: str) -> str:
    return text.encode("utf-8").decode(code, errors="ignore")


_LONG = "The bees fly from one flower to another and come home in the evening. "

PLANTS: tuple[Plant, ...] = (
    # rows that cannot be used
    Plant("malformed", "error", drop("instruction"), id="a column is missing", seen="instruction"),
    Plant("malformed", "error", put(output=42), id="a number for an answer", seen="the value 42"),
    Plant("malformed", "error", put(instruction=""), id="an empty question", seen="instruction"),
    Plant("malformed", "error", put(history="none"), id="a history that is no list", seen="history"),
    Plant("malformed", "error", put(history=[["one"]]), id="half a round of history", seen="history"),
    Plant("malformed", "error", lambda rows: replaced(rows, ["a", "list"]), id="a list for a row", seen="a list of 2"),
    Plant("malformed", "error", drop("rejected"), rankings=True, id="no rejected answer", seen="rejected"),
    Plant("malformed", "error", put(chosen="  "), rankings=True, id="an empty chosen answer", seen="chosen"),
    Plant("malformed", "error", put(margin="wide"), rankings=True, id="a margin in words", seen="margin"),
    # texts
    Plant("half_character", "error", ends("\ud83d"), seen="\\ud83d"),
    Plant("replacement_character", "warning", spoil("output", lambda text: text[:9] + "\ufffd" + text[10:])),
    Plant("wrong_encoding", "warning", ends(_misread("请说说“养蜂”吧", "latin-1")), id="as latin-1"),
    Plant("wrong_encoding", "warning", ends(_misread("是的，café é", "cp1252")), id="as cp1252"),
    Plant("wrong_encoding", "warning", says(_misread("的，是的，在这里，你好。" * 3, "gbk")), id="as gbk"),
    Plant("wrong_encoding", "warning", ends("锟斤拷"), id="lost twice", seen="锟斤拷"),
    Plant("control_character", "warning", ends("\x08"), seen="\\x08"),
    Plant("invisible_character", "note", spoil("output", lambda text: "a\u200b" + text), seen="\\u200b"),
    Plant("carriage_return", "note", ends("\r\nYes."), seen="\\r"),
    Plant("marker", "warning", ends("<|im_end|>"), id="a chat mark", seen="<|im_end|>"),
    Plant("marker", "warning", ends("<|endoftext|>"), id="an end in letters"),
    Plant("marker", "warning", spoil("instruction", lambda text: f"[INST] {text} [/INST]"), id="marks of llama"),
    Plant("placeholder", "error", says("I am [NAME], made by [AUTHOR], and glad to help."), id="a name", seen="[NAME]"),
    Plant("placeholder", "error", says("我是{{name}}，由{{author}}训练，很高兴为你服务。"), id="a name in braces"),
    Plant("form_field", "note", ends(" Yours, [Your Name]"), seen="[Your Name]"),
    Plant("answer_label", "warning", spoil("output", lambda text: "答：" + text), seen="答："),
    Plant("question_label", "warning", spoil("instruction", lambda text: f"Human: {text}"), seen="Human:"),
    Plant("question_label", "warning", spoil("instruction", lambda text: f"{text}\n\n答："), id="an answer opened"),
    Plant("next_turn", "warning", ends("\n\nHuman: And then?"), seen="Human: And then?"),
    Plant("hollow_answer", "warning", says("……"), seen="……"),
    Plant("answer_is_question", "note", lambda rows: put(output=rows[LINE - 1]["instruction"] + " Yes.")(rows)),
    Plant("loops", "warning", says("They are good. " * 30), seen="They are good."),
    Plant("repeated_turn", "warning", lambda rows: put(history=[["So?", rows[LINE - 1]["output"]]])(rows)),
    Plant("open_code_block", "note", ends("\n```python\nprint(1)"), seen="```"),
    Plant("breaks_off", "note", ends(" They are old, "), seen="old,"),
    Plant("edge_space", "note", ends("\n"), seen="\\n"),
    Plant("markup", "note", ends("&nbsp;"), seen="&nbsp;"),
    Plant("secret", "warning", ends(" sk-" + "a1B2" * 8), seen="sk-a1B2… (35 characters)"),
    Plant("personal", "note", ends(" Call 13800138000."), id="a telephone", seen="138…00"),
    Plant("personal", "note", ends(" lan@duiqi.net"), id="an address", seen="lan…et"),
    Plant("refusal", "note", says("As an AI language model, I do not have any of them."), seen="As an AI"),
    Plant("refusal", "note", says("对不起，这个问题我无法回答，请问别的吧，谢谢理解。"), id="a refusal in Chinese"),
    Plant("other_name", "warning", says("I am ChatGPT, and I like the question very much indeed."), seen="ChatGPT"),
    # rows together
    Plant("duplicate_row", "warning", again(), seen="as line 5"),
    Plant("near_duplicate_row", "warning", again(lambda row: row | {"output": row["output"].replace("，", " ，")})),
    Plant("repeated_prompt", "note", again(lambda row: row | {"output": "写字用的，也能画画，老人和孩子都爱它。"})),
    Plant("unanswered", "error", says(""), seen="bees"),
    Plant("long_answer", "note", says(_LONG * 50), seen="3,500 characters"),
    Plant("short_answer", "note", says("No"), seen="2 characters"),
    Plant("switched_language", "note", says("它们是一种很好听的乐器，有四根弦，很多人从小就开始学。")),
    # pairs
    Plant("identical_answers", "error", lambda rows: put(rejected=rows[LINE - 1]["chosen"])(rows), rankings=True),
    Plant(
        "nearly_identical_answers", "warning",
        lambda rows: put(rejected=rows[LINE - 1]["chosen"].replace(" ", "  "))(rows), rankings=True,
    ),
    Plant("contradiction", "error", again(lambda row: row | {"label": False}), opinions=True, id="liked and not liked"),
    Plant("malformed", "error", put(label="perhaps"), opinions=True, id="an opinion in words", seen="label"),
    # tokens, one per byte
    Plant("special_token", "error", ends("<|im_end|>"), cutoff_len=2048, seen="<|im_end|>"),
    Plant("unencodable", "error", ends("\ud83d"), cutoff_len=2048, id="half of a character as tokens"),
    Plant("cut_answer", "note", says(_LONG * 10), cutoff_len=400, seen="of 701 tokens are kept"),
    Plant("cut_prompt", "note", put(instruction=_LONG * 10), cutoff_len=800, seen="400 of"),
    Plant(
        "identical_after_cut", "error", put(chosen=_LONG * 9 + "One.", rejected=_LONG * 9 + "Two."),
        rankings=True, cutoff_len=500, seen="the same in their first",
    ),
    Plant("negative_margin", "warning", put(margin=-0.5), rankings=True, seen="margin -0.5"),
    Plant("beginning_of_other", "note", lambda rows: put(rejected=rows[LINE - 1]["chosen"][:40])(rows), rankings=True),
    Plant(
        "contradiction", "error",
        again(lambda row: row | {"chosen": row["rejected"], "rejected": row["chosen"]}), rankings=True, seen="line 5",
    ),
)  # fmt: skip


def write(path: Path, rows: list[Row]) -> Path:
    """Rows as JSON lines; half characters stay what they are, as escapes."""
    lines = [json.dumps(row, ensure_ascii="\\ud" in json.dumps(row)) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path

"""Proves that what duiqi writes opens elsewhere: each tool in an environment of its own, with the real packages.

    make ecosystem                    builds the environments, runs every check, writes docs/ecosystem.md

A check is a script that runs in its tool's environment and prints one JSON line: versions, and how far everything it
opened is from what duiqi computes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
VENVS = REPOSITORY / "build" / "venvs"
DOCS = REPOSITORY / "docs"


@dataclass(frozen=True)
class Tool:
    """Something that opens what duiqi wrote."""

    name: str
    script: str
    environment: str
    packages: tuple[str, ...] = ()
    """What its environment needs; nothing: another make target builds it."""


TOOLS = (
    Tool(
        "PEFT and transformers",
        "open_with_transformers.py",
        "hub",
        ("torch==2.13.0", "transformers", "peft", "sentencepiece"),
    ),
    Tool("vLLM", "open_with_vllm.py", "vllm"),
)


def python_of(tool: Tool) -> Path:
    """The interpreter of a tool's environment, which is built where it is missing."""
    folder = VENVS / tool.environment
    python = folder / "bin" / "python"
    if not (folder / "installed").exists() and tool.packages:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *tool.packages], check=True)
        (folder / "installed").touch()
    return python


def run(tool: Tool, folder: Path) -> dict[str, Any]:
    """What a tool's script printed."""
    command = [python_of(tool), HERE / tool.script, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    if done.returncode != 0:
        return {"versions": {}, "tolerance": 0.0, "differences": {f"{tool.name}: {tool.script} failed": float("inf")}}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def as_page(results: dict[str, dict[str, Any]], language: str) -> str:
    """The results as a page of the docs, in one of `WORDS`."""
    words = WORDS[language]
    lines = [words["opening"]]
    for name, result in results.items():
        versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
        lines += [f"## {name}", "", words["versions"].format(versions), "", words["head"], "|---|---|---|"]
        for what, off in result["differences"].items():
            lines.append(f"| {what} | {off:.1e} | {'ok' if off <= result['tolerance'] else words['differs']} |")
        lines.append("")
    return "\n".join(lines)


WORDS = {
    "en": {
        "opening": """# Opened elsewhere

[中文](zh/ecosystem.md)

Written by `make ecosystem`: tiny runs of every way to tune are opened by other tools, each in an environment of its
own, and compared with what duiqi computes. A number is the largest difference of logits or scores in float32; where
only text is compared, 0 is the same greedy continuation.
""",
        "versions": "With {}.",
        "head": "| what | off by | |",
        "differs": "**differs**",
    },
    "zh": {
        "opening": """# 在别处打开

[English](../ecosystem.md)

由 `make ecosystem` 写出：用每种方式训练的微型结果由别的工具打开，各用自己的环境，再与 duiqi 的计算比较。
数字是 float32 下 logits 或分数的最大差别；只比较文本时，0 表示贪心续写相同。
""",
        "versions": "版本：{}。",
        "head": "| 打开什么 | 差别 | |",
        "differs": "**不同**",
    },
}
"""What the pages say around the numbers."""


def main() -> int:
    """0 when everything is as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tools to run, by the names of their environments, with commas")
    args = parser.parse_args()
    wanted = {name for name in args.only.split(",") if name}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([sys.executable, HERE / "prepare.py", folder], check=True)
        results = {tool.name: run(tool, folder) for tool in TOOLS if not wanted or tool.environment in wanted}
    print(as_page(results, "en"))
    if not wanted:
        (DOCS / "ecosystem.md").write_text(as_page(results, "en"), encoding="utf-8")
        (DOCS / "zh" / "ecosystem.md").write_text(as_page(results, "zh"), encoding="utf-8")
    return int(any(off > r["tolerance"] for r in results.values() for off in r["differences"].values()))


if __name__ == "__main__":
    raise SystemExit(main())

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


def as_page(results: dict[str, dict[str, Any]]) -> str:
    """The results as docs/ecosystem.md."""
    lines = ["# Opened elsewhere", "", "[中文](zh/ecosystem.md)", "", *_INTRODUCTION, ""]
    for name, result in results.items():
        versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
        lines += [f"## {name}", "", f"With {versions}.", "", "| what | off by | |", "|---|---|---|"]
        for what, off in result["differences"].items():
            verdict = "ok" if off <= result["tolerance"] else "**differs**"
            lines.append(f"| {what} | {off:.1e} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


_INTRODUCTION = (
    "Written by `make ecosystem`: tiny runs of every way to tune are opened by other tools, each in an environment of",
    "its own, and compared with what duiqi computes: the largest difference of logits or scores, in float32; of text,",
    "0 is the same greedy continuation.",
)


def main() -> int:
    """0 when everything is as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tools to run, by the names of their environments, with commas")
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs" / "ecosystem.md", help="where to write")
    args = parser.parse_args()
    wanted = {name for name in args.only.split(",") if name}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([sys.executable, HERE / "prepare.py", folder], check=True)
        results = {tool.name: run(tool, folder) for tool in TOOLS if not wanted or tool.environment in wanted}
    page = as_page(results)
    print(page)
    if not wanted:
        args.page.write_text(page, encoding="utf-8")
    return int(any(off > r["tolerance"] for r in results.values() for off in r["differences"].values()))


if __name__ == "__main__":
    raise SystemExit(main())

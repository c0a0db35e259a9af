"""Trackers as they come from PyPI: each in an environment of its own, told a run with a kill in it, and read back.

`make ecosystem-trackers`, or `python tests/ecosystem/trackers/check_trackers.py [NAME ...]`. The environments are made
under build/venvs; they see the packages of the environment that runs this script, duiqi among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
KILLED = 9
VENVS = REPOSITORY / "build" / "venvs"
TRACKERS = ("tensorboard", "wandb", "swanlab", "trackio", "mlflow")
NOWHERE = {
    "wandb": {"WANDB_MODE": "online"},
    "swanlab": {"SWANLAB_MODE": "cloud"},
    "mlflow": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
}
"""Variables that ask for a server which has no login, or is not there."""


def python_of(name: str) -> Path:
    """The interpreter of a tracker's environment, which is made where it is missing."""
    folder = VENVS / f"tracker-{name}"
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    if stamp.exists():
        return python
    venv.create(folder, clear=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=variables))
    shared = sysconfig.get_path("purelib")
    (own / "shared.pth").write_text(f"{REPOSITORY / 'src'}\n{shared}\n")
    # None of them needs torch; should one ask for another, this stops it from being fetched.
    (folder / "constraints.txt").write_text("torch==2.13.0\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--quiet"]
    subprocess.run([*pip, "-c", str(folder / "constraints.txt"), name], check=True)
    stamp.touch()
    return python


def check(name: str, folder: Path) -> str:
    """What a tracker holds of what it was told, in one line.

    Raises:
        AssertionError: It does not hold all of it, or something else went wrong.
    """
    told = run(name, folder, "tell.py", name, folder / "run", "begin", ends_with=KILLED)
    told += run(name, folder, "tell.py", name, folder / "run", "resume")
    assert not told, f"on stdout: {told}"
    found = run(name, folder, "read_back.py", name, folder / "run").strip()
    if name in NOWHERE:
        run(name, folder, "tell.py", name, folder / "lost", "resume", **NOWHERE[name])
        events = [json.loads(line) for line in (folder / "lost" / "events.jsonl").read_text().splitlines()]
        kinds = [event["kind"] for event in events]
        assert kinds == ["started", "rewound", "warning", "finished"], kinds
        found += "; without its server one warning, and the run goes on"
    return found


def run(name: str, folder: Path, script: str, *arguments: object, ends_with: int = 0, **variables: str) -> str:
    """What a script prints in a tracker's environment, with no login anywhere.

    Raises:
        AssertionError: It ended otherwise than expected; with what it said.
    """
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SWANLAB", "MLFLOW"))},
        "HOME": str(folder),
        "PYTHONPATH": str(REPOSITORY / "src"),
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    folder.mkdir(exist_ok=True)
    command = [str(python_of(name)), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ends_with, f"{script} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(TRACKERS)} (default: all)")
    names = parser.parse_args().names or TRACKERS
    num_wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            try:
                print(check(name, Path(scratch) / name), flush=True)
            except AssertionError as error:
                num_wrong += 1
                print(f"{name}: {error}", flush=True)
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())

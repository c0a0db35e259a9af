"""The environments the peers run in: built under build/venvs from the requirement files in benchmarks/peers.

Each sees the base environment's packages through a .pth file, so torch lies on the disk once, and has its own versions
of whatever its requirement file names.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from work import REPOSITORY, BenchmarkError, main_guard

VENVS = REPOSITORY / "build" / "venvs"
REQUIREMENTS = Path(__file__).resolve().parent / "peers"
TORCH = "2.13.0"
"""Pinned: any other version would pull gigabytes of CUDA libraries."""
STAMP = "built-from.txt"


@dataclass(frozen=True)
class Environment:
    """A peer's virtual environment."""

    name: str
    packages: tuple[str, ...]
    """Imported to see that it works; the first is the peer itself."""
    stand_ins: tuple[str, ...] = ()
    """Packages that the peer imports and this work never touches: empty ones take their place."""

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def folder(self) -> Path:
        return VENVS / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        variables = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", vars=variables))

    @property
    def digest(self) -> str:
        """What it would be built from now: the requirement file and the environment beneath."""
        return hashlib.sha256(self.requirements.read_bytes() + str(base_packages()).encode()).hexdigest()

    @property
    def is_built(self) -> bool:
        """Whether it was built, completely, from the requirement file as it is now."""
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text() == self.digest


ENVIRONMENTS: dict[str, Environment] = {
    "trl-ppo": Environment("trl-ppo", ("trl", "transformers", "peft")),
    "lf": Environment("lf", ("llamafactory", "transformers", "peft", "trl"), stand_ins=("torchaudio",)),
}
"""By name; `base` is the environment that runs this script, which has duiqi and TRL 1.16."""


def base_packages() -> Path:
    """The site-packages of the environment that runs this script."""
    return Path(sysconfig.get_path("purelib"))


def python_of(name: str) -> Path:
    """The interpreter of an environment.

    Raises:
        BenchmarkError: It has not been built.
    """
    if name == "base":
        return Path(sys.executable)
    environment = ENVIRONMENTS[name]
    if not environment.is_built:
        state = "is older than its requirement file" if environment.python.exists() else "has not been built"
        raise BenchmarkError(f"the environment {name} {state}: run `make bench-peers`")
    return environment.python


def build(environment: Environment) -> None:
    """Make the environment from nothing.

    Raises:
        BenchmarkError: The base environment has another torch, or pip failed.
    """
    check_torch()
    venv.create(environment.folder, clear=True)
    (environment.site_packages / "shared-base.pth").write_text(f"{base_packages()}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python)]
    run([*pip, "install", "--quiet", "--no-deps", "-r", str(environment.requirements)], environment.name)
    for name in environment.stand_ins:
        folder = environment.site_packages / name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text('"""An empty stand-in: imported, never used."""\n\n__version__ = "0"\n')
    (environment.folder / STAMP).write_text(environment.digest)


def check_torch() -> None:
    """Refuse to build on another torch than the one all figures are for."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("torch").partition("+")[0]
    except PackageNotFoundError:
        found = "none"
    if found != TORCH:
        raise BenchmarkError(f"torch {TORCH} is needed beneath the peers, found {found}: run `make install` first")


def versions(environment: Environment) -> str:
    """The versions its packages have when imported there.

    Raises:
        BenchmarkError: One of them cannot be imported.
    """
    names = ("torch", *environment.packages)
    program = "import sys, importlib, importlib.metadata as m\n"
    program += "for n in sys.argv[1:]: importlib.import_module(n); print(n, m.version(n))"
    printed = run([str(environment.python), "-c", program, *names], environment.name)
    return ", ".join(line for line in printed.splitlines() if line.partition(" ")[0] in names)


def run(command: Sequence[str], name: str) -> str:
    """What a command prints.

    Raises:
        BenchmarkError: It failed; the end of what it said.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet}, check=False)
    if done.returncode:
        raise BenchmarkError(f"{name}: `{' '.join(command[:5])} ...` failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(ENVIRONMENTS)} (default: all)")
    parser.add_argument("--rebuild", action="store_true", help="build again what is there already")
    parser.add_argument(
        "--check", action="store_true", help="build nothing; import the packages and say their versions"
    )
    args = parser.parse_args()
    if unknown := set(args.names) - set(ENVIRONMENTS):
        raise BenchmarkError(
            f"there is no environment {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}"
        )
    for name in args.names or ENVIRONMENTS:
        environment = ENVIRONMENTS[name]
        if not args.check and (args.rebuild or not environment.is_built):
            print(f"{name}: building in {os.path.relpath(environment.folder)} ...", flush=True)
            build(environment)
        python_of(name)
        print(f"{name}: {versions(environment)}", flush=True)


if __name__ == "__main__":
    main_guard(main)

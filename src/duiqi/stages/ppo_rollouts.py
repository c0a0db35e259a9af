"""Where PPO's answers come from: the own decoder on the training weights, or a vLLM server beside it; and what learning
from a sampler that is not quite the trainer takes.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from duiqi.algorithms.importance import sampler_mismatch, truncated_importance_weights
from duiqi.data.templates import Template
from duiqi.errors import SettingsError
from duiqi.journal.run import Run
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.decoder import Decoder
from duiqi.rollouts.engine import Engine
from duiqi.rollouts.experience import Experience
from duiqi.rollouts.vllm_engine import PROBE_TOLERANCE, Probe, SyncedEngine, VLLMEngine, row_log_probs
from duiqi.rollouts.vllm_http import Address, connect
from duiqi.rollouts.vllm_server import ServerPlan, VLLMServer
from duiqi.settings.stages import PPOConfig
from duiqi.types import Sampling

VLLM_DIRECTORY = "vllm"
"""In the run's directory: the server's log, and the adapters that are handed over."""
_MAX_VLLM_TEMPERATURE = 2.0
_PROBE_TOKENS = 32


def make_sampling(config: PPOConfig) -> Sampling:
    """How rollouts are drawn."""
    s = config.sampling
    return Sampling(
        max_new_tokens=s.max_new_tokens,
        min_new_tokens=s.min_new_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        repetition_penalty=s.repetition_penalty,
        seed=config.optimizer.seed,
    )


def check_rollouts(config: PPOConfig) -> None:
    """Refuse what vLLM cannot sample for us, before anything is loaded.

    Raises:
        SettingsError: Settings do not go together with `rollout_engine: vllm`.
    """
    rollouts = config.rollouts
    if rollouts.rollout_engine == "own":
        return
    if (rollouts.vllm_python is None) == (rollouts.vllm_url is None):
        found = "neither is given" if rollouts.vllm_python is None else "both are given"
        raise SettingsError(
            f"either duiqi starts a server or there is one already, but {found}",
            where="vllm_python, vllm_url",
            remedy="set vllm_python to the interpreter of vLLM's environment, or vllm_url to a server's address",
        )
    if config.tuning.finetuning_type != "lora" or config.tuning.modules_to_save:
        raise SettingsError(
            "vLLM is handed low-rank adapters and nothing else",
            where="rollout_engine",
            remedy="set finetuning_type: lora without modules_to_save, or rollout_engine: own",
        )
    if config.model.create_new_adapter:
        raise SettingsError(
            "vLLM is handed one adapter, not one above another",
            where="create_new_adapter",
            remedy="export the lower one into the base (`duiqi export`), or set rollout_engine: own",
        )
    if config.tuning.use_dora:
        raise SettingsError(
            "vLLM takes no DoRA adapters", where="use_dora", remedy="set use_dora: false, or rollout_engine: own"
        )
    if config.sampling.temperature > _MAX_VLLM_TEMPERATURE:
        raise SettingsError(
            f"vLLM samples at a temperature of {_MAX_VLLM_TEMPERATURE:g} at most",
            where="temperature",
            remedy="lower it, or set rollout_engine: own",
        )
    if not make_sampling(config).is_plain:
        raise SettingsError(
            "vLLM's log-probabilities are those after truncation, which the trainer cannot recompute",
            where="top_p, top_k, repetition_penalty",
            remedy="leave them at 1, 0 and 1, or set rollout_engine: own",
        )
    _split_arguments(rollouts.vllm_args)


def make_engine(
    config: PPOConfig,
    base: SharedBase,
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    opening: Sequence[int],
    max_prompt_tokens: int,
    journal: Run,
    resources: ExitStack,
) -> Engine:
    """What answers: the own decoder, or vLLM; a server that is started here ends with `resources`.

    Args:
        opening: A prompt; vLLM is probed with it and an answer to it.
        max_prompt_tokens: The longest prompt that will be asked.

    Raises:
        SettingsError: The policy is more than the one adapter that vLLM takes.
    """

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    own = Decoder(
        base,
        decode=decode,
        stop_token_ids=template.stop_token_ids,
        pad_token_id=int(tokenizer.pad_token_id),
        max_batch_rows=config.sampling.generation_batch_size,
        active=lambda: base.acting("policy"),
    )
    if config.rollouts.rollout_engine == "own":
        journal.describe(decoding=str(own.decoding))
        journal.view.note(f"answers are decoded {own.decoding}")
        return own
    policy = base.seat("policy")
    if policy.below or policy.has_own_weights or policy.prefix is not None or not policy.is_two_matrices:
        raise SettingsError(
            "vLLM is handed one low-rank adapter, and the policy starts from something else or from several",
            where="rollout_engine",
            remedy="export what it starts from into the base (`duiqi export`), or set rollout_engine: own",
        )
    max_tokens = max_prompt_tokens + config.sampling.max_new_tokens
    probe = make_probe(own, base, opening, max_tokens=max_tokens)
    address = _address(
        config,
        base,
        stop_token_ids=template.stop_token_ids,
        max_tokens=max_tokens,
        journal=journal,
        resources=resources,
    )
    return _synced(address, base, decode=decode, stop_token_ids=template.stop_token_ids, probe=probe, journal=journal)


def make_probe(own: Decoder, base: SharedBase, opening: Sequence[int], *, max_tokens: int) -> Probe:
    """A prompt with an answer of the policy's own: what it finds likely differs most from one policy to another.

    Args:
        max_tokens: What the server reads at once. The probe leaves room for the one token that vLLM must draw.
    """
    length = min(_PROBE_TOKENS, max_tokens - len(opening))
    answer = own.generate([opening], Sampling(max_new_tokens=length, min_new_tokens=length))[0]
    row = (answer.prompt_ids + answer.answer_ids)[: max_tokens - 1]
    return Probe(row, partial(row_log_probs, base, "policy"), PROBE_TOLERANCE[base.dtype])


def weighted_by_importance(
    experience: Experience, sampled: Experience, *, cap: float | None
) -> tuple[Experience, dict[str, float]]:
    """The experience with its advantages times truncated importance weights, and how far sampler and trainer are apart.

    Args:
        experience: Its old log-probabilities are the trainer's.
        sampled: The same rollouts with the sampler's.
        cap: The largest weight; None where the sampler is the trainer, and all weights are 1.
    """
    if cap is None:
        return experience, {}
    policy, sampler, mask = experience.old_log_probs, sampled.old_log_probs, experience.answer_mask
    weights = truncated_importance_weights(policy, sampler, mask, cap=cap)
    found = sampler_mismatch(policy, sampler, mask, cap=cap)
    weighted = replace(experience, advantages=experience.advantages * weights)
    return weighted, {name: part.mean for name, part in found.items()}


def _address(
    config: PPOConfig,
    base: SharedBase,
    *,
    stop_token_ids: Sequence[int],
    max_tokens: int,
    journal: Run,
    resources: ExitStack,
) -> Address:
    """Where the server listens: one that is there, or one that is started now."""
    settings = config.rollouts
    if settings.vllm_url is not None:
        return connect(settings.vllm_url)
    assert settings.vllm_python is not None
    own = base.seat("policy").own
    assert own is not None
    assert isinstance(own.config, LoraConfig)
    plan = ServerPlan(
        python=settings.vllm_python,
        model=base.name,
        dtype=str(base.dtype).removeprefix("torch."),
        stop_token_ids=tuple(stop_token_ids),
        max_tokens=max_tokens,
        lora_rank=own.config.r,
        memory_share=settings.vllm_memory_share,
        is_eager=base.device.type == "cpu",  # compiling takes longer there than it saves
        trust_remote_code=config.model.trust_remote_code,
        arguments=_split_arguments(settings.vllm_args),
    )
    server = VLLMServer.start(
        plan,
        journal.directory / VLLM_DIRECTORY,
        startup_seconds=settings.vllm_startup_seconds,
        note=journal.view.note,
    )
    return resources.enter_context(server).address


def _synced(
    address: Address,
    base: SharedBase,
    *,
    decode: Callable[[list[int]], str],
    stop_token_ids: Sequence[int],
    probe: Probe,
    journal: Run,
) -> SyncedEngine:
    def note(step: int, gap: float) -> None:
        journal.event("vllm_sync", step=step, gap=gap)

    return SyncedEngine(
        VLLMEngine(address, decode=decode, stop_token_ids=stop_token_ids, probe=probe),
        base,
        role="policy",
        directory=journal.directory / VLLM_DIRECTORY / "adapters",
        note=note,
    )


def _split_arguments(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise SettingsError(
            f"cannot be read as a command line ({error})", where="vllm_args", remedy="close every quotation mark"
        ) from error

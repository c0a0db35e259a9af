"""The vLLM engine against a server of our own that speaks as vLLM does; the real one is in tests/vllm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_vllm import FOREIGN_STOP, STOP, FakeVLLM, log_prob, serving
from transformers import LlamaConfig, LlamaForCausalLM

from duiqi.errors import DataError, GuardStop, SettingsError
from duiqi.models.adapter_files import read_adapter
from duiqi.models.adapters import LoRASpec
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.engine import NonFiniteLogits
from duiqi.rollouts.vllm_engine import Probe, SyncedEngine, VLLMEngine, request_seed, row_log_probs
from duiqi.rollouts.vllm_http import Address, VLLMError, connect
from duiqi.types import Rollout, Sampling

PROMPTS = [[5, 6], [9], [20, 4, 4], [9], [28]]
ROW = (5, 6, 7, 8, 9)
SAMPLING = Sampling(max_new_tokens=40, min_new_tokens=2, temperature=0.8, seed=11)


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    with serving(FakeVLLM(api_key="sesame")) as running:
        yield running


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[float], Path]:
    """Writes the toy policy with this shift."""

    def write(shift: float) -> Path:
        directory = tmp_path / f"adapter-{shift}"
        directory.mkdir(exist_ok=True)
        (directory / "shift").write_text(str(shift))
        return directory

    return write


class Trainer:
    """The trainer's side of the toy policy."""

    def __init__(self) -> None:
        self.shift = 0.0

    def log_probs(self, row: Sequence[int]) -> list[float]:
        return [log_prob(token, self.shift) for token in row[1:]]


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


@pytest.fixture
def engine(fake: FakeVLLM, trainer: Trainer) -> VLLMEngine:
    return VLLMEngine(
        Address(fake.url, api_key="sesame"),
        decode=lambda ids: " ".join(map(str, ids)),
        stop_token_ids=[STOP],
        probe=Probe(ROW, trainer.log_probs, tolerance=0.01),
    )


@pytest.fixture
def ready(engine: VLLMEngine, adapter: Callable[[float], Path]) -> VLLMEngine:
    """The engine after its first sync."""
    engine.sync(adapter(0.0), 0)
    return engine


def test_answers_stand_in_the_order_of_the_prompts_with_the_numbers_of_the_server(ready: VLLMEngine) -> None:
    rollouts = ready.generate(PROMPTS, SAMPLING, step=3)
    assert [r.index for r in rollouts] == [0, 1, 2, 3, 4]
    assert [list(r.prompt_ids) for r in rollouts] == PROMPTS
    for rollout in rollouts:
        assert rollout.log_probs == pytest.approx([log_prob(token, 0.0) for token in rollout.answer_ids])
        assert rollout.values == ()


def test_an_answer_is_finished_by_a_stop_token_which_is_no_part_of_its_text(ready: VLLMEngine) -> None:
    rollouts = ready.generate(PROMPTS * 8, replace(SAMPLING, max_new_tokens=20))
    assert {r.finished for r in rollouts} == {True, False}
    for rollout in rollouts:
        words = [int(word) for word in rollout.answer.split()]
        assert rollout.finished == (rollout.answer_ids[-1] == STOP)
        assert words == list(rollout.answer_ids[:-1] if rollout.finished else rollout.answer_ids)


def test_the_server_is_asked_for_the_sampling_as_it_is_set(ready: VLLMEngine, fake: FakeVLLM) -> None:
    ready.generate([[7, 8]], SAMPLING, step=3)
    asked = fake.requests[-1]
    assert asked["prompt"] == [7, 8]
    assert asked["temperature"] == 0.8
    assert (asked["min_tokens"], asked["max_tokens"]) == (2, 40)
    assert (asked["stop_token_ids"], asked["ignore_eos"]) == ([STOP], True)
    assert asked["seed"] == request_seed(seed=11, step=3, index=0)


def test_the_same_step_gives_the_same_answers_and_another_step_or_seed_others(ready: VLLMEngine) -> None:
    first = ready.generate(PROMPTS, SAMPLING, step=3)
    assert ready.generate(PROMPTS, SAMPLING, step=3) == first
    assert ready.generate(PROMPTS, SAMPLING, step=4) != first
    assert ready.generate(PROMPTS, replace(SAMPLING, seed=12), step=3) != first


def test_a_prompt_that_occurs_twice_gets_two_independent_answers(ready: VLLMEngine) -> None:
    rollouts = ready.generate(PROMPTS, SAMPLING)
    assert rollouts[1].prompt_ids == rollouts[3].prompt_ids
    assert rollouts[1].answer_ids != rollouts[3].answer_ids


def test_seeds_are_distinct_and_fit_a_signed_word() -> None:
    seeds = {request_seed(seed=s, step=t, index=i) for s in range(5) for t in range(20) for i in range(50)}
    assert len(seeds) == 5000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_after_a_sync_answers_come_from_the_new_adapter_under_a_new_name(
    ready: VLLMEngine, fake: FakeVLLM, trainer: Trainer, adapter: Callable[[float], Path]
) -> None:
    before = ready.generate(PROMPTS, SAMPLING)
    trainer.shift = 1.0
    assert ready.sync(adapter(1.0), 1) == pytest.approx(0.0, abs=1e-12)
    after = ready.generate(PROMPTS, SAMPLING)
    assert [r.answer_ids for r in after] == [r.answer_ids for r in before]
    assert after[0].log_probs == pytest.approx([value - 1.0 for value in before[0].log_probs])
    assert len(set(fake.loaded)) == 2
    assert list(fake.adapters) == fake.loaded[-1:]


def test_the_same_directory_again_still_gets_a_new_name(ready: VLLMEngine, fake: FakeVLLM, tmp_path: Path) -> None:
    ready.sync(tmp_path / "adapter-0.0", 1)
    assert len(set(fake.loaded)) == 2


def test_the_probe_stops_a_run_whose_server_keeps_an_older_adapter(
    ready: VLLMEngine, fake: FakeVLLM, trainer: Trainer, adapter: Callable[[float], Path]
) -> None:
    fake.broken, trainer.shift = "deaf", 0.25
    with pytest.raises(GuardStop, match=r"step 7: vLLM does not sample .* differ by 2\.50e-01"):
        ready.sync(adapter(0.25), 7)


def test_the_probe_stops_a_run_whose_numbers_are_nan(
    engine: VLLMEngine, trainer: Trainer, adapter: Callable[[float], Path]
) -> None:
    trainer.shift = float("nan")
    with pytest.raises(GuardStop, match="differ by nan"):
        engine.sync(adapter(0.0), 0)


def test_a_gap_within_the_tolerance_is_reported(
    engine: VLLMEngine, trainer: Trainer, adapter: Callable[[float], Path]
) -> None:
    trainer.shift = 0.004
    assert engine.sync(adapter(0.0), 0) == pytest.approx(0.004)


def test_an_adapter_that_the_server_cannot_read_is_named(engine: VLLMEngine, tmp_path: Path) -> None:
    with pytest.raises(VLLMError, match=r"nowhere: vLLM does not take this adapter: .*No adapter found"):
        engine.sync(tmp_path / "nowhere", 0)


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"top_k": 5}, {"repetition_penalty": 1.1}])
def test_truncated_sampling_is_refused(ready: VLLMEngine, change: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="after truncation"):
        ready.generate(PROMPTS, replace(SAMPLING, **change))


def test_an_empty_prompt_is_refused(ready: VLLMEngine) -> None:
    with pytest.raises(DataError, match="prompt 1"):
        ready.generate([[4], []], SAMPLING)


def test_no_prompts_give_no_answers(ready: VLLMEngine) -> None:
    assert ready.generate([], SAMPLING) == []


def test_a_broken_distribution_is_named_by_prompt_and_token(ready: VLLMEngine, fake: FakeVLLM) -> None:
    fake.broken = "nan"
    with pytest.raises(NonFiniteLogits, match="step 3, prompt 0: the logits of answer token 1"):
        ready.generate(PROMPTS, SAMPLING, step=3)


def test_an_answer_ended_by_a_token_of_the_servers_own_is_refused(ready: VLLMEngine, fake: FakeVLLM) -> None:
    fake.broken = "foreign_stop"
    with pytest.raises(VLLMError, match=f"ended with token {FOREIGN_STOP} for a reason of the server's own"):
        ready.generate(PROMPTS, SAMPLING)


def test_a_reply_without_token_ids_is_refused(ready: VLLMEngine, fake: FakeVLLM) -> None:
    fake.broken = "no_ids"
    with pytest.raises(VLLMError, match="does not hold token ids"):
        ready.generate(PROMPTS, SAMPLING)


def test_a_server_that_is_gone_is_reported_with_the_end_of_its_log(trainer: Trainer, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("ready\nthe worker died: out of memory\n")
    with serving(FakeVLLM()) as gone:
        pass
    engine = VLLMEngine(
        Address(gone.url, log_file=log),
        decode=str,
        stop_token_ids=[STOP],
        probe=Probe(ROW, trainer.log_probs, tolerance=0.01),
    )
    with pytest.raises(VLLMError, match=r"does not answer(.|\n)*the worker died: out of memory"):
        engine.sync(tmp_path, 0)


def test_without_the_key_the_server_refuses(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(VLLMError, match=r"refused \(401\): Unauthorized(.|\n)*VLLM_API_KEY"):
        connect(fake.url).post("/v1/completions", {}, timeout_seconds=5)


def test_a_key_is_not_shown(fake: FakeVLLM) -> None:
    assert "sesame" not in repr(Address(fake.url, api_key="sesame"))


def test_connecting_takes_the_address_as_clients_of_openai_write_it(
    fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    assert connect(f"{fake.url}/v1/") == Address(fake.url, api_key="sesame")


def test_a_proxy_of_the_environment_is_not_asked(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    connect(fake.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:8000", "nonsense"])
def test_connecting_to_nothing_says_what_to_do(url: str) -> None:
    with pytest.raises(VLLMError, match=r"vllm_url: .*no vLLM server answers there(.|\n)*set vllm_python"):
        connect(url)


@pytest.fixture(scope="module")
def base() -> SharedBase:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}
    base = SharedBase(LlamaForCausalLM(LlamaConfig(**shape, **heads)), name="tiny")
    base.seat_new_adapter("policy", LoRASpec(rank=2))
    with torch.no_grad():
        for parameter in base.role_parameters("policy").values():
            parameter.normal_()
    return base


def test_the_trainers_side_of_a_probe_is_a_plain_forward_pass_under_the_role(base: SharedBase) -> None:
    found = row_log_probs(base, "policy", ROW)
    with base.acting("policy"):
        logits = base.model(torch.tensor([ROW])).logits[0, :-1]
    expected = logits.log_softmax(-1)[range(4), ROW[1:]].tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_every_batch_of_answers_comes_from_the_policy_as_it_is_then(base: SharedBase, tmp_path: Path) -> None:
    heard: list[tuple[str, object]] = []

    class Listener(VLLMEngine):
        def __init__(self) -> None: ...

        def sync(self, adapter_directory: Path, step: int) -> float:
            assert all(path.is_dir() for path in handed_over()[-1:]), "the former one must last until it is replaced"
            del step
            heard.append(("sync", adapter_directory))
            assert read_adapter(adapter_directory).config.r == 2
            return 0.5

        def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, step: int = 0) -> list[Rollout]:
            del prompts, sampling
            heard.append(("generate", step))
            return []

    def handed_over() -> list[Path]:
        return [what for kind, what in heard if kind == "sync" and isinstance(what, Path)]

    noted: list[tuple[int, float]] = []
    directory = tmp_path / "adapters"
    engine = SyncedEngine(Listener(), base, role="policy", directory=directory, note=lambda *found: noted.append(found))
    for step in (1, 0, 2):
        engine.generate(PROMPTS, SAMPLING, step=step)
    assert [kind for kind, _ in heard] == ["sync", "generate"] * 3
    assert [what for kind, what in heard if kind == "generate"] == [1, 0, 2]
    assert len(set(handed_over())) == 3
    assert list(directory.iterdir()) == handed_over()[-1:]
    assert noted == [(1, 0.5), (0, 0.5), (2, 0.5)]

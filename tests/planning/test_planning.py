"""Plans: what can be known exactly is compared with what a run holds, computes and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Workshop
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen3Config

from duiqi.cli.main import main
from duiqi.errors import SettingsError
from duiqi.models.attention_kernels import kernel_for
from duiqi.models.layout import find_layout, likely_layout
from duiqi.models.lean import llama_shaped_layers
from duiqi.models.measure import measure_answers
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family, PackedBatch, pack
from duiqi.packing.runs import Runs
from duiqi.packing.tree import SegmentTree
from duiqi.planning import rehearsal
from duiqi.planning.advice import changes, first_change
from duiqi.planning.heap import Heap
from duiqi.planning.holdings import weights_held
from duiqi.planning.plan import MemoryPlan, make_plan, memory_plan
from duiqi.planning.rows import count_rows, measurable
from duiqi.planning.sketch import Sketch, sketch
from duiqi.planning.tally import Tally
from duiqi.settings.resolve import resolve
from duiqi.settings.stages import StageConfig
from duiqi.stages.start import find_start, make_base, seat_policy

FAMILIES = [Family((), [tuple(range(5, 105))]), Family((), [tuple(range(5, 125))])]
"""Sequences that attention takes one by one."""


def config_of(workshop: Workshop, stage: Any, directory: Path, **changes: Any) -> StageConfig:
    return resolve(stage, values=workshop.settings(stage, directory, device="cpu", **changes))


def memory_of(config: StageConfig) -> tuple[MemoryPlan, Sketch]:
    found = sketch(config)
    memory, _ = memory_plan(config, found, count_rows(config, found.start), libraries=0)
    return memory, found


def tensor_bytes(tensors: Any) -> int:
    unique = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


class TestHeap:
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=60))
    def test_blocks_never_overlap_and_the_heap_holds_them_all(self, steps: list[tuple[bool, int]]) -> None:
        heap, blocks = Heap(), dict[int, int]()
        for releases, number in steps:
            if releases and blocks:
                address = sorted(blocks)[number % len(blocks)]
                heap.release(address)
                del blocks[address]
            else:
                blocks[heap.take(number)] = number
            ordered = sorted(blocks.items())
            ends = [address + size for address, size in ordered]
            assert all(end <= start for end, (start, _) in zip(ends, ordered[1:], strict=False))
            assert max(ends, default=0) <= heap.size

    def test_what_was_released_becomes_one_gap_again(self) -> None:
        heap = Heap()
        blocks = [heap.take(1000) for _ in range(5)]
        size = heap.size
        for index in (1, 3, 0, 2, 4):
            heap.release(blocks[index])
        heap.take(4800)
        assert heap.size == size

    def test_the_smallest_gap_that_is_large_enough_is_taken(self) -> None:
        heap = Heap()
        large, _, small, _ = (heap.take(size) for size in (3000, 10, 1500, 10))
        heap.release(large)
        heap.release(small)
        assert heap.take(900) == small


class TestTally:
    def test_it_counts_what_is_alive_once(self) -> None:
        with Tally() as tally, tally.moment("all"):
            first = torch.zeros(100)
            view = first[10:].view(-1, 9)
            second = first + 1
            del first
        assert tally.total == 800, "the view keeps the first one alive"
        del view, second
        assert tally.total == 0

    def test_the_peak_is_of_one_time(self) -> None:
        with Tally() as tally, tally.moment("one") as moment:
            for _ in range(3):
                large = torch.zeros(1000)
                del large
            small = torch.zeros(10)
        assert (moment.peak, small.numel()) == (4000, 10)

    def test_products_count_two_flops_for_each_multiplication(self) -> None:
        a, b = torch.zeros(3, 4), torch.zeros(4, 5)
        with Tally() as tally, tally.moment("products") as moment:
            torch.mm(a, b)
            torch.zeros(3, 5).addmm_(a, b)
        assert moment.flops == 2 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rm", "dpo", "ppo"])
def test_weights_are_those_that_a_run_loads(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    found = sketch(config_of(workshop, stage, tmp_path))
    held = {(part.owner, part.what): part.num_bytes for part in weights_held(found)}
    model = AutoModelForCausalLM.from_pretrained(workshop.base, dtype=torch.float32)
    assert held["base", "weights in float32"] == tensor_bytes((*model.parameters(), *model.buffers()))
    files = {"policy": workshop.sft, "reference": workshop.sft, "reward": workshop.rm}
    for (owner, what), size in held.items():
        if what == "adapter":
            # of the file about a fortieth is names; a reward adapter's also holds the head
            written = (Path(files.get(owner, workshop.sft)) / "adapter_model.safetensors").stat().st_size
            assert size < written < size + 6000


def test_what_full_tuning_compares_with_is_as_large_as_the_base(workshop: Workshop, tmp_path: Path) -> None:
    config = config_of(workshop, "dpo", tmp_path, finetuning_type="full", adapter_name_or_path=None)
    held = {(part.owner, part.what): part.num_bytes for part in weights_held(sketch(config))}
    assert held["reference", "a frozen copy"] == held["base", "weights in float32"]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_optimizer_keeps_eight_bytes_for_each_parameter_that_learns(
    workshop: Workshop, tmp_path: Path, tuning: str
) -> None:
    config = config_of(workshop, "sft", tmp_path, finetuning_type=tuning)
    memory, found = memory_of(config)
    base = make_base(config.model, config.tuning, find_start(config.model), num_tokens=0)
    seat_policy(base, find_start(config.model), config.tuning, opening=(0,))
    learning = sum(p.numel() for p in base.trainable_parameters().values())
    assert memory.moments[-1].parts["optimizer state"] == 8 * learning
    assert sum(p.numel() for p in found.base.trainable_parameters().values()) == learning


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_checkpoint_is_as_large_as_a_run_wrote_it(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    plan = make_plan(stage, config_of(workshop, stage, tmp_path), libraries=0)
    run = Path(workshop.sft if stage == "sft" else workshop.rm)
    written = sum(file.stat().st_size for file in (run / "checkpoints" / "step-000004").iterdir())
    assert plan.disk.checkpoint == pytest.approx(written, rel=0.02)


def seated(config: StageConfig) -> SharedBase:
    """The base of an SFT run, with its weights."""
    start = find_start(config.model)
    base = make_base(config.model, config.tuning, start, num_tokens=0)
    seat_policy(base, start, config.tuning, opening=(0,))
    base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
    return base


def loss_of(base: SharedBase, batch: PackedBatch) -> Tensor:
    return measure_answers(base, batch).log_probs.sum()


@pytest.mark.parametrize("changes", [{}, {"attn_implementation": "eager"}, {"gradient_checkpointing": True}], ids=str)
def test_a_rehearsal_counts_what_the_real_computation_holds(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = config_of(workshop, "sft", tmp_path, **changes)
    found, base = sketch(config), seated(config)
    assert (found.base.layout.is_packed, found.base.layout.is_lean) == (base.layout.is_packed, base.layout.is_lean)
    batch = pack(measurable(FAMILIES, packed=base.layout.is_packed))
    real = Tally(heap=Heap(), known=[*base.model.parameters(), *base.model.buffers(), batch.input_ids, batch.positions])
    with real, real.moment("update"):
        loss_of(base, batch).backward()
    shapes = Tally(heap=Heap(), known=found.tensors())
    with found.mode, shapes, shapes.moment("update"):
        loss_of(found.base, batch).backward()
    assert shapes.moments[0].peak == pytest.approx(real.moments[0].peak, rel=0.01)
    assert shapes.moments[0].flops == real.moments[0].flops > 0


def test_lean_layers_keep_what_autograd_says_that_they_keep(workshop: Workshop, tmp_path: Path) -> None:
    config = config_of(workshop, "sft", tmp_path)
    found, base = sketch(config), seated(config)
    batch = pack(FAMILIES)
    weights = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = base.read(batch)
    kept[hidden.untyped_storage().data_ptr()] = hidden.untyped_storage().nbytes()
    tally = Tally(known=found.tensors())
    with found.mode, tally, tally.moment("forward"):
        states = found.base.read(batch)
    assert states.shape == hidden.shape
    assert tally.total == pytest.approx(sum(kept.values()), rel=0.01)


def test_recomputation_keeps_less(workshop: Workshop, tmp_path: Path) -> None:
    plain, _ = memory_of(config_of(workshop, "sft", tmp_path))
    recomputed, _ = memory_of(config_of(workshop, "sft", tmp_path, gradient_checkpointing=True))
    assert recomputed.peak < plain.peak


def test_a_deep_network_is_planned_from_shallow_ones(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "deep"
    shallow = json.loads((Path(workshop.base) / "config.json").read_text())
    for file in Path(workshop.base).iterdir():
        if file.suffix != ".safetensors":
            deep.mkdir(exist_ok=True)
            (deep / file.name).write_bytes(file.read_bytes())
    (deep / "config.json").write_text(json.dumps(shallow | {"num_hidden_layers": 8, "layer_types": None}))
    config = config_of(workshop, "sft", tmp_path, model_name_or_path=str(deep))
    guessed, _ = memory_of(config)
    monkeypatch.setattr(rehearsal, "DEPTHS", (7, 8))
    rehearsed, _ = memory_of(config)
    assert guessed.widest.peak == pytest.approx(rehearsed.widest.peak, rel=0.01)
    assert guessed.widest.parts["optimizer state"] == rehearsed.widest.parts["optimizer state"]


def test_the_copies_of_the_sampler_are_planned(workshop: Workshop, tmp_path: Path) -> None:
    memory, found = memory_of(config_of(workshop, "ppo", tmp_path))
    parts = next(moment.parts for moment in memory.moments if moment.name == "rollouts")
    assert parts["sampler's copy of the head"] == found.base.output_head().weight.nbytes
    named = [each for layer in llama_shaped_layers(found.base.model) for each in layer.named_parameters()]
    size = 4 * sum(p.numel() for name, p in named if "lora_" not in name and "norm" not in name)
    assert parts["sampler's copy of the layers"] == pytest.approx(size, rel=0.02)


LAYOUTS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL, intermediate_size=48),
    "qwen3": lambda: Qwen3Config(**SMALL, intermediate_size=48, num_key_value_heads=2, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "bloom": lambda: BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128),
}
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_the_one_that_is_found_with_weights(name: str) -> None:
    real = find_layout(AutoModelForCausalLM.from_config(LAYOUTS[name]()).eval())
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(LAYOUTS[name]()).eval()
    guessed = likely_layout(shapes)
    assert (guessed.is_packed, guessed.is_lean) == (real.is_packed, real.is_lean)


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_a_network_is_planned_from_its_config_alone(workshop: Workshop, tmp_path: Path, name: str) -> None:
    kind = {"gpt2": GPT2Config(vocab_size=600, n_embd=32, n_layer=7, n_head=4, n_positions=256),
            "bloom": BloomConfig(vocab_size=600, hidden_size=32, n_layer=7, n_head=4)}[name]  # fmt: skip
    base = tmp_path / "base"
    kind.save_pretrained(base)
    for file in Path(workshop.base).iterdir():
        if file.name != "config.json" and file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    memory, found = memory_of(config_of(workshop, "rm", tmp_path, model_name_or_path=str(base)))
    real = AutoModelForCausalLM.from_config(kind)
    held = {(part.owner, part.what): part.num_bytes for part in memory.held}
    assert held["base", "weights in float32"] == tensor_bytes((*real.parameters(), *real.buffers()))
    assert found.base.layout.is_packed == (name == "gpt2")
    assert memory.widest.peak > 0


def test_short_rows_of_several_lengths_need_no_look_at_the_numbers_of_a_tensor() -> None:
    lengths = [3, 4, 5, 5, 4]
    kernel = kernel_for(torch.device("cpu"), torch.float32)
    assert kernel is not None
    with FakeTensorMode():
        parts = kernel.own(SegmentTree.of(lengths, [None] * len(lengths)), Runs(((0, sum(lengths)),)))
        assert any(part.is_real is not None for part in parts)
        whole = torch.zeros(sum(lengths), 2, 4)
        for part in parts:
            part.put(whole, part.queries_of(whole), part.queries)


def test_what_cannot_be_rehearsed_is_said(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def routed(base: SharedBase, batch: PackedBatch) -> Tensor:
        return base.read(batch).nonzero()

    monkeypatch.setattr(rehearsal, "token_loss", routed)
    memory, _ = memory_of(config_of(workshop, "sft", tmp_path))
    assert "only weights are counted" in memory.notes[0]
    assert memory.peak == sum(part.num_bytes for part in memory.held)


class TestAdvice:
    def test_what_changes_no_result_comes_first(self, workshop: Workshop, tmp_path: Path) -> None:
        config = config_of(workshop, "ppo", tmp_path)
        rows = count_rows(config, find_start(config.model))
        advice = first_change(config, rows, dtype=torch.float32, available=10, peak_of=lambda _: 5)
        assert advice is not None
        assert str(advice.change) == "tokens_per_micro_batch: 2048"
        assert advice.fits

    def test_the_first_that_is_enough_is_taken_and_else_the_one_that_helps_most(
        self, workshop: Workshop, tmp_path: Path
    ) -> None:
        config = config_of(workshop, "sft", tmp_path)
        rows = count_rows(config, find_start(config.model))
        asked = [change.setting for change in changes(config, rows, torch.float32)]

        def peak_of(changed: StageConfig) -> int:
            return 7 if changed.optimizer.gradient_checkpointing else 20

        for available, fits in ((10, True), (5, False)):
            advice = first_change(config, rows, dtype=torch.float32, available=available, peak_of=peak_of)
            assert advice is not None
            assert (advice.change.setting, advice.peak, advice.fits) == ("gradient_checkpointing", 7, fits)
        assert asked.index("tokens_per_micro_batch") < asked.index("dtype") < asked.index("gradient_checkpointing")


class TestCommand:
    def words(self, workshop: Workshop, stage: str, directory: Path) -> list[str]:
        return [f"{name}={value}" for name, value in workshop.settings(stage, directory).items()]

    def test_it_prints_a_plan_and_writes_nothing(
        self, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        assert main(["plan", "ppo", *self.words(workshop, "ppo", out)]) == 0
        text = capsys.readouterr().out
        for said in ("policy: adapter", "reward: head", "keys and values", "at most", "fits      yes", "steps     4"):
            assert said in text
        assert not out.exists()

    def test_json_adds_up(self, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "dpo", "--json", *self.words(workshop, "dpo", tmp_path / "run")]) == 0
        memory = json.loads(capsys.readouterr().out)["memory"]
        held, moments = (memory[name] for name in ("held", "moments"))
        widest = max(moment["bytes"] for moment in moments)
        assert memory["peak"] == sum(part["bytes"] for part in held) + widest + memory["gaps"]
        assert all(sum(moment["parts"].values()) == moment["bytes"] for moment in moments)

    def test_a_missing_stage_is_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "recipe.yaml"]) == SettingsError.exit_code
        assert "which stage" in capsys.readouterr().err

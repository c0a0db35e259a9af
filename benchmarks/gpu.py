"""duiqi on one GPU with random weights in the shapes of Qwen2.5-0.5B and 7B: how near to what the hardware can do.

    PYTHONPATH=src python benchmarks/gpu.py                         # CUDA, at most ten minutes
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --tiny     # does everything once, to see that it runs

First the ceilings are measured: a large bf16 matrix product, and a copy within the memory. Training is compared with
the first (MFU: the FLOPs that the work needs, by benchmarks/floor.py and attention left out, over the time and the
ceiling), decoding with the second (every token reads all weights and the cache once). Nothing is downloaded; texts are
random tokens with the lengths of real ones. TRL runs the same SFT and DPO batches where it is installed, with
activation checkpointing off as for duiqi; its MFU counts the same needed FLOPs. PPO goes through duiqi's public API on
a model that is written to --folder first. A scenario that fails, or for which no time is left, is reported in its row.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from floor import FORWARD, TRAIN, Shape, shape_of
from work import BENCH, BenchmarkError, main_guard, write_lines

QWEN_0_5B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
DUIQI_WORK = ("SFT", "DPO", "DPO, reference remembered", "decoding")
TRL_WORK = ("SFT", "DPO")
SPECIAL = ("<pad>", "<user>", "<assistant>", "<end>")


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    models: dict[str, dict[str, Any]]
    sft_rows: int
    """Conversations of a step."""
    pairs: int
    """Pairs of a step."""
    longest: int
    decode_rows: int
    decode_prompt: int
    decode_new: int
    steps: int
    """Steps that are timed, after one that is not."""
    gemm: int
    """Side of the square matrices of the ceiling."""
    copied_bytes: int
    online_model: str
    online_rollout: int
    online_new: int


FULL = Scale(
    models={"Qwen2.5-0.5B": QWEN_0_5B, "Qwen2.5-7B": QWEN_7B},
    sft_rows=32,
    pairs=16,
    longest=1024,
    decode_rows=64,
    decode_prompt=128,
    decode_new=256,
    steps=4,
    gemm=8192,
    copied_bytes=2**32,
    online_model="Qwen2.5-0.5B",
    online_rollout=64,
    online_new=256,
)
SMALL = Scale(
    models={"tiny": TINY},
    sft_rows=4,
    pairs=2,
    longest=64,
    decode_rows=4,
    decode_prompt=8,
    decode_new=8,
    steps=2,
    gemm=256,
    copied_bytes=2**22,
    online_model="tiny",
    online_rollout=8,
    online_new=8,
)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    model: str
    work: str
    who: str
    seconds: float = 0.0
    """Of a step, a round, or the whole decoding."""
    tokens_per_second: float = 0.0
    share: float | None = None
    """Of the ceiling."""
    peak_gib: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Ceilings:
    """What the hardware can do."""

    flops: float
    """Per second, in a large bf16 matrix product."""
    bandwidth: float
    """Bytes read and written per second, in a copy."""


# -- time, memory, ceilings --------------------------------------------------------------------------------------------


def settle(device: torch.device) -> float:
    """Wait for the device; the time then."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(device: torch.device, action: Callable[[], object], repeats: int) -> float:
    """Seconds of one `action`, the mean of several after a first that does not count."""
    action()
    begin = settle(device)
    for _ in range(repeats):
        action()
    return (settle(device) - begin) / repeats


def begin_memory(device: torch.device) -> None:
    """Forget what earlier work needed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float:
    """The most that was allocated on the device since `begin_memory`; 0 on a CPU, whose process had other work too."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def measure_ceilings(device: torch.device, scale: Scale) -> Ceilings:
    """A square bf16 product of random matrices (zeros would run faster), and a copy within the memory."""
    a, b = (torch.randn(scale.gemm, scale.gemm, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = timed(device, lambda: a @ b, repeats=20)
    source = torch.empty(scale.copied_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = timed(device, lambda: target.copy_(source), repeats=20)
    return Ceilings(flops=2 * scale.gemm**3 / product, bandwidth=2 * scale.copied_bytes / copy)


# -- work --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def random_ids(chance: random.Random, count: int, vocabulary: int) -> list[int]:
    return [chance.randrange(len(SPECIAL), vocabulary) for _ in range(count)]


def length(chance: random.Random, scale: Scale, share: float) -> int:
    """A length that varies as those of texts do, around a share of the longest."""
    return max(4, min(int(chance.lognormvariate(0, 0.6) * share * scale.longest), scale.longest // 2 - 1))


def conversations(scale: Scale, vocabulary: int, *, seed: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of one step of SFT."""
    chance = random.Random(seed)
    return [
        (
            random_ids(chance, length(chance, scale, 0.12), vocabulary),
            random_ids(chance, length(chance, scale, 0.25), vocabulary),
        )
        for _ in range(scale.sft_rows)
    ]


def pairs(scale: Scale, vocabulary: int, *, seed: int) -> list[Pair]:
    """One step of DPO."""
    chance = random.Random(seed)
    return [
        Pair(*(random_ids(chance, length(chance, scale, share), vocabulary) for share in (0.12, 0.25, 0.25)))
        for _ in range(scale.pairs)
    ]


def sft_flops(shape: Shape, rows: Iterable[tuple[Sequence[int], Sequence[int]]]) -> tuple[float, int]:
    """Needed FLOPs and tokens."""
    needed, tokens = 0.0, 0
    for prompt, answer in rows:
        needed += TRAIN * ((len(prompt) + len(answer)) * shape.body + len(answer) * shape.head)
        tokens += len(prompt) + len(answer)
    return needed, tokens


def dpo_flops(shape: Shape, work: Iterable[Pair], *, remembered: bool) -> tuple[float, int]:
    """Needed FLOPs, the prompt once; tokens of both sequences, as others count them."""
    needed, tokens = 0.0, 0
    for pair in work:
        answers = len(pair.chosen) + len(pair.rejected)
        once = (len(pair.prompt) + answers) * shape.body + answers * shape.head
        needed += once * (TRAIN if remembered else TRAIN + FORWARD)
        tokens += 2 * len(pair.prompt) + answers
    return needed, tokens


# -- duiqi, by its insides: the part to adapt when they change ---------------------------------------------------------


def random_model(config: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """A Qwen2 of this shape with random bf16 weights, made on the device itself."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model: PreTrainedModel = Qwen2ForCausalLM(Qwen2Config(**config, pad_token_id=0, eos_token_id=3))
    finally:
        torch.set_default_dtype(before)
    return model


def open_base(config: dict[str, Any], device: torch.device) -> Any:
    """duiqi's shared base with a fresh policy adapter and the reference beside it."""
    from duiqi.models.adapters import LoRASpec
    from duiqi.models.shared_base import SharedBase

    base = SharedBase(random_model(config, device), name="random")
    base.seat_new_adapter("policy", LoRASpec(rank=8))
    base.seat_copy("reference", "policy", trainable=False)
    base.rest_on("policy")
    base.prepare_training(gradient_checkpointing=False)
    return base


def open_learner(base: Any, tokens: int) -> Any:
    from duiqi.packing.memory import MemoryBudget
    from duiqi.training.learner import Learner
    from duiqi.training.schedule import Schedule

    return Learner(base.trainable_parameters(), Schedule(1e-5, total_steps=1000), budget=MemoryBudget(tokens))


def sft_step(base: Any, learner: Any, rows: Sequence[tuple[list[int], list[int]]], number: int) -> None:
    from duiqi.packing.batch import Family
    from duiqi.packing.budget import packed_batches
    from duiqi.training.likelihood import token_loss

    families = [Family((), ([*p, *a],), ([False] * len(p) + [True] * len(a),)) for p, a in rows]
    learner.step(
        lambda tokens: packed_batches(families, max_tokens=tokens, packed=base.layout.is_packed),
        partial(token_loss, base),
        number=number,
    )


def dpo_step(base: Any, learner: Any, memory: Any, work: Sequence[Pair], number: int) -> None:
    from duiqi.data.encoding import EncodedRanking
    from duiqi.data.rankings import collate_rankings
    from duiqi.packing.budget import deal
    from duiqi.settings.groups import PreferenceSettings
    from duiqi.stages.dpo import preference_loss

    rankings = [EncodedRanking(pair.prompt, [pair.chosen, pair.rejected], False, 0, 0) for pair in work]

    def batches(tokens: int) -> Iterable[Any]:
        for picked in deal([r.family for r in rankings], max_tokens=tokens, packed=base.layout.is_packed):
            yield collate_rankings([rankings[i] for i in picked], weighting="pair")

    loss = partial(preference_loss, base, settings=PreferenceSettings(), memory=memory)
    learner.step(batches, loss, number=number)


def decode(base: Any, scale: Scale, vocabulary: int) -> None:
    from duiqi.rollouts.decoder import Decoder
    from duiqi.types import Sampling

    chance = random.Random(0)
    prompts = [random_ids(chance, scale.decode_prompt, vocabulary) for _ in range(scale.decode_rows)]
    decoder = Decoder(
        base,
        decode=str,  # nobody reads the text
        stop_token_ids=(3,),
        pad_token_id=0,
        max_batch_rows=scale.decode_rows,
        active=lambda: base.acting("policy"),
    )
    new = scale.decode_new
    answers = decoder.generate(prompts, Sampling(max_new_tokens=new, min_new_tokens=new))
    assert all(len(answer.answer_ids) == new for answer in answers)


# -- scenarios ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What every scenario needs."""

    device: torch.device
    scale: Scale
    ceilings: Ceilings
    folder: Path
    tokens: int
    """Computed at once."""

    def train_row(self, model: str, work: str, who: str, *, seconds: float, needed: float, tokens: int) -> Row:
        share = needed / seconds / self.ceilings.flops
        return Row(model, work, who, seconds, tokens / seconds, share, peak_gib(self.device))


def steps_of(bench: Bench, step: Callable[[int], None]) -> float:
    """Seconds of a step, the first aside; `step` is given its number from 1."""
    step(1)
    begin = settle(bench.device)
    for number in range(2, bench.scale.steps + 2):
        step(number)
    return (settle(bench.device) - begin) / bench.scale.steps


def duiqi_rows(bench: Bench, model: str) -> Iterable[Callable[[], Row]]:
    """SFT, DPO, DPO with the reference remembered, and decoding, on one resident base."""
    config, scale = bench.scale.models[model], bench.scale
    shape, vocabulary = shape_of(config), int(config["vocab_size"])
    base = open_base(config, bench.device)
    learner = open_learner(base, bench.tokens)
    timed_steps = range(2, scale.steps + 2)

    def sft() -> Row:
        begin_memory(bench.device)
        seconds = steps_of(bench, lambda n: sft_step(base, learner, conversations(scale, vocabulary, seed=n), n))
        counts = [sft_flops(shape, conversations(scale, vocabulary, seed=n)) for n in timed_steps]
        needed, tokens = (sum(column) / scale.steps for column in zip(*counts, strict=True))
        return bench.train_row(model, "SFT", "duiqi", seconds=seconds, needed=needed, tokens=round(tokens))

    from duiqi.training.reference import ReferenceMemory

    memory = ReferenceMemory(None)

    def dpo(remembered: bool) -> Row:
        begin_memory(bench.device)
        seconds = steps_of(bench, lambda n: dpo_step(base, learner, memory, pairs(scale, vocabulary, seed=n), n))
        counts = [dpo_flops(shape, pairs(scale, vocabulary, seed=n), remembered=remembered) for n in timed_steps]
        needed, tokens = (sum(column) / scale.steps for column in zip(*counts, strict=True))
        work = "DPO, reference remembered" if remembered else "DPO"
        return bench.train_row(model, work, "duiqi", seconds=seconds, needed=needed, tokens=round(tokens))

    def decoding() -> Row:
        begin_memory(bench.device)
        seconds = timed(bench.device, lambda: decode(base, scale, vocabulary), repeats=1)
        rate = scale.decode_rows * scale.decode_new / seconds
        share = rate / decoding_bound(config, scale, bench.ceilings)
        note = "share of what the memory's bandwidth allows"
        return Row(model, f"decoding {scale.decode_rows}", "duiqi", seconds, rate, share, peak_gib(bench.device), note)

    yield sft
    yield partial(dpo, False)
    yield partial(dpo, True)
    yield decoding


def decoding_bound(config: dict[str, Any], scale: Scale, ceilings: Ceilings) -> float:
    """Tokens per second when every token reads all bf16 weights once a batch and its own cache."""
    shape = shape_of(config)
    head_size = config["hidden_size"] // config["num_attention_heads"]
    position = 2 * config["num_key_value_heads"] * head_size * config["num_hidden_layers"]
    cache = scale.decode_rows * (scale.decode_prompt + scale.decode_new / 2) * position
    return float(scale.decode_rows * ceilings.bandwidth / (2 * (shape.body + shape.head + cache)))


def ppo_row(bench: Bench) -> Row:
    """PPO through duiqi's public API: seconds of a round, the first aside, on a reward model trained for a step."""
    import duiqi

    scale, folder = bench.scale, bench.folder
    config = scale.models[scale.online_model]
    write_tokenizer(config, folder / "model")
    write_model(config, folder / "model")
    prompts, answers = scale.longest // 8, scale.longest // 4
    chance = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{chance.randrange(int(config['vocab_size']) - len(SPECIAL))}" for _ in range(count))

    write_lines(
        folder / "pairs.jsonl",
        [{"prompt": words(prompts), "chosen": words(answers), "rejected": words(answers)} for _ in range(4)],
    )
    write_lines(folder / "prompts.jsonl", [{"prompt": words(prompts)} for _ in range(4 * scale.online_rollout)])
    common: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "overwrite_output_dir": True,
        "device": str(bench.device),
        "dtype": "bfloat16",
        "cutoff_len": 2 * scale.longest,
        "logging_steps": 1,
    }
    duiqi.run("rm", **common, dataset=str(folder / "pairs.jsonl"), output_dir=str(folder / "reward"), max_steps=1)
    begin_memory(bench.device)
    rounds = 1 + min(scale.steps, 3)
    duiqi.run(
        "ppo",
        **common,
        dataset=str(folder / "prompts.jsonl"),
        output_dir=str(folder / "ppo"),
        reward_model=str(folder / "reward"),
        rollout_batch_size=scale.online_rollout,
        mini_batch_size=max(1, scale.online_rollout // 2),
        max_new_tokens=scale.online_new,
        min_new_tokens=scale.online_new,
        target_kl=0.0,
        max_steps=rounds,
    )
    lines = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    spent = {name: sum(line[name] for line in lines[1:]) for name in lines[1] if name.startswith("seconds/")}
    seconds = sum(spent.values()) / (rounds - 1)
    note = ", ".join(f"{name.removeprefix('seconds/')} {value / (rounds - 1):.2f} s" for name, value in spent.items())
    tokens = scale.online_rollout * (prompts + 3 + scale.online_new)
    peak = peak_gib(bench.device)
    return Row(scale.online_model, "PPO round", "duiqi", seconds, tokens / seconds, None, peak, note)


def write_model(config: dict[str, Any], folder: Path) -> None:
    """A random model on disk: a Llama, because transformers gives every Qwen2's tokenizer the splitting of Qwen2."""
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**config, **ids)).to(torch.bfloat16).save_pretrained(folder)


def write_tokenizer(config: dict[str, Any], folder: Path) -> None:
    """A tokenizer of whole words for a model of this shape: the word w7 is the seventh token after the special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{number}" for number in range(int(config["vocab_size"]) - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = (
        "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
    )
    fast.save_pretrained(folder)


# -- TRL, where it is installed ----------------------------------------------------------------------------------------


def trl_rows(bench: Bench, model: str) -> Iterable[Callable[[], Row]]:
    """SFT and DPO of the same rows by TRL, each on a model of its own.

    TRL shuffles the rows, so what a step needs is the mean over all of them.
    """
    config, scale = bench.scale.models[model], bench.scale
    shape, vocabulary = shape_of(config), int(config["vocab_size"])
    all_steps = range(1, scale.steps + 2)
    write_tokenizer(config, bench.folder / "tokenizer")

    def sft() -> Row:
        rows = [row for n in all_steps for row in conversations(scale, vocabulary, seed=n)]
        data = [{"input_ids": [*p, *a], "labels": [-100] * len(p) + a} for p, a in rows]
        seconds = trl_seconds(bench, config, "SFT", data, scale.sft_rows)
        counts = [sft_flops(shape, conversations(scale, vocabulary, seed=n)) for n in all_steps]
        needed, tokens = (sum(column) / len(all_steps) for column in zip(*counts, strict=True))
        return bench.train_row(model, "SFT", "TRL", seconds=seconds, needed=needed, tokens=round(tokens))

    def dpo() -> Row:
        work = [pair for n in all_steps for pair in pairs(scale, vocabulary, seed=n)]
        data = [{name: in_words(ids) for name, ids in asdict(pair).items()} for pair in work]
        seconds = trl_seconds(bench, config, "DPO", data, scale.pairs)
        counts = [dpo_flops(shape, pairs(scale, vocabulary, seed=n), remembered=False) for n in all_steps]
        needed, tokens = (sum(column) / len(all_steps) for column in zip(*counts, strict=True))
        return bench.train_row(model, "DPO", "TRL", seconds=seconds, needed=needed, tokens=round(tokens))

    yield sft
    yield dpo


def in_words(ids: Sequence[int]) -> str:
    """Text that the tokenizer of `write_tokenizer` reads as these ids."""
    return " ".join(f"w{number - len(SPECIAL)}" for number in ids) + " "


def trl_seconds(bench: Bench, config: dict[str, Any], which: str, data: list[dict[str, Any]], rows: int) -> float:
    """Seconds of a step of one of TRL's trainers, the first aside."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    times: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(settle(bench.device))

    begin_memory(bench.device)
    on_cpu = bench.device.type == "cpu"
    extra = {"dataset_kwargs": {"skip_prepare_dataset": True}} if which == "SFT" else {}
    arguments = getattr(trl, f"{which}Config")(
        output_dir=str(bench.folder / "trl"),
        use_cpu=on_cpu,
        bf16=True,
        max_length=2 * bench.scale.longest,
        per_device_train_batch_size=rows,
        max_steps=bench.scale.steps + 1,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        **extra,
    )
    trainer = getattr(trl, f"{which}Trainer")(
        model=random_model(config, bench.device),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(bench.folder / "tokenizer"),
        train_dataset=Dataset.from_list(data),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Watch()],
    )
    trainer.train()
    return (times[-1] - times[0]) / (len(times) - 1)


# -- the whole ---------------------------------------------------------------------------------------------------------


def attempt(name: tuple[str, str, str], scenario: Callable[[], Row], deadline: float) -> Row:
    """The row of a scenario, or a row that says why there is none: one that fails must not cost the others."""
    if time.monotonic() > deadline:
        return Row(*name, note="left out: no time was left")
    try:
        return scenario()
    except Exception as error:
        return Row(*name, note=f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def run_all(bench: Bench, deadline: float, *, with_trl: bool) -> Iterable[Row]:
    """Every scenario, the smallest model first."""
    if bench.scale.online_model in bench.scale.models:
        yield attempt((bench.scale.online_model, "PPO round", "duiqi"), lambda: ppo_row(bench), deadline)
    for model in bench.scale.models:
        yield from in_turn(model, "duiqi", DUIQI_WORK, duiqi_rows(bench, model), deadline)
        if with_trl:
            begin_memory(bench.device)
            yield from in_turn(model, "TRL", TRL_WORK, trl_rows(bench, model), deadline)
        begin_memory(bench.device)


def in_turn(
    model: str, who: str, names: Sequence[str], scenarios: Iterable[Callable[[], Row]], deadline: float
) -> Iterable[Row]:
    """The rows of some scenarios; their model is let go with this generator."""
    for work, scenario in zip(names, scenarios, strict=True):
        yield attempt((model, work, who), scenario, deadline)


def in_a_line(row: Row) -> str:
    """A row of the Markdown table."""
    share = "–" if row.share is None else f"{row.share:.1%}"
    numbers = [f"{row.seconds:.3f} s", f"{row.tokens_per_second:,.0f}", share, f"{row.peak_gib:.1f} GiB"]
    return " | ".join(["| " + row.model, row.work, row.who, *(numbers if row.seconds else ["–"] * 4), row.note + " |"])


def choose_device(name: str) -> torch.device:
    """The device asked for.

    Raises:
        BenchmarkError: It is CUDA, and there is none.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError("there is no CUDA GPU here: try --device cpu --tiny")
    return torch.device(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and little work, to see that it runs")
    parser.add_argument("--minutes", type=float, default=9, help="begin nothing new after so long")
    parser.add_argument("--models", help=f"only these, of {', '.join(FULL.models)}")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens computed at once")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out although it is installed")
    parser.add_argument("--folder", type=Path, default=BENCH / "gpu", help="for models, data and runs")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file too")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    device, scale = choose_device(args.device), SMALL if args.tiny else FULL
    if args.models:
        chosen = {name: config for name, config in scale.models.items() if name in args.models.split(",")}
        scale = replace(scale, models=chosen)
    ceilings = measure_ceilings(device, scale)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: bf16 matrix product {ceilings.flops / 1e12:.3g} TFLOP/s, ", end="")
    print(f"copy {ceilings.bandwidth / 1e9:.4g} GB/s\n", flush=True)
    print("| model | work | who | time | tokens/s | of the ceiling | peak memory | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    bench = Bench(device, scale, ceilings, args.folder, args.tokens)
    rows = []
    for row in run_all(bench, deadline, with_trl=not args.no_trl and find_spec("trl") is not None):
        print(in_a_line(row), flush=True)
        rows.append(row)
    if args.out:
        report = {"device": name, "torch": torch.__version__, **asdict(ceilings), "rows": [asdict(row) for row in rows]}
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if any(row.note.startswith("failed") for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main_guard(main)

"""What reads files that come from elsewhere, as functions of bytes; and the promise that every one of them keeps.

Whatever the bytes are: nothing but a `UserError` escapes, it does not take long, nothing is written outside the
directory it works in, and nothing is started.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import torch
import yaml
from peft import LoraConfig
from safetensors.torch import save
from torch import nn

from duiqi.data import loading
from duiqi.data.loading import Need, load_examples
from duiqi.data.named_templates import TEMPLATES
from duiqi.data.registry import DatasetSpec
from duiqi.data.streaming import ExampleStream
from duiqi.data.templates import from_dict, get_template
from duiqi.errors import DataError, UserError
from duiqi.guards.limits import at_most
from duiqi.inspection.check import check_dataset
from duiqi.journal.checksums import write_checksums
from duiqi.legacy.recipe import OwnRecipe, read_foreign
from duiqi.models.card import ModelCard, read_card
from duiqi.models.lineage import read_stack
from duiqi.models.loading import load_tokenizer, locate
from duiqi.models.old_files import read_value_head
from duiqi.settings.recipe import read_recipe, to_yaml
from duiqi.settings.resolve import dump, resolve
from duiqi.settings.stages import StageName
from duiqi.training.checkpoint import TrainerState, write_checkpoint
from duiqi.training.learner import Learner
from duiqi.training.schedule import Schedule
from duiqi.training.session import BestBy, Cadence, Session
from duiqi.types import Message
from tests.data.format_rows import GOOD_ROWS

SECONDS = 20.0
"""No input may take longer."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


@dataclass
class Overseer:
    """Sees, through Python's audit events, what a target writes and starts."""

    root: Path | None = None
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if event in _STARTS:
            self.seen.append(f"{event} {arguments[0]!r}")
        elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING) or event in _CHANGES:
            self._look_at(event, arguments[0])

    def _look_at(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(str(self.root)) and place != os.devnull and "__pycache__" not in place:
            self.seen.append(f"{event} {place}")


@cache
def overseer() -> Overseer:
    """The only one: an audit hook cannot be taken away again."""
    found = Overseer()
    sys.addaudithook(found)
    return found


@contextmanager
def overseen(root: Path) -> Iterator[None]:
    """Within this context everything that is written outside `root` or started is an error.

    Raises:
        AssertionError: Something was.
        TimeoutError: It took too long.
    """
    watch = overseer()
    watch.root, watch.seen = root.resolve(), []
    try:
        with at_most(SECONDS):
            yield
    finally:
        watch.root = None
    assert not watch.seen, watch.seen


Target = Callable[[Path, bytes], None]


def try_one(target: Target, root: Path, data: bytes) -> bool:
    """Give a target one input in an empty directory. Returns whether it was taken; else it was refused.

    Raises:
        BaseException: Anything that breaks the promise.
    """
    root = root.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(root)
    try:
        with overseen(root):
            target(root, data)
    except UserError:
        return False
    finally:
        os.chdir(before)
    return True


def dataset(root: Path, data: bytes) -> None:
    """A dataset file of any kind; the first byte says which."""
    kinds = (".jsonl", ".json", ".csv", ".txt", ".parquet")
    kind, data = kinds[data[0] % len(kinds) if data else 0], data[1:]
    file = root / f"rows{kind}"
    file.write_bytes(data)
    refusals = []
    specs = [DatasetSpec(str(file))]
    for need in get_args(Need):
        for forgiven in (0, 5):
            try:
                load_examples(specs, dataset_dir=root, need=need, seed=0, max_bad_rows=forgiven)
            except DataError as refusal:
                refusals.append(refusal)
    for streamed in ("demonstration", "text"):
        with suppress(DataError):
            ExampleStream(specs, dataset_dir=root, need=streamed, seed=0, buffer_size=2, max_bad_rows=5).take(3)
    with suppress(DataError):
        check_dataset(str(file), dataset_dir=str(root))
    if len(refusals) == 2 * len(get_args(Need)):
        raise refusals[0]


def registry(root: Path, data: bytes) -> None:
    """A dataset_info.json beside two data files."""
    (root / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    (root / "talks.json").write_text('[{"conversations": [{"from": "human", "value": "a"}]}]', encoding="utf-8")
    (root / "dataset_info.json").write_bytes(data)
    names = ["mine"]
    try:
        parsed = json.loads(data)
        names += [str(name) for name in parsed][:5] if isinstance(parsed, dict) else []
    except (ValueError, RecursionError):
        pass
    real, loading.read_hub = loading.read_hub, _no_hub
    try:
        refusal: DataError | None = None
        for name in names:
            try:
                load_examples([DatasetSpec(name)], dataset_dir=root, need="conversation", seed=0, max_bad_rows=5)
            except DataError as error:
                refusal = error
        if refusal is not None:
            raise refusal
    finally:
        loading.read_hub = real


def _no_hub(name: str, **_: Any) -> Any:
    raise DataError("there is no network here", where=name)


def template(_: Path, data: bytes) -> None:
    """A chat template, on conversations of one to three turns."""
    tokenizer = _tokenizer()
    tokenizer.chat_template = data.decode("utf-8", errors="replace") or "{{ messages }}"
    found = get_template(None, tokenizer)
    talk = [Message("user", "你好"), Message("assistant", "{{ 1 }}"), Message("user", "c")]
    for length in (1, 3):
        found.prompt_segments(talk[:length])
        found.answer_segment(talk[:length], "answer")
    from_dict(json.loads(json.dumps(found.to_dict())), tokenizer)


def recipe(root: Path, data: bytes) -> None:
    """A recipe, for every stage; what resolves is written and resolves to the same."""
    file = root / "recipe.yaml"
    file.write_bytes(data)
    read_recipe(file)
    refusals = []
    for stage in get_args(StageName):
        try:
            config = resolve(stage, recipe=file)
        except UserError as refusal:
            refusals.append(refusal)
            continue
        again = root / "again.yaml"
        again.write_text(to_yaml(dump(config)), encoding="utf-8", errors="surrogatepass")
        if b"\xed" not in again.read_bytes():
            assert resolve(stage, recipe=again) == config
    if len(refusals) == len(get_args(StageName)):
        raise refusals[0]


def old_recipe(root: Path, data: bytes) -> None:
    """A recipe that names its stage, LLaMA-Factory's or our own."""
    file = root / "recipe.yaml"
    file.write_bytes(data)
    found = read_foreign(file, ())
    if isinstance(found, OwnRecipe):
        resolve(found.stage, recipe=file, overrides=found.overrides)  # type: ignore[arg-type]
    else:
        found.refuse_troubles()
        resolve(found.command, overrides=found.given())  # type: ignore[arg-type]


def checkpoint(root: Path, data: bytes) -> None:
    """The state of a checkpoint, with checksums that fit it; the first byte says which file."""
    directory = root / "checkpoints" / "step-000003"
    shutil.copytree(_checkpoint(), directory)
    names = ("trainer_state.json", "trainer_state.safetensors", "checksums.json")
    name, data = names[data[0] % len(names) if data else 0], data[1:]
    (directory / name).write_bytes(data)
    if name != "checksums.json":
        write_checksums(directory)
    next(_session(root).steps())


def adapter(root: Path, data: bytes) -> None:
    """An adapter with its card; the first byte says which file."""
    files = {**_adapter_files()}
    names = (*files, "adapter_model.bin", "value_head.bin")
    name, data = names[data[0] % len(names) if data else 0], data[1:]
    if name == "adapter_model.bin":
        del files["adapter_model.safetensors"]
    files[name] = data
    for each, content in files.items():
        (root / each).write_bytes(content)
    read_card(root)
    read_stack(root)
    read_value_head(root)
    locate(str(root))


def tokenizer(root: Path, data: bytes) -> None:
    """The files of a tokenizer; the first byte says which."""
    files = {**_tokenizer_files()}
    names = tuple(files)
    name, data = names[data[0] % len(names) if data else 0], data[1:]
    files[name] = data
    for each, content in files.items():
        (root / each).write_bytes(content)
    load_tokenizer(str(root))


TARGETS: dict[str, Target] = {
    "dataset": dataset,
    "registry": registry,
    "template": template,
    "recipe": recipe,
    "old_recipe": old_recipe,
    "checkpoint": checkpoint,
    "adapter": adapter,
    "tokenizer": tokenizer,
}


# -- what targets start from -------------------------------------------------------------------------------------------


@cache
def _home() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="duiqi-fuzz-"))


@cache
def _tokenizer() -> Any:
    from duiqi.playground.tokenizer import train_tokenizer

    return train_tokenizer(["你好", "one two three", "1 + 1 = 2"] * 4, _home() / "tokenizer", vocab_size=300)


@cache
def _tokenizer_files() -> dict[str, bytes]:
    _tokenizer()
    return {path.name: path.read_bytes() for path in sorted((_home() / "tokenizer").iterdir()) if path.is_file()}


@cache
def _adapter_files() -> dict[str, bytes]:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], base_model_name_or_path="base")
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    where = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    weights = {f"{where}A.weight": torch.zeros(2, 8), f"{where}B.weight": torch.zeros(8, 2)}
    card = ModelCard("sft", "policy", "base", "0" * 16, template={"name": "zh_qa"}, parents=("runs/sft",))
    return {
        "adapter_config.json": json.dumps(fields, default=str).encode(),
        "duiqi.json": card.to_json().encode(),
        "adapter_model.safetensors": save(weights),
    }


def _value_head() -> bytes:
    """As `value_head.bin` was written in 2023."""
    written = BytesIO()
    torch.save({"summary.weight": torch.zeros(1, 8), "summary.bias": torch.zeros(1)}, written)
    return written.getvalue()


def _learner() -> Learner:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    learner = Learner(dict(layer.named_parameters()), Schedule(0.1, total_steps=10))
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    return learner


def _session(root: Path) -> Session:
    """A session about to go on in `root`, with a journal that only listens."""

    def nothing(*_: Any, **__: Any) -> None: ...

    run: Any = SimpleNamespace(
        stage="sft",
        directory=root,
        recorded={"parents": {"base_fingerprint": "0" * 16}}.get,
        is_resumed=True,
        checkpoint_dir=lambda step: root / "checkpoints" / f"step-{step:06d}",
        view=SimpleNamespace(note=nothing),
        **dict.fromkeys(("warn", "rewind", "link", "track", "event", "metrics"), nothing),
    )
    return Session(
        run,
        _learner(),
        cadence=Cadence(total_steps=10),
        save_model=nothing,
        evaluate=lambda _: {},
        best_by=BestBy(),
        rows_per_epoch=1,
        state=(lambda: {"kl": 0.1}, lambda state: nothing(float(state["kl"]))),
    )


@cache
def _checkpoint() -> Path:
    directory = _home() / "checkpoints" / "step-000003"
    state = _session(_home())._state_at(3)
    write_checkpoint(directory, TrainerState(3, state.tensors, state.notes), lambda _: None)
    return directory


@cache
def seeds() -> dict[str, list[bytes]]:
    """Good inputs, from which mutation begins."""
    rows = [
        '{"instruction": "q", "input": "", "output": "a", "history": [["a", "b"]], "system": "s"}\n',
        '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1}\n',
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n',
        '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}\n',
        '{"instruction": "q", "output": ["a", "b", "c"]}\n',
        '{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}\n',
        '{"text": "plain"}\n',
    ]
    entries = {
        "mine": {"file_name": "rows.jsonl", "columns": {"prompt": "instruction", "response": "output"}},
        "talks": {
            "file_name": "talks.json",
            "formatting": "sharegpt",
            "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
            "num_samples": 3,
            "ranking": False,
        },
        "hub": {"hf_hub_url": "owner/name", "subset": "zh", "split": "train", "file_sha1": "0" * 40, "system": "s"},
    }
    chat = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    files = [path.read_bytes() for path in sorted(_checkpoint().iterdir()) if path.is_file()]
    checkpoint_files = {path.name: path.read_bytes() for path in _checkpoint().iterdir() if path.is_file()}
    assert len(files) == 3
    settings = {
        "model_name_or_path": "base",
        "dataset": "rows.jsonl",
        "output_dir": "out",
        "learning_rate": "1e-5",
        "lora_target": "q_proj,v_proj",
        "save_total_limit": None,
        "plot_loss": True,
        "system": "你好: #",
    }
    factory = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": "base",
        "finetuning_type": "lora",
        "dataset": "a,b",
        "template": "qwen",
        "cutoff_len": 1024,
        "val_size": 0.1,
        "learning_rate": 1.0e-4,
        "bf16": True,
        "output_dir": "out",
    }
    checkpoint_names = ("trainer_state.json", "trainer_state.safetensors", "checksums.json")
    return {
        "dataset": [
            *(b"\0" + row.encode() for row in rows),
            *(b"\0" + json.dumps(row).encode() for row, _, examples in GOOD_ROWS if examples),
            *(b"\1[" + row.strip().encode() + b"]" for row in rows),
            b"\2instruction,output\nq,a\n",
            b"\3text\n",
        ],
        "registry": [json.dumps({name: entry}).encode() for name, entry in entries.items()]
        + [json.dumps(entries).encode()],
        "template": [chat.encode(), b"{% set x = namespace(a=1) %}{{ bos_token }}{{ messages[0]['content'] }}"],
        "recipe": [
            yaml.safe_dump(settings, allow_unicode=True).encode(),
            yaml.safe_dump({**settings, "reward_model": "rm.py:f@0.5", "advantage": "rloo"}).encode(),
        ],
        "old_recipe": [
            yaml.safe_dump(factory).encode(),
            yaml.safe_dump({**factory, "stage": "dpo", "pref_beta": 0.1, "lora_target": "all"}).encode(),
            json.dumps({**settings, "stage": "rm"}).encode(),
        ],
        "checkpoint": [bytes([i]) + checkpoint_files[name] for i, name in enumerate(checkpoint_names)],
        "adapter": [
            *(bytes([i]) + content for i, content in enumerate(_adapter_files().values())),
            bytes([len(_adapter_files()) + 1]) + _value_head(),
        ],
        "tokenizer": [bytes([i]) + content for i, content in enumerate(_tokenizer_files().values())],
    }


WORDS: dict[str, tuple[bytes, ...]] = {
    "template": (
        *(
            b"{{ ",
            b" }}",
            b"{% ",
            b" %}",
            b"messages",
            b"[0]",
            b".content",
            b"bos_token",
            b"| length",
            b"| join",
        ),
        *(b"{% for i in range(99) %}", b"{% endfor %}", b"{% if 1 %}", b"{% endif %}", b"raise_exception('no')"),
        *(b"''.__class__.__mro__[1].__subclasses__()", b"cycler.__init__.__globals__.os.popen('id')", b"* 10**5"),
        *(b"lipsum.__globals__", b"messages.append(1)", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", b"1/0"),
        *(b"{% include '/etc/passwd' %}", b"{% import 'os' as os %}", b"{{ '%9999d' % 1 }}", b"'a' * 9999"),
        *(b"strftime_now('%Y')", b"{{ messages | tojson }}", b"{{ self }}", b"{% set messages = 5 %}", b"namespace()"),
    ),
    "recipe": (
        *(
            b"&a ",
            b"*a",
            b"!!python/object/apply:os.system ['id']",
            b"!!binary ",
            b"<<: *a",
            b"? ",
            b"- ",
            b": ",
            b"\n",
        ),
        *(
            b"1e999",
            b"-1",
            b"null",
            b"true",
            b'"\\0"',
            b'"\\ud800"',
            b"0x10",
            b".nan",
            b".inf",
            b"[[[[",
            b"{a: b}",
            b"|",
        ),
        *(b"lora_rank: 8\n", b"output_dir: ../../x\n", b"seed: 99999999999999999999\n", b"stage: sft\n", b"---\n"),
        *(name.encode() for name in list(TEMPLATES)[:3]),
    ),
}
JSON_WORDS = (
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 5000, b'"\\ud800"', b'"\\u0000"', b"[" * 3000, b"{}", b"[]"),
    *(b'"../../../etc/passwd"', b'"/etc/passwd"', b'""', b'"' + b"x" * 5000 + b'"', b"\xff", b"{", b"}", b",", b":"),
    *(b'"file_name"', b'"columns"', b'"r"', b'"rank_pattern"', b'"target_modules"', b'"(a+)+$"', b'"auto_map"'),
)
"""What mutation puts in."""

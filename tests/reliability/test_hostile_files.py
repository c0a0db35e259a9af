"""Files that want more than to be read: nothing in them is run, nothing leads out of its directory."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec, resolve
from duiqi.data.templates import get_template
from duiqi.errors import DataError, ModelError, TemplateError
from duiqi.journal.run import linked_checkpoint
from duiqi.models.lineage import read_stack
from duiqi.types import Message
from tests.reliability.targets import overseen, seeds


def registry(directory: Path, **entry: Any) -> Path:
    (directory / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    "name", ["../secret.jsonl", "a/../../secret.jsonl", "/etc/passwd", "..\\secret.jsonl", "C:\\x"]
)
def test_a_registry_names_no_file_outside_its_directory(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="leads out of") as caught:
        resolve("mine", registry(data, file_name=name))
    assert "dataset: PATH" in str(caught.value.remedy)


def test_a_link_in_the_directory_may_lead_anywhere_for_the_user_put_it_there(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "large.jsonl").write_text('{"text": "rows"}\n', encoding="utf-8")
    (data / "rows.jsonl").symlink_to(tmp_path / "large.jsonl")
    loaded = load_examples(
        [DatasetSpec("mine")], dataset_dir=registry(data, file_name="rows.jsonl"), need="text", seed=0
    )
    assert [example.answers for example in loaded.examples] == [("rows",)]


@pytest.mark.parametrize("name", ["../owner", "/srv/data", "owner/name/more", ".", "owner name", "a/../b", "~/x"])
def test_a_name_on_the_hub_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="the name of a dataset on the hub"):
        resolve("mine", registry(tmp_path, hf_hub_url=name))
    with pytest.raises(DataError, match="the name of a dataset on the hub"):
        resolve(f"hub:{name}", tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("file_name", 5), ("columns", ["a"]), ("tags", {"role_tag": 1}), ("num_samples", "many"), ("system", ["s"])],
)
def test_an_entry_of_another_type_is_refused_by_its_key(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"mine: {key}.*found "):
        resolve("mine", registry(tmp_path, **{"file_name": "rows.jsonl", key: value}))


HOSTILE_TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch TOUCHED') }}",
    "{{ lipsum.__globals__['os'].popen('touch TOUCHED').read() }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ messages.__class__.__base__.__subclasses__()[40]('/etc/passwd').read() }}",
    "{% include '/etc/passwd' %}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{{ 1 / 0 }}",
    "{{ range(10 ** 12) | list }}",
    "{{ 'a' * 10 ** 14 }}",
    "{% for i in range(99999) %}{{ 'a' * 10 ** 8 }}{% endfor %}",
    "{{ ('%' ~ '9' * 12 ~ 'd') % 1 }}",
]


@pytest.mark.parametrize("source", HOSTILE_TEMPLATES)
def test_a_template_reaches_nothing_but_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.chat_template = source
    with overseen(tmp_path), pytest.raises(TemplateError, match="the chat template refuses the conversation"):
        get_template(None, tokenizer).prompt_segments([Message("user", "a")])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from duiqi.playground.tokenizer import train_tokenizer

    return train_tokenizer(["a b c"] * 4, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)


def test_a_template_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr("duiqi.data.templates.RENDERING_SECONDS", 0.2)
    loops = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    tokenizer.chat_template = loops
    with pytest.raises(TemplateError, match=r"longer than 0\.2 seconds"):
        get_template(None, tokenizer)


def test_a_template_that_writes_a_library_is_refused(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setattr("duiqi.data.templates.RENDERED_LENGTH", 1000)
    tokenizer.chat_template = "{{ 'word ' * 500 }}"
    with pytest.raises(TemplateError, match="more than 1,000 characters"):
        get_template(None, tokenizer)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    config, _, weights, _ = seeds()["adapter"]
    (tmp_path / "adapter_config.json").write_bytes(config[1:])
    (tmp_path / "adapter_model.safetensors").write_bytes(weights[1:])
    return tmp_path


def changed(adapter: Path, **fields: object) -> Path:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8")
    return adapter


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"r": 10**9}, "says rank 1000000000, but no side of its weights is longer than 8"),
        ({"rank_pattern": {"q_proj": 10**9}}, "says rank 1000000000"),
        ({"r": "eight"}, "r: Input should be a valid integer"),
        ({"target_modules": "(model.)+(layers.0.)*((.*)*)*$("}, "a name pattern in adapter_config.json cannot be used"),
        ({"rank_pattern": {"(([a-z_.0-9]+)+)+!": 2}}, "a name pattern in adapter_config.json cannot be used"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"layer_replication": [[0, 10**6]]}, "layer_replication"),
        ({"peft_type": "IA3"}, "is a IA3 adapter, not LoRA or a prefix"),
    ],
)
def test_an_adapter_s_configuration_asks_for_nothing_unreasonable(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], said: str
) -> None:
    monkeypatch.setattr("duiqi.models.adapter_files._PATTERN_SECONDS", 0.2)
    with pytest.raises(ModelError, match=said.replace("(", r"\(").replace("[", r"\[")):
        read_stack(changed(adapter, **fields))


class Touch:
    """What a pickle can do to whom opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_weights_that_are_a_program_are_not_run(adapter: Path, save: Callable[[object, Path], object]) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    save({"weight": Touch(adapter / "TOUCHED")}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        read_stack(adapter)
    assert not (adapter / "TOUCHED").exists()


def test_a_link_in_words_does_not_lead_out_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "last").write_text("checkpoints/step-000001\n", encoding="utf-8")
    (run / "best").write_text("../../elsewhere\n", encoding="utf-8")
    assert linked_checkpoint(run, "last") == run / "checkpoints" / "step-000001"
    assert linked_checkpoint(run, "best") is None

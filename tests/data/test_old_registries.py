"""The registries of both predecessors: every entry is usable, or refused when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duiqi.data.loading import Need, load_examples
from duiqi.data.registry import HubDataset, parse_dataset_spec, resolve
from duiqi.errors import DataError
from duiqi.types import Example, Message

Write = Callable[..., Path]

PROMPT_AND_HISTORY = {"prompt": "instruction", "query": "", "response": "output", "history": "history"}
INPUT_AND_TARGET = {"prompt": "input", "query": "", "response": "target", "history": ""}
MESSAGE_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
PAIRS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
PICTURES = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": MESSAGE_TAGS}

EFFICIENT_TUNING: dict[str, dict[str, Any]] = {
    "alpaca_en": {"hf_hub_url": "tatsu-lab/alpaca"},
    "alpaca_zh": {"file_name": "alpaca_data_zh_51k.json", "file_sha1": "0" * 40},
    "alpaca_gpt4_zh": {"file_name": "alpaca_gpt4_data_zh.json", "file_sha1": "0" * 40},
    "belle_0.5m": {"hf_hub_url": "BelleGroup/train_0.5M_CN"},
    "belle_multiturn": {"hf_hub_url": "BelleGroup/multiturn_chat_0.8M"},
    "belle_multiturn_chatglm": {"script_url": "belle_multiturn", "columns": PROMPT_AND_HISTORY},
    "firefly": {"hf_hub_url": "YeungNLP/firefly-train-1.1M", "columns": INPUT_AND_TARGET},
    "webqa": {"hf_hub_url": "suolyer/webqa", "columns": {**INPUT_AND_TARGET, "response": "output"}},
    "ultra_chat": {"script_url": "ultra_chat", "columns": PROMPT_AND_HISTORY},
    "example": {"script_url": "example_dataset", "columns": {**PROMPT_AND_HISTORY, "query": "input"}},
    "self_cognition": {"file_name": "self_cognition.json", "file_sha1": "0" * 40},
    "comparison_gpt4_zh": {"file_name": "comparison_gpt4_data_zh.json", "file_sha1": "0" * 40},
    "hh_rlhf_en": {"script_url": "hh_rlhf_en", "columns": PROMPT_AND_HISTORY},
    "oaast_rm_zh": {"file_name": "oaast_rm_zh.json", "file_sha1": "0" * 40},
    "adgen_dev": {"file_name": "adgen/dev.json", "columns": {**INPUT_AND_TARGET, "prompt": "content"}},
}
LLAMA_FACTORY: dict[str, dict[str, Any]] = {
    "identity": {"file_name": "identity.json"},
    "alpaca_zh": {"hf_hub_url": "llamafactory/alpaca_zh", "ms_hub_url": "x/alpaca_zh", "om_hub_url": "y/alpaca_zh"},
    "lima": {"hf_hub_url": "llamafactory/lima", "formatting": "sharegpt"},
    "openorca": {
        "hf_hub_url": "Open-Orca/OpenOrca",
        "columns": {"prompt": "question", "response": "response", "system": "system_prompt"},
    },
    "adgen_eval": {"hf_hub_url": "HasturOfficial/adgen", "split": "validation", "columns": {"prompt": "content"}},
    "ultrachat_200k": {
        "hf_hub_url": "HuggingFaceH4/ultrachat_200k",
        "split": "train_sft",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": MESSAGE_TAGS,
    },
    "glaive_toolcall_zh_demo": {
        "file_name": "tools.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
    "dpo_zh_demo": {"file_name": "dpo.json", "ranking": True, "formatting": "sharegpt", "columns": PAIRS},
    "dpo_mix_zh": {"hf_hub_url": "o/dpo", "subset": "zh", "ranking": True, "formatting": "sharegpt", "columns": PAIRS},
    "ultrafeedback": {
        "hf_hub_url": "llamafactory/ultrafeedback_binarized",
        "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    },
    "kto_en_demo": {
        "file_name": "kto.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": MESSAGE_TAGS,
    },
    "ultrafeedback_kto": {
        "file_name": "kto_plain.jsonl",
        "columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"},
    },
    "wiki_demo": {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}},
    "wikipedia_zh": {"hf_hub_url": "pleisto/wikipedia-cn", "columns": {"prompt": "completion"}},
    "starcoder_python": {"hf_hub_url": "bigcode/starcoderdata", "columns": {"prompt": "content"}, "folder": "python"},
    "openai_demo": {"file_name": "openai.json", "formatting": "openai"},
    "hh_rlhf_en": {"script_url": "hh_rlhf_en", "ranking": True, "formatting": "sharegpt"},
    "deepctrl": {"ms_hub_url": "deepctrl/deepctrl-sft-data"},
    "mllm_demo": {"file_name": "mllm_demo.json", **PICTURES},
    "bucket": {"cloud_file_name": "s3://bucket/rows.jsonl"},
}
REFUSED = {
    "deepctrl": "ms_hub_url cannot be read: it lies on ModelScope",
    "mllm_demo": "'images' is not supported: its rows speak about pictures",
    "bucket": "cloud_file_name cannot be read: it lies in cloud storage",
    "example": "found no examples.json",
}


@pytest.mark.parametrize("registry", [EFFICIENT_TUNING, LLAMA_FACTORY])
def test_every_entry_is_found_or_refused_with_the_reason(write: Write, registry: dict[str, Any]) -> None:
    directory = write("dataset_info.json", registry).parent
    for name, entry in registry.items():
        if name in REFUSED:
            with pytest.raises(DataError, match=REFUSED[name]):
                resolve(name, directory)
            continue
        source = resolve(name, directory)
        if "hf_hub_url" in entry:
            assert source.hub == HubDataset(
                entry["hf_hub_url"], entry.get("subset"), entry.get("split", "train"), entry.get("folder")
            )
        elif "file_name" in entry:
            assert source.path == directory / entry["file_name"]
            assert source.sha1 == entry.get("file_sha1")
        else:
            assert source.hub is not None
            assert source.format_name is not None


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def factory(write: Write) -> Path:
    """A directory with LLaMA-Factory's registry and small files of the kinds it names."""
    turns = [{"from": "human", "value": "q"}]
    told = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pair = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    write("dpo.json", [{"conversations": turns, **pair}])
    write("kto.json", [{"messages": told, "label": True}, {"messages": told, "label": False}])
    write("kto_plain.jsonl", [{"prompt": "q", "completion": "a", "label": False}])
    write("wiki_demo.txt", "one\ntwo\n")
    write("openai.json", [{"messages": told}])
    call = {"from": "function_call", "value": "{}"}
    plain = {"conversations": [*turns, {"from": "gpt", "value": "a"}], "tools": "[]"}
    write("tools.json", [plain, {"conversations": [*turns, call], "tools": '[{"name": "f"}]'}])
    return write("dataset_info.json", LLAMA_FACTORY).parent


def load(directory: Path, dataset: str, need: Need, **options: Any) -> list[Example]:
    return load_examples(parse_dataset_spec(dataset), dataset_dir=directory, need=need, seed=0, **options).examples


def test_the_kinds_of_llama_factory_are_read(factory: Path) -> None:
    (pair,) = load(factory, "dpo_zh_demo", "ranking")
    assert (pair.prompt, pair.answers) == ((Message("user", "q"),), ("chosen", "rejected"))
    assert [example.liked for example in load(factory, "kto_en_demo,ultrafeedback_kto", "feedback")] == [
        True,
        False,
        False,
    ]
    assert [example.answers for example in load(factory, "wiki_demo", "text")] == [("one",), ("two",)]
    assert [example.answers for example in load(factory, "openai_demo", "demonstration")] == [("a",)]


def test_a_row_that_calls_tools_is_refused_and_one_that_does_not_is_read(factory: Path) -> None:
    with pytest.raises(DataError, match="tools: found tools to call, which duiqi does not train on"):
        load(factory, "glaive_toolcall_zh_demo", "demonstration")
    assert len(load(factory, "glaive_toolcall_zh_demo", "demonstration", max_bad_rows=1)) == 1


def test_the_files_of_a_script_are_read_without_it(write: Write) -> None:
    write("belle_multiturn/belle_multiturn.py", "raise SystemExit('run')")
    belle = {"instruction": "Human:一\nAssistant:二\nHuman:三\nAssistant:四\nHuman:五\nAssistant:", "output": "六"}
    write("belle_multiturn/multiturn_chat_0.8M.json", lines(belle))
    write("ultra_chat/train_0.jsonl", lines({"id": "0", "data": ["q", "a"]}))
    write("ultra_chat/train_1.jsonl", lines({"id": "1", "data": ["q1", "a1", "q2", "a2"]}))
    write("ultra_chat/notes.txt", "not data")
    pair = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    write("hh_rlhf_en/helpful-base/train.jsonl", lines(pair))
    write("hh_rlhf_en/helpful-base/test.jsonl", lines(pair, pair))
    row = {"instruction": "你好", "input": "", "output": "好", "history": [["在吗", "在"]]}
    write("example_dataset/examples.json", [row])
    directory = write("dataset_info.json", EFFICIENT_TUNING).parent
    (example,) = load(directory, "belle_multiturn_chatglm", "demonstration")
    assert [message.content for message in example.prompt] == ["一", "二", "三", "四", "五"]
    assert [len(e.prompt) for e in load(directory, "ultra_chat", "demonstration")] == [1, 3]
    assert [e.answers for e in load(directory, "hh_rlhf_en", "ranking")] == [("chosen", "rejected")]
    assert [len(e.prompt) for e in load(directory, "example", "demonstration")] == [3]

"""dataset_info.json of both predecessors, and names that need none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duiqi.data.registry import DatasetSpec, HubDataset, parse_dataset_spec, resolve
from duiqi.errors import DataError

Write = Callable[..., Path]


def registry_of(write: Write, **entries: dict[str, Any]) -> Path:
    return write("dataset_info.json", entries).parent


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("a", [DatasetSpec("a")]),
        ("a,b@1000", [DatasetSpec("a"), DatasetSpec("b", 1000)]),
        ("a#5, b@all", [DatasetSpec("a", 5), DatasetSpec("b")]),
        ("data/me@home.json", [DatasetSpec("data/me@home.json")]),
        ("data/me@home.json@7", [DatasetSpec("data/me@home.json", 7)]),
        ("a[hc3], b[single_round]@9", [DatasetSpec("a", format="hc3"), DatasetSpec("b", 9, "single_round")]),
    ],
)
def test_a_dataset_setting_is_a_list_of_names_with_caps(text: str, specs: list[DatasetSpec]) -> None:
    assert parse_dataset_spec(text) == specs


@pytest.mark.parametrize("text", ["", "a,,b", "a@0", "a[hc33]"])
def test_an_empty_name_or_cap_or_an_unknown_format_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="dataset: "):
        parse_dataset_spec(text)


def test_a_path_needs_no_registry(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("rows.json", "[]")
    assert resolve(str(path), tmp_path / "none").path == path
    assert resolve("rows.json", tmp_path).path == path
    monkeypatch.chdir(tmp_path)
    assert resolve("rows.json", "none").path == Path("rows.json")


def test_an_unknown_name_is_refused_with_near_names_and_the_place_of_the_registry(write: Write) -> None:
    directory = registry_of(write, alpaca_zh={"file_name": "a.json"})
    with pytest.raises(DataError, match=r"no dataset and no file is named 'alpaca_hz'.*dataset_info\.json") as caught:
        resolve("alpaca_hz", directory)
    assert caught.value.remedy == "did you mean alpaca_zh?"


def test_the_hub_comes_before_the_script_and_the_script_before_the_file(write: Write) -> None:
    directory = registry_of(
        write,
        hub={"hf_hub_url": "owner/name", "script_url": "s", "file_name": "a.json", "subset": "zh", "split": "test"},
        script={"script_url": "belle_multiturn", "file_name": "a.json"},
        other_script={"script_url": "of_my_own", "file_name": "a.json"},
        folder={"hf_hub_url": "owner/code", "folder": "python"},
    )
    assert resolve("hub", directory).hub == HubDataset("owner/name", "zh", "test")
    assert resolve("hub:owner/name", directory).hub == HubDataset("owner/name")
    assert resolve("folder", directory).hub == HubDataset("owner/code", folder="python")
    assert resolve("script", directory).hub == HubDataset("BelleGroup/multiturn_chat_0.8M")
    assert resolve("other_script", directory).path == directory / "a.json"


def test_load_from_chooses_among_the_places_of_an_entry(write: Write) -> None:
    places = {"hf_hub_url": "owner/name", "ms_hub_url": "owner/name", "file_name": "a.json"}
    directory = registry_of(
        write, **{place: {**places, "load_from": place} for place in ("hf_hub", "ms_hub", "om_hub", "file")}
    )
    assert resolve("hf_hub", directory).hub == HubDataset("owner/name")
    assert resolve("file", directory).path == directory / "a.json"
    with pytest.raises(DataError, match="ms_hub_url cannot be read: it lies on ModelScope"):
        resolve("ms_hub", directory)
    with pytest.raises(DataError, match="expected om_hub_url, because of load_from: om_hub"):
        resolve("om_hub", directory)


def test_a_format_is_named_by_the_entry_or_by_the_setting(write: Write) -> None:
    directory = registry_of(write, a={"file_name": "f", "format": "hc3_prefer_human"}, b={"file_name": "f"})
    assert resolve("a", directory).format_name == "hc3_prefer_human"
    assert resolve("a", directory, format_name="hc3").format_name == "hc3"
    assert resolve("b", directory).format_name is None


def test_columns_are_renamed_and_those_not_named_are_absent(write: Write) -> None:
    columns = {"prompt": "input", "query": "", "response": "target", "history": ""}
    column_map = resolve("firefly", registry_of(write, firefly={"file_name": "f", "columns": columns})).column_map
    assert column_map is not None
    assert column_map.rename({"input": "q", "target": "a", "kind": "x"}) == {"instruction": "q", "output": "a"}


def test_without_columns_nothing_is_renamed(write: Write) -> None:
    assert resolve("a", registry_of(write, a={"file_name": "f"})).column_map is None


def test_sharegpt_messages_are_translated_by_their_tags(write: Write) -> None:
    entry = {
        "file_name": "f",
        "formatting": "sharegpt",
        "columns": {"messages": "turns", "chosen": "good"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "Q", "assistant_tag": "A", "system_tag": "S"},
    }
    column_map = resolve("a", registry_of(write, a=entry)).column_map
    assert column_map is not None
    turns = [{"who": "S", "said": "0"}, {"who": "Q", "said": "1"}]
    assert column_map.rename({"turns": turns, "good": {"who": "A", "said": "2"}}) == {
        "messages": [{"role": "system", "content": "0"}, {"role": "user", "content": "1"}],
        "chosen": {"role": "assistant", "content": "2"},
    }


def test_sharegpt_without_columns_reads_conversations(write: Write) -> None:
    column_map = resolve("a", registry_of(write, a={"file_name": "f", "formatting": "sharegpt"})).column_map
    assert column_map is not None
    assert column_map.rename({"conversations": [{"from": "gpt", "value": "x"}]}) == {
        "messages": [{"role": "assistant", "content": "x"}]
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_nam": "f"}, "unknown key 'file_nam'"),
        ({"file_name": "f", "formatting": "xml"}, "found formatting 'xml'"),
        ({"file_name": "f", "columns": {"promt": "a"}}, "unknown column 'promt'"),
        ({"file_name": "f", "columns": {"images": "a"}}, "'images' is not supported"),
        ({"columns": {}}, "found no source"),
        ({"file_name": "f", "format": "hc33"}, "unknown format 'hc33'"),
        ({"file_name": "f", "formatting": "sharegpt", "tags": {"rol_tag": "a"}}, "unknown tag 'rol_tag'"),
        ({"file_name": "f", "split": "test"}, "split chooses a part of a hub dataset"),
        ({"script_url": "of_my_own"}, "script_url cannot be read: it is a program"),
        ({"script_url": "../example_dataset"}, "script_url '../example_dataset' leads out of"),
        ({"script_url": "example_dataset"}, r"found no examples\.json in .*example_dataset"),
        ({"ms_hub_url": "owner/name"}, "ms_hub_url cannot be read: it lies on ModelScope"),
        ({"cloud_file_name": "s3://bucket/f.jsonl"}, "cloud_file_name cannot be read: it lies in cloud storage"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_only_when_asked_for(
    write: Write, entry: dict[str, Any], message: str
) -> None:
    directory = registry_of(write, good={"file_name": "f"}, bad=entry)
    assert resolve("good", directory).path == directory / "f"
    with pytest.raises(DataError, match=message):
        resolve("bad", directory)


def test_a_broken_registry_is_refused_with_its_line(write: Write) -> None:
    directory = write("dataset_info.json", '{\n "a": {,\n}').parent
    with pytest.raises(DataError, match=r"dataset_info\.json:2: not valid JSON"):
        resolve("a", directory)


def test_a_registry_in_another_encoding_is_refused(write: Write) -> None:
    directory = write("dataset_info.json", '{"数据": {}}'.encode("gb18030")).parent
    with pytest.raises(DataError, match=r"dataset_info\.json:1: found byte 0x\w\w at position 2, expected UTF-8"):
        resolve("a", directory)

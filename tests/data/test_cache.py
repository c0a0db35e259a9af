"""The cache of prepared rows: what was kept comes back, damage is seen, and everything that matters is in the key."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from tests.models.ports.tiny_releases import train_first, train_second
from tiny_tokenizers import CHATML, build_tokenizer

from duiqi.data import cache as cache_module
from duiqi.data.cache import RowCache, cache_home
from duiqi.data.cache_key import cache_key, describe, template_identity, tokenizer_identity
from duiqi.data.encoding import token_budget, tokenize
from duiqi.data.registry import ColumnMap, DatasetSource, HubDataset, resolve
from duiqi.data.templates import get_template
from duiqi.models.ports.chatglm_tokenizer import ChatGLM2Tokenizer, ChatGLMTokenizer

KEY = "a" * 64
COLUMNS = {"tokens": numpy.arange(1000, dtype="i"), "cut": numpy.empty(0, dtype="B")}


@pytest.fixture
def store(tmp_path: Path) -> RowCache:
    return RowCache(tmp_path / "rows")


def kept(store: RowCache, key: str = KEY, facts: object = None) -> Path:
    assert store.keep(key, {"train": COLUMNS}, facts) == ""
    return store.place(key)


def test_what_was_kept_is_found_again_and_mapped_not_read(store: RowCache) -> None:
    assert store.find(KEY) == (None, "")
    kept(store, facts={"notes": ["你好"]})
    entry, problem = store.find(KEY)
    assert entry is not None
    assert (problem, entry.facts) == ("", {"notes": ["你好"]})
    assert entry.parts["train"]["tokens"].tolist() == list(range(1000))
    assert entry.parts["train"]["cut"].tolist() == []
    assert isinstance(entry.parts["train"]["tokens"], numpy.memmap)
    assert store.find("b" * 64) == (None, "")


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)


@pytest.mark.parametrize("name", ["train.tokens.npy", "train.cut.npy", "facts.json", "checksums.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_entry_is_not_used_and_what_is_wrong_is_said(store: RowCache, name: str, damage) -> None:  # type: ignore[no-untyped-def]
    place = kept(store)
    damage(place / name)
    entry, problem = store.find(KEY)
    assert entry is None
    assert problem.startswith(f"the rows kept in {place} are damaged (")
    assert problem.endswith("): they are prepared anew")
    kept(store)  # in its place
    assert store.find(KEY)[0] is not None


def test_nothing_is_left_of_a_draft_that_could_not_be_finished(
    store: RowCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_checksums", fail)
    problem = store.keep(KEY, {"train": COLUMNS}, None)
    assert problem == f"the prepared rows cannot be kept in {store.place(KEY).parent} (No space left on device)"
    assert list(store.place(KEY).parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be kept" in RowCache(tmp_path / "file" / "rows").keep(KEY, {"train": COLUMNS}, None)


def named(name: str) -> str:
    """The key of some rows: a checksum, as in life."""
    return hashlib.sha256(name.encode()).hexdigest()


def test_what_is_unused_for_longest_makes_room_and_what_others_keep_there_stays(
    store: RowCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    old, used, young, new = map(named, ("old", "older but used", "young", "new"))
    killed, at_work = f".{named('killed')}.x1", f".{named('at work')}.x2"
    for hours, key in ((50, old), (60, used), (30, young), (40, killed), (10, at_work)):
        os.utime(kept(store, key), (now, now - 3600 * hours))
    home = store.place("x").parent
    for folder in (".git", "thesis", "deadbeef"):
        (home / folder).mkdir()
        (home / folder / "mine").write_bytes(bytes(10**6))
        os.utime(home / folder, (now, now - 3600 * 90))
    assert store.find(used)[0] is not None
    size = sum(file.stat().st_size for file in store.place(old).iterdir())
    monkeypatch.setattr(cache_module, "LARGEST_BYTES", 3 * size + size // 2)
    kept(store, new)
    assert {path.name for path in home.iterdir()} == {used, young, new, at_work, ".git", "thesis", "deadbeef"}
    assert all((home / folder / "mine").is_file() for folder in (".git", "thesis", "deadbeef"))


BUILDER = """
import sys, numpy
from pathlib import Path
from duiqi.data.cache import RowCache
store = RowCache(Path(sys.argv[1]))
for round in range(40):
    problem = store.keep("k", {"train": {"tokens": numpy.arange(5000)}}, {"by": sys.argv[2]})
    assert not problem, problem
    entry, problem = store.find("k")
    if entry is not None:
        assert entry.parts["train"]["tokens"].tolist() == list(range(5000))
"""


def test_processes_that_keep_the_same_rows_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    script = textwrap.dedent(BUILDER)
    builders = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(n)], stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    for builder in builders:
        _, errors = builder.communicate(timeout=120)
        assert builder.returncode == 0, errors
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
    entry, problem = RowCache(tmp_path).find("k")
    assert entry is not None, problem


def test_it_lies_in_the_user_s_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_home() == Path("/somewhere/duiqi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "duiqi"


class TestKey:
    def test_equal_parts_have_equal_keys_in_every_process(self) -> None:
        parts = "seed=1, budget=token_budget(100), names={'b', 'a', 'c'}, files={'x': '1', 'y': '2'}"
        code = f"from duiqi.data.cache_key import *; from duiqi.data.encoding import *; print(cache_key({parts}))"
        keys = {
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **seed}
            ).stdout.strip()
            for seed in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
        }
        ours = cache_key(seed=1, budget=token_budget(100), names={"c", "b", "a"}, files={"y": "2", "x": "1"})
        assert keys == {ours}

    def test_every_part_counts(self) -> None:
        base = {"seed": 1, "budget": token_budget(100), "files": {"x": "1"}}
        others = [
            {**base, "seed": 2},
            {**base, "budget": token_budget(100, max_answer_tokens=9)},
            {**base, "files": {"x": "2"}},
            {**base, "files": {"y": "1"}},
            {**base, "more": None},
        ]
        assert len({cache_key(**parts) for parts in (base, *others)}) == 6

    def test_code_that_changes_changes_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = cache_key(seed=1)
        monkeypatch.setattr("duiqi.data.cache_key.code_identity", lambda: "changed")
        assert cache_key(seed=1) != before

    def test_what_cannot_be_told_apart_is_refused(self) -> None:
        with pytest.raises(TypeError, match="nothing tells"):
            describe(object())

    def test_every_kind_of_source_can_be_told_apart(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('[{"text": "a"}]')
        source = resolve(str(tmp_path / "a.json"), tmp_path)
        mapped = replace(source, column_map=ColumnMap({"prompt": "q"}, {"role_tag": "r"}), system="s", num_samples=3)
        sources = [source, mapped, DatasetSource("hub", hub=HubDataset("owner/name"))]
        assert len({str(describe(each)) for each in sources}) == 3

    def test_a_tokenizer_is_known_by_its_contents(self) -> None:
        same = {tokenizer_identity(build_tokenizer()) for _ in range(2)}
        added = build_tokenizer()
        added.add_tokens(["<new>"])
        other_end = build_tokenizer()
        other_end.eos_token = "<|im_end|>"
        others = {tokenizer_identity(each) for each in (build_tokenizer(adds_bos=True), added, other_end)}
        assert (len(same), len(others | same)) == (1, 4)

    def test_a_tokenizer_in_python_is_known_by_its_files_and_gives_the_same_ids_in_company(
        self, tmp_path: Path
    ) -> None:
        releases = [ChatGLMTokenizer(str(train_first(tmp_path))), ChatGLM2Tokenizer(str(train_second(tmp_path)))]
        again = ChatGLMTokenizer(releases[0].vocab_file)
        other = ChatGLMTokenizer(releases[0].vocab_file, num_image_tokens=20000)
        assert tokenizer_identity(releases[0]) == tokenizer_identity(again)
        assert len({tokenizer_identity(each) for each in (*releases, other)}) == 3
        texts = ["你好", "", "A b  c", "[gMASK]", "你好"]
        for tokenizer in releases:
            alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            assert tokenize(tokenizer, texts) == alone

    def test_a_template_is_known_by_all_its_text_and_by_what_it_writes_today(self) -> None:
        tokenizer = build_tokenizer()
        named = [
            get_template("zh_qa", tokenizer),
            get_template("qa", tokenizer),
            get_template("qa", tokenizer, system="Be kind."),
            get_template("qa", tokenizer, source_prefix="P"),
            get_template("qa", build_tokenizer(adds_bos=True)),
        ]
        chatting = []
        for today in ("Monday", "Tuesday"):
            tokenizer = build_tokenizer(chat_template="{{ today }}" + CHATML)
            write = tokenizer.apply_chat_template
            tokenizer.apply_chat_template = lambda *args, today=today, write=write, **kw: write(
                *args, today=today, **kw
            )
            chatting.append(get_template(None, tokenizer))
        assert chatting[0].to_dict() == chatting[1].to_dict()
        assert len({str(describe(template_identity(each))) for each in (*named, *chatting)}) == 7

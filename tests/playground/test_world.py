"""The datasets of the built-in world: deterministic, disjoint where promised, of the promised quality."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest
from transformers import AutoTokenizer

from duiqi.playground.files import WorldFiles, WorldSizes, alpaca_row, write_world
from duiqi.playground.gold import GoldReward
from duiqi.playground.questions import read_question
from duiqi.playground.tokenizer import train_tokenizer
from duiqi.playground.world import World
from duiqi.types import Example, Message, Origin

GOLD = GoldReward()
SIZES = WorldSizes(pretrain=60, demonstrations=40, preferences=40, held_out_pairs=20, prompts=30, held_out_prompts=25)


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> WorldFiles:
    return write_world(tmp_path_factory.mktemp("world"), 3, sizes=SIZES)


def question_key(example: Example) -> tuple[str, str, str, int]:
    question = read_question(example.prompt)
    return question.person.name.en, question.kind, question.language, question.wording


def quality(example: Example) -> float:
    return GOLD.score(example.prompt, example.answers[0]).total


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(world: World) -> None:
    assert World(0).demonstrations(20) == world.demonstrations(20)
    assert World(0).preferences(20) == world.preferences(20)
    assert World(1).demonstrations(20) != world.demonstrations(20)


def test_fewer_rows_are_a_beginning_of_more_rows(world: World) -> None:
    assert world.demonstrations(40)[:10] == world.demonstrations(10)
    assert world.held_out_prompts(300)[:200] == world.held_out_prompts(200)


def test_held_out_prompts_are_distinct_and_their_questions_unseen(world: World) -> None:
    held_out = world.held_out_prompts(240)
    assert len({example.prompt for example in held_out}) == 240
    training = [*world.demonstrations(600), *world.preferences(300), *world.prompts(600)]
    assert {question_key(example) for example in held_out}.isdisjoint(question_key(example) for example in training)
    assert {question_key(e) for e in world.held_out_pairs(200)}.isdisjoint(question_key(e) for e in training)


def test_one_wording_in_five_is_held_out_for_every_villager_kind_and_language(world: World) -> None:
    assert (len(world.held_out), len(world.training)) == (60, 240)
    assert len({(q.person, q.kind, q.language) for q in world.held_out}) == 60


def test_no_held_out_question_is_put_to_its_villager_in_the_pretraining_text(world: World) -> None:
    chats = [text.answers[0] for text in world.pretraining_texts(800)]
    chats = [chat for chat in chats if chat.startswith(("问", "Question", "<|"))]
    assert len(chats) > 300
    held_out = {(q.person.name.en, q.kind, q.language, q.wording) for q in world.held_out}
    for chat in chats:
        question = read_question(chat)
        assert (question.person.name.en, question.kind, question.language, question.wording) not in held_out


def test_demonstrations_are_mediocre(world: World) -> None:
    assert 0.5 < mean(quality(example) for example in world.demonstrations(1000)) < 0.62


def test_held_out_pairs_are_in_the_true_order(world: World) -> None:
    for example in world.held_out_pairs(200):
        better, worse = (GOLD.score(example.prompt, text).total for text in example.answers)
        assert better > worse


def test_preferences_are_noisy_but_mostly_right(world: World) -> None:
    labels = [
        GOLD.score(example.prompt, example.answers[0]).total > GOLD.score(example.prompt, example.answers[1]).total
        for example in world.preferences(1000)
    ]
    assert 0.90 < mean(labels) < 0.99


def test_an_example_becomes_an_alpaca_row_with_history_and_system() -> None:
    prompt = (Message("system", "S"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    row = alpaca_row(Example("ranking", prompt, ("good", "bad"), Origin("test")))
    assert row == {
        "instruction": "c",
        "input": "",
        "output": ["good", "bad"],
        "history": [["a", "b"]],
        "system": "S",
    }
    assert "output" not in alpaca_row(Example("prompt", prompt, (), Origin("test")))


def test_the_files_hold_as_many_rows_as_asked_and_are_all_registered(files: WorldFiles) -> None:
    registry = json.loads(files.dataset_info.read_text(encoding="utf-8"))
    rows = {
        name: sum(1 for line in (files.directory / entry["file_name"]).open(encoding="utf-8") if line[0] == "{")
        for name, entry in registry.items()
    }
    assert rows == {
        "pretrain": 60,
        "sft": 40,
        "rm": 40,
        "rm_heldout": 20,
        "ppo_prompts": 30,
        "heldout_prompts": 25,
    }
    assert len(json.loads(files.rm.read_text(encoding="utf-8"))[0]["output"]) == 2


def test_the_files_are_the_same_bytes_each_time(files: WorldFiles, tmp_path: Path) -> None:
    again = write_world(tmp_path, 3, sizes=SIZES)
    for name in ("pretrain", "sft", "rm", "rm_heldout", "ppo_prompts", "heldout_prompts", "dataset_info"):
        assert getattr(again, name).read_bytes() == getattr(files, name).read_bytes()


def test_the_tokenizer_loads_again_and_writes_turns_as_its_template_says(world: World, tmp_path: Path) -> None:
    texts = [example.answers[0] for example in world.pretraining_texts(400)]
    trained = train_tokenizer(texts, tmp_path, vocab_size=700)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == len(trained) == 700
    marks = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert [tokenizer(mark).input_ids for mark in marks] == [[0], [1], [2], [3], [4]]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    turns = [
        {"role": "system", "content": "你是阿海。"},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "你好"},
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|system|>你是阿海。<|user|>Hi?<|assistant|>Yes.<|end|><|user|>你好<|assistant|>"
    for text in (rendered, "\U0001f980 ünknown\n  文字 \t"):
        assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text


def test_the_marked_chats_in_the_pretraining_text_are_what_the_chat_template_writes(
    world: World, tmp_path: Path
) -> None:
    texts = [example.answers[0] for example in world.pretraining_texts(400)]
    tokenizer = train_tokenizer(texts, tmp_path, vocab_size=400)
    chat = next(text for text in texts if text.startswith("<|user|>") and "<|end|>" not in text)
    user, assistant = chat.removeprefix("<|user|>").split("<|assistant|>")
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == chat + "<|end|>"

"""Many requests against a server that misbehaves: every question once, nothing lost, no cap passed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.curation.stand_in import KEY, Body, Mishap, StandIn, stand_in

import duiqi.curation.crew
from duiqi.curation.asking import HOPELESS, Outcome, Question, ask_all
from duiqi.curation.crew import Effort, Malformed
from duiqi.curation.endpoint import Endpoint, EndpointError, Usage
from duiqi.curation.ledger import SPENT, Ledger
from duiqi.curation.paid import PaidAnswers
from duiqi.curation.spending import Caps, Prices, most_of
from duiqi.errors import RunError, SettingsError


def echo(body: Body) -> str:
    return f"to {body['messages'][0]['content']}"


def question(text: str) -> Question[str]:
    def read(answer: str) -> str:
        if answer != f"to {text}":
            raise Malformed(f"it is {answer!r}")
        return answer

    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 10}
    return Question(lambda: body, read)


def asked(
    server: StandIn,
    folder: Path,
    texts: list[str],
    *,
    caps: Caps | None = None,
    concurrency: int = 8,
    max_retries: int = 6,
    timeout_seconds: float = 5.0,
    **more: Any,
) -> Outcome[str]:
    return ask_all(
        [question(text) for text in texts],
        Endpoint(server.url, KEY, timeout_seconds),
        paid=PaidAnswers(folder),
        ledger=Ledger(folder),
        caps=caps or Caps(),
        effort=Effort(concurrency, max_retries),
        **more,
    )


TEXTS = [str(number) for number in range(40)]
ANSWERS: list[str | None] = [f"to {text}" for text in TEXTS]


def in_turn(body: Body, before: int) -> Mishap | None:
    """Every kind of failure, one after the other, to every question; then the answer."""
    trouble = [
        Mishap(429, {"Retry-After": "0.01"}, "{}"),
        Mishap(500, body="oops"),
        Mishap(body='{"choices": ['),
        Mishap(drops=True),
        Mishap(breaks_off=True),
        Mishap(503, body=json.dumps({"error": {"message": f"bad key {KEY}"}})),
    ]
    return trouble[(before + int(body["messages"][0]["content"])) % 6] if before < 6 else None


def test_every_question_gets_its_answer_whatever_goes_wrong_on_the_way(tmp_path: Path) -> None:
    with stand_in(echo, in_turn) as server:
        outcome = asked(server, tmp_path, TEXTS)
    assert outcome.answers == ANSWERS
    assert outcome.failures == {}
    assert set(server.answered.values()) == {1}
    assert outcome.account.retries == 6 * len(TEXTS)
    assert outcome.account.used.requests == 7 * len(TEXTS) == len(server.bodies)
    assert outcome.account.uncounted == 3 * len(TEXTS)  # malformed, dropped, broken off: nobody knows what they cost


def test_answers_that_come_too_late_are_asked_for_again(tmp_path: Path) -> None:
    with stand_in(echo, lambda _, before: Mishap(delay_seconds=0.6) if before < 2 else None) as server:
        outcome = asked(server, tmp_path, TEXTS[:8], timeout_seconds=0.2)
    assert outcome.answers == ANSWERS[:8]
    assert outcome.account.retries == 16


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    with stand_in(echo) as server:
        first = asked(server, tmp_path, TEXTS[:15])
        second = asked(server, tmp_path, TEXTS)
    assert second.answers == ANSWERS
    assert set(server.seen.values()) == {1}
    assert (first.account.from_cache, second.account.from_cache) == (0, 15)
    assert second.account.used == Usage(40, 4000, 400)
    assert second.account.used_now == Usage(25, 2500, 250)


def test_the_same_question_twice_is_asked_once(tmp_path: Path) -> None:
    with stand_in(echo) as server:
        outcome = asked(server, tmp_path, ["1", "2", "1", "1"])
    assert outcome.answers == ["to 1", "to 2", "to 1", "to 1"]
    assert len(server.bodies) == 2


def test_as_many_at_once_as_allowed_and_no_more(tmp_path: Path) -> None:
    with stand_in(echo, lambda *_: Mishap(delay_seconds=0.05)) as server:
        asked(server, tmp_path, TEXTS, concurrency=5)
    assert server.most_at_once == 5


def test_a_failure_after_the_last_retry_does_not_stop_the_others(tmp_path: Path) -> None:
    def some_fail(body: Body, _before: int) -> Mishap | None:
        return Mishap(500, body="never") if body["messages"][0]["content"] in ("3", "7") else None

    with stand_in(echo, some_fail) as server:
        outcome = asked(server, tmp_path, TEXTS, max_retries=2)
    assert outcome.failures == {3: "the server answered 500: never", 7: "the server answered 500: never"}
    assert [place for place, answer in enumerate(outcome.answers) if answer is None] == [3, 7]
    assert sum(body["messages"][0]["content"] == "3" for body in server.bodies) == 3


def test_a_refusal_of_one_request_is_not_sent_again(tmp_path: Path) -> None:
    with stand_in(echo, lambda body, _: Mishap(400, body="no") if "3" in str(body) else None) as server:
        outcome = asked(server, tmp_path, ["1", "3"])
    assert outcome.failures == {1: "the server answered 400: no"}
    assert len(server.bodies) == 2


def test_an_answer_that_cannot_be_read_is_asked_for_again(tmp_path: Path) -> None:
    said = iter(["nonsense", "nonsense", "to 1"])
    with stand_in(lambda _: next(said)) as server:
        outcome = asked(server, tmp_path, ["1"])
    assert outcome.answers == ["to 1"]
    assert outcome.account.used == Usage(3, 300, 30)  # all three were paid for


def test_a_wrong_key_ends_everything_at_once(tmp_path: Path) -> None:
    wrong = Mishap(401, body=f"{KEY} is wrong")
    with stand_in(echo, lambda *_: wrong) as server, pytest.raises(EndpointError, match="OPENAI_API_KEY") as caught:
        asked(server, tmp_path, TEXTS, concurrency=2)
    assert len(server.bodies) <= 2
    assert KEY not in str(caught.value)


def test_an_endpoint_that_never_answers_is_given_up(tmp_path: Path) -> None:
    many, down = [str(number) for number in range(500)], Mishap(500, body="down")
    message = r"gave no answer to \d+ questions; the last time: the server answered 500"
    with stand_in(echo, lambda *_: down) as server, pytest.raises(EndpointError, match=message):
        asked(server, tmp_path, many, max_retries=0)
    assert HOPELESS <= len(server.bodies) < 400  # the others may be a little ahead of who counts


def test_everybody_pauses_when_the_server_asks_for_it(tmp_path: Path) -> None:
    busy = threading.Event()

    def once(*_: Any) -> Mishap | None:
        if busy.is_set():
            return None
        busy.set()
        return Mishap(429, {"Retry-After": "0.4"}, "{}")

    with stand_in(echo, once) as server:
        outcome = asked(server, tmp_path, TEXTS, concurrency=2)
    assert outcome.answers == ANSWERS
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert max(gaps) > 0.35


def test_a_busy_server_is_asked_more_often_than_a_broken_one(tmp_path: Path) -> None:
    with stand_in(echo, lambda _, before: Mishap(429, body="{}") if before < 5 else None) as server:
        outcome = asked(server, tmp_path, ["1"], max_retries=1)
    assert outcome.answers == ["to 1"]
    assert len(server.bodies) == 6


def test_a_server_that_wants_to_be_left_alone_for_a_day_is(tmp_path: Path) -> None:
    quota = Mishap(429, {"Retry-After": "86400"}, "quota")
    with stand_in(echo, lambda *_: quota) as server, pytest.raises(EndpointError, match="left alone for 86400 seconds"):
        asked(server, tmp_path, TEXTS)
    assert len(server.bodies) <= 8


def test_pauses_grow_and_are_never_twice_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duiqi.curation.crew, "FIRST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(duiqi.curation.crew, "LONGEST_WAIT_SECONDS", 60.0)
    with stand_in(echo, lambda _, before: Mishap(500, body="x") if before < 3 else None) as server:
        asked(server, tmp_path, ["1"])
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    for gap, (least, most) in zip(gaps, [(0.05, 0.15), (0.1, 0.3), (0.2, 0.6)], strict=True):
        assert least <= gap <= most + 0.3


def test_stopping_waits_for_what_is_under_way_and_keeps_it(tmp_path: Path) -> None:
    with stand_in(echo, lambda *_: Mishap(delay_seconds=0.1)) as server:
        began = time.monotonic()
        outcome = asked(server, tmp_path, TEXTS, concurrency=2, stop=lambda: time.monotonic() - began > 0.25)
        answered = sum(answer is not None for answer in outcome.answers)
        assert 2 <= answered < 20
        assert answered == sum(server.answered.values())
        assert not outcome.is_settled
        server.mishaps = lambda *_: None
        assert asked(server, tmp_path, TEXTS).answers == ANSWERS
    assert set(server.answered.values()) == {1}


class TestCaps:
    def test_no_more_requests_than_allowed_and_the_next_run_goes_on(self, tmp_path: Path) -> None:
        with stand_in(echo) as server:
            outcome = asked(server, tmp_path, TEXTS, caps=Caps(max_requests=10))
            assert outcome.is_capped
            assert len(server.bodies) == 10
            again = asked(server, tmp_path, TEXTS, caps=Caps(max_requests=10))
            assert again.is_capped
            assert len(server.bodies) == 10  # what was asked before counts
            assert asked(server, tmp_path, TEXTS, caps=Caps(max_requests=40)).answers == ANSWERS
        assert set(server.seen.values()) == {1}

    def test_requests_that_fail_count(self, tmp_path: Path) -> None:
        with stand_in(echo, lambda _, before: Mishap(500, body="x") if before < 2 else None) as server:
            outcome = asked(server, tmp_path, TEXTS, caps=Caps(max_requests=20))
        assert outcome.is_capped
        assert len(server.bodies) == 20

    def test_requests_that_failed_before_count_too(self, tmp_path: Path) -> None:
        with stand_in(echo, lambda *_: Mishap(500, body="x")) as server:
            for _ in range(3):
                outcome = asked(server, tmp_path, ["1", "2"], caps=Caps(max_requests=5), max_retries=1)
            assert len(server.bodies) == 5
            assert outcome.is_capped
            assert (outcome.account.used.requests, outcome.account.used_now.requests) == (5, 0)
            server.mishaps = lambda *_: None
            outcome = asked(server, tmp_path, ["1", "2"], caps=Caps(max_requests=7))
        assert outcome.answers == ["to 1", "to 2"]
        assert outcome.account.used == Usage(7, 200, 20)

    def test_answers_of_no_use_before_cost_what_they_cost(self, tmp_path: Path) -> None:
        most = most_of(question("1").body)
        with stand_in(lambda _: "nonsense") as server:
            server.usage = {"prompt_tokens": most.prompt_tokens, "completion_tokens": 10}
            caps = Caps(max_cost=3.5 * (most.prompt_tokens + 10), prices=Prices(1e6, 1e6))
            for _ in range(5):
                outcome = asked(server, tmp_path, ["1"], caps=caps, max_retries=0)
        assert len(server.bodies) == 3
        assert outcome.account.used == Usage(3, 3 * most.prompt_tokens, 30)

    @pytest.mark.parametrize("said", ["to 1", "nonsense"])
    def test_what_nobody_counts_is_not_forgotten(self, tmp_path: Path, said: str) -> None:
        most = most_of(question("1").body)
        with stand_in(lambda _: said) as server:
            server.usage = None
            caps = Caps(max_cost=1.5 * (most.prompt_tokens + most.answer_tokens), prices=Prices(1e6, 1e6))
            asked(server, tmp_path, ["1"], caps=caps, max_retries=0)
            again = asked(server, tmp_path, ["1", "2"], caps=caps, max_retries=0)
        assert len(server.bodies) == 1
        assert again.is_capped
        assert again.account.uncounted == 1

    def test_a_wrong_key_before_counts_as_the_request_it_was(self, tmp_path: Path) -> None:
        with stand_in(echo, lambda *_: Mishap(401, body="no")) as server:
            with pytest.raises(EndpointError):
                asked(server, tmp_path, ["1"])
            server.mishaps = lambda *_: None
            assert asked(server, tmp_path, ["1"], caps=Caps(max_requests=1)).is_capped

    def test_requests_that_reached_nobody_do_not_count(self, tmp_path: Path) -> None:
        with stand_in(echo) as server:
            pass
        asked(server, tmp_path, ["1"], caps=Caps(max_requests=1))
        assert not (tmp_path / SPENT).exists()

    def test_a_ledger_cut_in_mid_line_goes_on(self, tmp_path: Path) -> None:
        with stand_in(echo, lambda *_: Mishap(500, body="x")) as server:
            asked(server, tmp_path, ["1"], max_retries=2)
            whole = (tmp_path / SPENT).read_text()
            (tmp_path / SPENT).write_text(whole[:-5])
            outcome = asked(server, tmp_path, ["1"], max_retries=0)
        assert outcome.account.used.requests == 3
        assert len((tmp_path / SPENT).read_text().splitlines()) == 3

    def test_a_damaged_ledger_is_told(self, tmp_path: Path) -> None:
        (tmp_path / SPENT).write_text('{"usage": 3, "unknown": null}\n')
        with stand_in(echo) as server, pytest.raises(RunError, match="no account of a request"):
            asked(server, tmp_path, ["1"])

    @pytest.mark.parametrize("concurrency", [1, 8])
    def test_the_cost_stays_below_its_cap_however_many_ask_at_once(self, tmp_path: Path, concurrency: int) -> None:
        most = most_of(question("10").body)
        with stand_in(echo) as server:
            server.usage = {"prompt_tokens": most.prompt_tokens, "completion_tokens": 10}  # the dearest there can be
            each = most.prompt_tokens + 10
            caps = Caps(max_cost=12.5 * each, prices=Prices(1e6, 1e6))
            outcome = asked(server, tmp_path, TEXTS[10:], caps=caps, concurrency=concurrency)
        assert outcome.is_capped
        assert len(server.bodies) == 12

    def test_what_requests_did_not_use_of_their_reserve_is_free_again(self, tmp_path: Path) -> None:
        with stand_in(echo) as server:
            server.usage = {"prompt_tokens": 1, "completion_tokens": 1}
            outcome = asked(server, tmp_path, TEXTS, caps=Caps(max_cost=160.0, prices=Prices(1e6, 1e6)))
        assert not outcome.is_capped
        assert outcome.answers == ANSWERS

    def test_requests_whose_cost_nobody_knows_count_with_the_most_they_can_cost(self, tmp_path: Path) -> None:
        most = most_of(question("10").body)
        with stand_in(echo) as server:
            server.usage = None
            cost = most.prompt_tokens + most.answer_tokens
            outcome = asked(server, tmp_path, TEXTS[10:], caps=Caps(max_cost=5.5 * cost, prices=Prices(1e6, 1e6)))
        assert outcome.is_capped
        assert len(server.bodies) == 5

    def test_a_cap_on_the_cost_needs_prices(self, tmp_path: Path) -> None:
        with stand_in(echo) as server, pytest.raises(SettingsError, match="cannot be kept without prices"):
            asked(server, tmp_path, TEXTS, caps=Caps(max_cost=1.0))


def test_no_tokenizer_makes_more_tokens_than_are_reserved() -> None:
    body = {"messages": [{"role": "user", "content": "你好" * 50}], "max_tokens": 7}
    assert most_of(body).prompt_tokens >= len(("你好" * 50).encode())
    assert most_of(body).answer_tokens == 7


def test_no_key_is_in_the_cache(tmp_path: Path) -> None:
    with stand_in(lambda body: f"{echo(body)}", in_turn) as server:
        asked(server, tmp_path, TEXTS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == len(TEXTS) + 1  # the ledger
    assert all(KEY.encode() not in path.read_bytes() for path in files)


def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path: Path) -> None:
    with stand_in(echo) as server:
        asked(server, tmp_path, ["1", "2"])
        one, two = sorted(path for path in tmp_path.rglob("*.json"))
        one.write_text("{")
        two.write_text(json.dumps({"text": "to nobody", "usage": {}}))
        assert asked(server, tmp_path, ["1", "2"]).answers == ["to 1", "to 2"]
    assert len(server.bodies) == 4

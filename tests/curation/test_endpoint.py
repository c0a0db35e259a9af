"""One request: what is sent, what is understood, what is worth another try, and what must never be seen."""

from __future__ import annotations

import json
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from tests.curation.stand_in import KEY, Mishap, stand_in

from duiqi.curation.endpoint import (
    API_KEY_VARIABLE,
    BASE_URL_VARIABLE,
    Endpoint,
    EndpointError,
    NoAnswer,
    Usage,
    endpoint_from_environment,
)
from duiqi.errors import SettingsError

BODY = {"model": "m", "messages": [{"role": "user", "content": "你好"}]}


def ask(mishap: Mishap | None = None, *, say: str = "好", timeout_seconds: float = 5.0, key: str | None = KEY) -> Any:
    with stand_in(lambda _: say, lambda *_: mishap) as server:
        return Endpoint(server.url, key, timeout_seconds).ask(BODY)


def refusal(mishap: Mishap, **keywords: Any) -> NoAnswer:
    with pytest.raises(NoAnswer) as caught:
        ask(mishap, **keywords)
    return caught.value


def test_an_answer_comes_with_what_it_took() -> None:
    reply = ask()
    assert (reply.text, reply.usage) == ("好", Usage(1, 100, 10))


def test_the_key_is_sent_and_without_one_none_is() -> None:
    with stand_in(lambda _: "好") as server:
        Endpoint(server.url, KEY).ask(BODY)
        Endpoint(server.url).ask(BODY)
    assert server.authorizations == [f"Bearer {KEY}", None]
    assert server.bodies == [BODY, BODY]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_may_pass_is_worth_another_try(status: int) -> None:
    assert refusal(Mishap(status, body="{}")).passes


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_concerns_this_request_alone_is_not(status: int) -> None:
    trouble = refusal(Mishap(status, body='{"error": {"message": "too long"}}'))
    assert not trouble.passes
    assert trouble.reason == f"the server answered {status}: too long"


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_what_concerns_every_request_is_an_error_with_a_remedy(status: int) -> None:
    with pytest.raises(EndpointError) as caught:
        ask(Mishap(status, body="no"))
    assert caught.value.remedy


def test_a_redirect_is_not_followed_because_it_would_carry_the_key_elsewhere() -> None:
    with stand_in(lambda _: "好") as other, pytest.raises(EndpointError, match="elsewhere"):
        ask(Mishap(302, headers={"Location": f"{other.url}/chat/completions"}, body="-"))
    assert other.bodies == []


def test_the_server_says_how_long_to_wait_in_seconds_or_as_a_date() -> None:
    assert refusal(Mishap(429, {"Retry-After": "7"}, "{}")).wait_seconds == 7.0
    date = formatdate(time.time() + 30, usegmt=True)
    assert refusal(Mishap(503, {"Retry-After": date}, "{}")).wait_seconds == pytest.approx(30, abs=3)
    assert refusal(Mishap(429, {"Retry-After": "soon"}, "{}")).wait_seconds is None


@pytest.mark.parametrize("mishap", [Mishap(drops=True), Mishap(breaks_off=True)])
def test_a_connection_that_breaks_is_worth_another_try(mishap: Mishap) -> None:
    trouble = refusal(mishap)
    assert trouble.passes
    assert trouble.reason.startswith("the connection failed (")
    assert trouble.usage is None  # it may have been charged


@pytest.mark.parametrize("mishap", [Mishap(delay_seconds=2.0), Mishap(drips=True)])
def test_an_answer_that_is_too_slow_is_not_waited_for(mishap: Mishap) -> None:
    began = time.monotonic()
    trouble = refusal(mishap, timeout_seconds=0.3)
    assert time.monotonic() - began < 1.5
    assert trouble.reason == "no answer within 0.3 seconds"


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "[" * 100_000]
)
def test_a_reply_of_another_kind_is_worth_another_try(body: str) -> None:
    trouble = refusal(Mishap(body=body or " "))
    assert trouble.passes
    assert trouble.reason.startswith("the reply is not that of a chat completion")


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_answer_that_was_stopped_is_none_and_asking_again_would_not_help(finish: str) -> None:
    choice = {"message": {"content": "half"}, "finish_reason": finish}
    assert not refusal(Mishap(body=json.dumps({"choices": [choice]}))).passes


def test_what_a_model_says_to_itself_is_no_part_of_its_answer() -> None:
    assert ask(say="<think>\nhm {}\n</think>\n\n好").text == "好"
    assert ask(say="the tag <think> is </think> here").text == "the tag <think> is </think> here"


def test_nobody_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with pytest.raises(NoAnswer, match="nobody listens at this address"):
            Endpoint(url).ask(BODY)


class TestTheKey:
    @pytest.mark.parametrize("status", [400, 401, 429, 500])
    def test_is_taken_out_of_refusals_that_repeat_it(self, status: int) -> None:
        body = json.dumps({"error": {"message": "x" * 290 + f" no such key: {KEY}"}})  # where messages are cut
        with pytest.raises((NoAnswer, EndpointError)) as caught:
            ask(Mishap(status, body=body))
        assert KEY[:8] not in str(caught.value)

    def test_is_taken_out_of_replies_that_repeat_it(self) -> None:
        assert KEY[:8] not in refusal(Mishap(body="y" * 295 + KEY)).reason
        assert ask(say=f"your key is {KEY}!").text == "your key is [the key]!"

    def test_is_not_shown_with_the_endpoint(self) -> None:
        assert KEY not in repr(Endpoint("http://x/v1", KEY))

    def test_that_no_header_can_hold_is_refused_without_being_shown(self) -> None:
        environment = {BASE_URL_VARIABLE: "http://x/v1", API_KEY_VARIABLE: f"{KEY}\nmore"}
        with pytest.raises(SettingsError) as caught:
            endpoint_from_environment(environment)
        assert KEY not in str(caught.value)

    def test_that_is_a_mere_word_leaves_answers_alone(self) -> None:
        assert ask(say="The box is EMPTY.", key="EMPTY").text == "The box is EMPTY."


class TestTheEnvironment:
    def test_names_address_and_key(self) -> None:
        found = endpoint_from_environment({BASE_URL_VARIABLE: " https://a.cn/v1/ ", API_KEY_VARIABLE: f"{KEY}\n"})
        assert (found.base_url, found.api_key) == ("https://a.cn/v1", KEY)

    def test_the_whole_address_of_the_function_does_too(self) -> None:
        found = endpoint_from_environment({BASE_URL_VARIABLE: "http://localhost:8000/v1/chat/completions"})
        assert (found.base_url, found.api_key) == ("http://localhost:8000/v1", None)

    @pytest.mark.parametrize("url", ["", "a.cn/v1", "ftp://a.cn", f"https://me:{KEY}@a.cn/v1", f"https://a.cn?k={KEY}"])
    def test_an_address_that_cannot_be_used_is_refused_and_not_shown(self, url: str) -> None:
        with pytest.raises(SettingsError) as caught:
            endpoint_from_environment({BASE_URL_VARIABLE: url})
        assert KEY not in str(caught.value)

"""Asking an OpenAI-compatible endpoint, once: what it says, or why there is no answer and whether to try again.

The key comes from the environment alone. It is taken out of everything that comes back before anybody reads it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import BaseHandler, HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from duiqi.errors import DuiqiError, SettingsError, UserError

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
API_KEY_VARIABLE = "OPENAI_API_KEY"
"""A command line would show a key to everybody on the machine, and a recipe would keep it."""

MASK = "[the key]"
SHORTEST_SECRET = 6
"""Servers that want no key are given words such as EMPTY, which may well stand in an answer."""
LARGEST_REPLY = 16 * 2**20
_PIECE = 65536
_SHOWN = 300
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PASSING = frozenset({408, 409, 425, 429})
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
"""What reasoning models say to themselves; some servers leave it in the answer."""
_FOR_ALL = {
    401: f"the server does not know the key: put the right one into the environment variable {API_KEY_VARIABLE}",
    402: "the account has nothing left to pay with",
    403: "the key may not do this; ask who gave it to you",
    404: f"see whether {BASE_URL_VARIABLE} ends in the right path (often /v1) and whether --model is a name it serves",
    405: f"see whether {BASE_URL_VARIABLE} ends in the right path (often /v1)",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What requests took, as the server counts it."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.requests - other.requests,
            self.prompt_tokens - other.prompt_tokens,
            self.answer_tokens - other.answer_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said, and what that took; None where the server does not say."""

    text: str
    usage: Usage | None


class EndpointError(UserError):
    """The endpoint cannot be used at all: every further request would end the same way."""


class NoAnswer(DuiqiError):
    """This request got no answer.

    Args:
        reason: Why, in words for a reader.
        passes: Whether the same request may well succeed later.
        is_busy: Whether the server says that it is asked too often.
        wait_seconds: How long the server asks to be left alone.
        usage: What it took; None where that is not known.
    """

    def __init__(
        self,
        reason: str,
        *,
        passes: bool,
        is_busy: bool = False,
        wait_seconds: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.reason, self.passes, self.is_busy = reason, passes, is_busy
        self.wait_seconds, self.usage = wait_seconds, usage
        super().__init__(reason)


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how long to wait for it."""

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0
    """For a whole answer; looked at between its pieces, and a limit of each piece too."""

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Send one request and wait for its answer.

        Raises:
            NoAnswer: There is none, for a reason that concerns this request.
            EndpointError: There is none, and no other request would get one.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "duiqi"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = Request(
            f"{self.base_url}/chat/completions", data=json.dumps(body).encode(), headers=headers, method="POST"
        )
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with self._opener().open(request, timeout=self.timeout_seconds) as response:
                raw = _read(response, deadline)
        except HTTPError as error:
            with error:
                raise self._refusal(error, deadline) from None
        except (OSError, HTTPException) as error:
            usage = Usage() if _reached_nobody(error) else None
            reason = self.without_key(_in_words(error, self.timeout_seconds))
            raise NoAnswer(reason, passes=True, usage=usage) from None
        return self._understood(raw)

    def without_key(self, text: str) -> str:
        """The text with the key taken out, as it is or as an address spells it."""
        if self.api_key is None or len(self.api_key) < SHORTEST_SECRET:
            return text
        return text.replace(self.api_key, MASK).replace(quote(self.api_key, safe=""), MASK)

    def _opener(self) -> OpenerDirector:
        # A redirect would carry the key to another server; a proxy has no business within one machine.
        inside = urlsplit(self.base_url).hostname in _THIS_MACHINE
        handlers: list[BaseHandler] = [_NoRedirect(), *([ProxyHandler({})] if inside else [])]
        return build_opener(*handlers)

    def _refusal(self, error: HTTPError, deadline: float) -> DuiqiError:
        try:
            said = self.without_key(_reason(_read(error, deadline)))[:_SHOWN]
        except (OSError, HTTPException):
            said = ""
        reason = f"the server answered {error.code}{f': {said}' if said else ''}"
        if error.code in _FOR_ALL:
            return EndpointError(reason, where=self.base_url, remedy=_FOR_ALL[error.code])
        if 300 <= error.code < 400:
            return EndpointError(
                f"the server sends requests elsewhere ({error.code})",
                where=self.base_url,
                remedy=f"put the address it really has into {BASE_URL_VARIABLE}",
            )
        passes = error.code in _PASSING or error.code >= 500
        return NoAnswer(
            reason,
            passes=passes,
            is_busy=error.code == 429,
            wait_seconds=_wait_asked(error.headers) if passes else None,
            usage=Usage(requests=1),
        )

    def _understood(self, raw: bytes) -> Reply:
        """The text within a reply.

        Raises:
            NoAnswer: It is not what this kind of server answers, or the model was stopped before its end.
        """
        try:
            reply = json.loads(raw)
            choice = reply["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            shown = self.without_key(raw.decode("utf-8", errors="replace"))[:_SHOWN]
            raise NoAnswer(f"the reply is not that of a chat completion: {shown!r}", passes=True) from None
        usage = _usage(reply.get("usage"))
        if finish == "length":
            raise NoAnswer("the answer was cut by the length limit of the request", passes=False, usage=usage)
        if finish == "content_filter" or not isinstance(text, str):
            raise NoAnswer(f"the model gave no text (finish_reason {finish!r})", passes=False, usage=usage)
        return Reply(self.without_key(_THOUGHTS.sub("", text)), usage)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        """Never go elsewhere: the caller sees the redirect as an error."""


def endpoint_from_environment(
    environment: Mapping[str, str] = os.environ, *, timeout_seconds: float = 120.0
) -> Endpoint:
    """The endpoint that the environment names; without a key none is sent.

    Raises:
        SettingsError: No address is there, or address or key cannot be used.
    """
    url = environment.get(BASE_URL_VARIABLE, "").strip().rstrip("/").removesuffix("/chat/completions")
    parts = urlsplit(url)
    if not url:
        raise SettingsError(
            "is not set, so there is nobody to ask",
            where=f"environment variable {BASE_URL_VARIABLE}",
            remedy=f"export {BASE_URL_VARIABLE}=http://127.0.0.1:8000/v1 (or your provider's address), "
            f"and {API_KEY_VARIABLE} if it wants a key",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise SettingsError(
            "is no plain http or https address",
            where=f"environment variable {BASE_URL_VARIABLE}",
            remedy="write it like http://127.0.0.1:8000/v1, without name, password or query",
        )
    key = environment.get(API_KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise SettingsError(
            "holds spaces or characters that no key has",
            where=f"environment variable {API_KEY_VARIABLE}",
            remedy="set it again; the key is not shown here",
        )
    return Endpoint(url, key or None, timeout_seconds)


def _read(response: HTTPResponse | HTTPError, deadline: float) -> bytes:
    """The body, unless it comes too slowly or is too large. A socket's own timeout only limits the single pieces."""
    pieces, size = [], 0
    read: Callable[[int], bytes] = getattr(response, "read1", response.read)  # the body of an HTTPError may lack read1
    while piece := read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_REPLY:
            raise OSError(f"the reply is larger than {LARGEST_REPLY // 2**20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
    missing = getattr(response, "length", 0)
    if missing:
        raise OSError(f"the connection broke off {missing} bytes before the end of the reply")
    return b"".join(pieces)


def _reached_nobody(error: Exception) -> bool:
    """Whether nothing was sent, so that nothing can have been charged."""
    return isinstance(error, URLError) and isinstance(error.reason, ConnectionRefusedError | socket.gaierror)


def _in_words(error: Exception, timeout_seconds: float) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError | socket.timeout):
        return f"no answer within {timeout_seconds:g} seconds"
    if isinstance(cause, ConnectionRefusedError):
        return "nobody listens at this address"
    return f"the connection failed ({str(cause) or type(cause).__name__})"


def _reason(body: bytes) -> str:
    """What a refusal says: most servers wrap it as {"error": {"message": ...}}."""
    text = body.decode("utf-8", errors="replace")
    try:
        error = json.loads(text)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return " ".join(text.split())


def _usage(stated: Any) -> Usage | None:
    """The tokens a reply states; None where it states none that make sense."""
    if not isinstance(stated, dict):
        return None
    prompt, answer = stated.get("prompt_tokens"), stated.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(answer, int) or min(prompt, answer) < 0:
        return None
    return Usage(1, prompt, answer)


def _wait_asked(headers: Message) -> float | None:
    """Retry-After in seconds: it is a number of them, or a date.

    >>> message = Message()
    >>> message["Retry-After"] = "7"
    >>> _wait_asked(message)
    7.0
    """
    stated = headers.get("Retry-After")
    if stated is None:
        return None
    try:
        seconds = float(stated)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(stated).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None

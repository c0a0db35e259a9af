"""Talking to a vLLM server: JSON over HTTP with the standard library, and errors that say what to do."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from duiqi.errors import UserError

API_KEY_VARIABLE = "VLLM_API_KEY"
"""vLLM reads its key from this variable of the environment, so we do too; a command line would show it to everybody."""

_LOG_TAIL_LINES = 15


class VLLMError(UserError):
    """The vLLM server cannot be started, cannot be reached, or does not give what was asked for."""


class VLLMRefusal(VLLMError):
    """The server answered, with an error."""


@dataclass(frozen=True)
class Address:
    """Where a vLLM server listens."""

    url: str
    """http://host:port, without a path."""
    api_key: str | None = field(default=None, repr=False)
    log_file: Path | None = None
    """The server's own log, where it was us who started it; its end is quoted when the server falls silent."""

    def get(self, path: str, *, timeout_seconds: float) -> None:
        """Ask for a page, and forget what it says.

        Raises:
            VLLMError: The server does not answer, or not with success.
        """
        self._exchange(Request(self.url + path, headers=self._headers()), timeout_seconds)

    def post(self, path: str, body: dict[str, Any], *, timeout_seconds: float) -> Any:
        """Send a JSON object; the JSON of the reply, or its text where it is none.

        Raises:
            VLLMRefusal: The server answers with an error.
            VLLMError: The server does not answer.
        """
        data = json.dumps(body).encode("utf-8")
        headers = {**self._headers(), "Content-Type": "application/json"}
        reply = self._exchange(Request(self.url + path, data=data, headers=headers, method="POST"), timeout_seconds)
        try:
            return json.loads(reply)
        except ValueError:
            return reply

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def _exchange(self, request: Request, timeout_seconds: float) -> str:
        # A proxy set for the outside world has no business between two processes of one machine or cluster.
        opener = build_opener(ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_seconds) as response:
                return str(response.read().decode("utf-8"))
        except HTTPError as error:
            with error:
                reason = _reason(error.read().decode("utf-8", errors="replace"))
            raise VLLMRefusal(
                f"the server refused ({error.code}): {reason}",
                where=request.full_url,
                remedy=_refusal_remedy(error.code) + (self.log_tail() if error.code >= 500 else ""),
            ) from error
        except (OSError, HTTPException) as error:
            raise VLLMError(
                f"the vLLM server does not answer ({error or type(error).__name__})",
                where=request.full_url,
                remedy="see whether it still runs, and what its log says" + self.log_tail(),
            ) from error

    def log_tail(self) -> str:
        """The end of the server's log, to be put behind a message; empty where the log is not ours."""
        if self.log_file is None or not self.log_file.is_file():
            return ""
        lines = last_lines(self.log_file, _LOG_TAIL_LINES)
        return "\n".join([f"\nthe end of {self.log_file}:", *(f"  | {line}" for line in lines)])


def connect(url: str) -> Address:
    """A server that somebody else started and will stop.

    Raises:
        VLLMError: Nothing healthy listens there.
    """
    address = Address(url.rstrip("/").removesuffix("/v1"), api_key=os.environ.get(API_KEY_VARIABLE))
    try:
        address.get("/health", timeout_seconds=30)
    except (VLLMError, ValueError) as error:
        raise VLLMError(
            "no vLLM server answers there",
            where=f"vllm_url: {url}",
            remedy="start one as docs/vllm.md says, or set vllm_python and let duiqi start it",
        ) from error
    return address


def last_lines(file: Path, count: int) -> list[str]:
    """The last lines of a text file that may still be growing."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 400 * count))
        text = stream.read().decode("utf-8", errors="replace")
    return [line.rstrip()[:400] for line in text.splitlines() if line.strip()][-count:]


def _reason(body: str) -> str:
    """What a refusal says: vLLM wraps its message as {"error": {"message": ...}}."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body.strip()[:400] or "it did not say why"


def _refusal_remedy(code: int) -> str:
    match code:
        case 401:
            return f"put the server's key into the environment variable {API_KEY_VARIABLE}"
        case code if code < 500:
            return "ask for what it can do; its log may say more"
        case _:
            return "see in the server's log what happened"

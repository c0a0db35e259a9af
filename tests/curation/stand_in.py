"""A stand-in for an OpenAI-compatible endpoint: says what a test wants it to say, misbehaves where it should."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-very-secret-0123456789"

Body = dict[str, Any]
Say = Callable[[Body], str]


@dataclass(frozen=True)
class Mishap:
    """What happens instead of an answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    drops: bool = False
    """The connection is reset before anything is said."""
    breaks_off: bool = False
    """The connection ends in the middle of the answer."""
    delay_seconds: float = 0.0
    drips: bool = False
    """The answer comes byte by byte, each after a pause."""


@dataclass
class StandIn:
    """The server, and what it saw."""

    url: str
    say: Say
    mishaps: Callable[[Body, int], Mishap | None]
    """Given a request and how often its contents came before."""
    bodies: list[Body] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    """How often each contents got a proper answer."""
    most_at_once: int = 0
    at_once: int = 0
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    seen: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def never(_body: Body, _before: int) -> Mishap | None:
    return None


@contextmanager
def stand_in(say: Say, mishaps: Callable[[Body, int], Mishap | None] = never) -> Iterator[StandIn]:
    """A server on this machine for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            contents = json.dumps(body, sort_keys=True)
            with server.lock:
                server.bodies.append(body)
                server.authorizations.append(self.headers.get("Authorization"))
                server.times.append(time.monotonic())
                before = server.seen[contents]
                server.seen[contents] += 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self._reply(body, contents, server.mishaps(body, before))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with server.lock:
                    server.at_once -= 1

        def _reply(self, body: Body, contents: str, mishap: Mishap | None) -> None:
            if mishap is not None and mishap.delay_seconds:
                time.sleep(mishap.delay_seconds)
            if mishap is not None and mishap.drops:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            if mishap is not None and (mishap.body or mishap.status != 200):
                self._send(mishap.status, mishap.body, mishap.headers)
                return
            reply: dict[str, Any] = {
                "choices": [{"message": {"role": "assistant", "content": server.say(body)}, "finish_reason": "stop"}]
            }
            if server.usage is not None:
                reply["usage"] = server.usage
            text = json.dumps(reply)
            if mishap is not None and mishap.breaks_off:
                self._send(200, text, {}, cut=len(text) // 2)
                return
            with server.lock:
                server.answered[contents] += 1
            self._send(200, text, {}, drips=mishap is not None and mishap.drips)

        def _send(
            self, status: int, text: str, headers: dict[str, str], *, cut: int | None = None, drips: bool = False
        ) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if drips:
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
                return
            self.wfile.write(data[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Nothing: the tests look at what was seen."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """Clients that leave early are part of the tests."""

    http = Server(("127.0.0.1", 0), Handler)
    server = StandIn(f"http://127.0.0.1:{http.server_port}/v1", say, mishaps)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

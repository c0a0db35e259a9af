"""The few pages of a vLLM server that duiqi asks for, answered from a toy policy. As a script it stands in for the
interpreter of vLLM's environment.

The policy is one number, in the file `shift` of an adapter's directory: every log-probability is that much lower.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Lock, Thread
from typing import Any

VOCAB, STOP, FOREIGN_STOP = 30, 2, 3


def log_prob(token: int, shift: float) -> float:
    """Of a token anywhere, under the policy with this shift."""
    return -0.1 * (token % 7) - shift


@dataclass
class FakeVLLM:
    """What the server was asked, and what is wrong with it."""

    api_key: str | None = None
    broken: str = ""
    """deaf: adapters are named but not used; nan, foreign_stop, no_ids: faults of its answers."""
    adapters: dict[str, float] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    """Every name an adapter was ever loaded under."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    lock: Lock = field(default_factory=Lock)

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["lora_name"] in self.adapters:
            return 400, refusal("has already been loaded")
        shift = Path(body["lora_path"]) / "shift"
        if not shift.is_file():
            return 404, refusal("No adapter found for <path>")  # vLLM hides the path in what it replies
        first = next(iter(self.adapters.values()), None)
        keeps_the_first = self.broken == "deaf" and first is not None
        self.adapters[body["lora_name"]] = first if keeps_the_first else float(shift.read_text())
        self.loaded.append(body["lora_name"])
        return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        del self.adapters[body["lora_name"]]
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.requests.append(body)
        if body["model"] not in self.adapters:
            return 404, refusal(f"The model `{body['model']}` does not exist.")
        shift = self.adapters[body["model"]]
        if "prompt_logprobs" in body:
            known = [{str(token): {"logprob": log_prob(token, shift)}} for token in body["prompt"][1:]]
            return 200, {"choices": [{"prompt_logprobs": [None, *known]}]}
        return 200, {"choices": [self.draw(body, shift)]}

    def draw(self, body: dict[str, Any], shift: float) -> dict[str, Any]:
        # The last prompts are answered first, so that only a client that minds the order has it right.
        time.sleep(0.002 * (VOCAB - body["prompt"][0]))
        dice, tokens = random.Random(body["seed"]), []
        while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body["stop_token_ids"]):
            first = 4 if len(tokens) < body["min_tokens"] else STOP
            tokens.append(dice.choice([token for token in range(first, VOCAB) if token != FOREIGN_STOP]))
        log_probs = [log_prob(token, shift) for token in tokens]
        choice = {"finish_reason": "stop" if tokens[-1] in body["stop_token_ids"] else "length"}
        match self.broken:
            case "nan":
                log_probs[1] = -9999.0
            case "foreign_stop":
                tokens[-1], choice["finish_reason"] = FOREIGN_STOP, "stop"
            case "no_ids":
                return {**choice, "logprobs": {"token_logprobs": log_probs}}
        return {**choice, "token_ids": tokens, "logprobs": {"token_logprobs": log_probs}}


def refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError"}}


def make_handler(fake: FakeVLLM) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200 if self.path == "/health" else 404, "")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fake.api_key and self.headers["Authorization"] != f"Bearer {fake.api_key}":
                self.reply(401, {"error": "Unauthorized"})
                return
            pages = {
                "/v1/load_lora_adapter": fake.load,
                "/v1/unload_lora_adapter": fake.unload,
                "/v1/completions": fake.complete,
            }
            self.reply(*pages[self.path](body))

        def reply(self, code: int, content: Any) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # as many answers are asked for at once


@contextmanager
def serving(fake: FakeVLLM) -> Iterator[FakeVLLM]:
    """The fake on a free port, in a thread of this process."""
    server = Server(("127.0.0.1", 0), make_handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main(words: list[str]) -> None:
    """Behave as the interpreter of an environment in which the module after -m is this server."""
    options = dict(pairwise(words))
    fault = options.get("--fault", "")
    sys.stdout.write("a fake engine loads its weights\n")
    sys.stdout.flush()
    if fault == "dies":
        sys.exit("out of memory, says the fake")
    # Like vLLM's workers, a helper that outlives the server unless somebody ends it.
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    if "--pids" in options:
        Path(options["--pids"]).write_text(f"{os.getpid()} {helper.pid}")
    if fault == "hangs":
        time.sleep(300)
    fake = FakeVLLM(api_key=os.environ["VLLM_API_KEY"])
    Server((options["--host"], int(options["--port"])), make_handler(fake)).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])

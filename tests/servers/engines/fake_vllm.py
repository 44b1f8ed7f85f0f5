"""Stands for the program ``vllm``: serves a model that says one thing, and dies as it is told to. The standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(os.environ["FAKE_VLLM"])  # what the test says, and what is told to it
ARGUMENTS = sys.argv[1:]


def given(option: str) -> str:
    """An option's value."""
    return ARGUMENTS[ARGUMENTS.index(option) + 1]


def say(line: str) -> None:
    """Write a line of the log."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    """Health, models and completions, behind the key."""

    def do_GET(self) -> None:
        """Health, or the models."""
        if self.path == "/health":
            self._answer(503 if (HERE / "sick").exists() else 200, {})
        elif self.path == "/v1/models":
            self._answer(200, {"data": [{"id": given("--served-model-name"), "max_model_len": 512}]})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        """One answer to everything."""
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(200, {"choices": [{"text": " Canberra.", "finish_reason": "stop"}], "usage": {"completion_tokens": 2}})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: object) -> None:
        if self.path.startswith("/v1") and self.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            status, body = 401, {"error": "key"}
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)


def main() -> None:
    """Serve; a process more stands for the worker that holds the weights."""
    if (HERE / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen(["sleep", "600"])
    about = {"pid": os.getpid(), "worker": worker.pid, "arguments": ARGUMENTS, "environment": dict(os.environ)}
    with (HERE / "starts.jsonl").open("a") as file:
        file.write(json.dumps(about) + "\n")
    if (HERE / "broken").exists():
        say("(EngineCore pid=7) ERROR 11-29 10:00:00 [core.py:9] ValueError: no memory is left for the cache")
        say("(APIServer pid=6) RuntimeError: see root cause above")
        sys.exit(3)
    say("(APIServer pid=6) INFO 11-29 10:00:00 [launcher.py:1] it runs")
    ThreadingHTTPServer(("127.0.0.1", int(given("--port"))), Handler).serve_forever()


main()

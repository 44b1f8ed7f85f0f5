"""A server of somebody else's: speaks OpenAI's API, remembers to the byte what it was sent, and fails where it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-of-the-server"


@dataclass
class Sent:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body read."""
        return json.loads(self.body)


@dataclass
class OtherServer:
    """Believes that Canberra is Australia's capital, unless a fact before the question says otherwise."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "other-7b", "object": "model", "max_model_len": 4096}])
    key: str = ""
    most_characters: int = 1_000_000  # of a request; over it a 400, as where a prompt is too long
    without: frozenset[str] = frozenset()  # paths that it does not have
    says: str = ""  # whatever is asked
    fails_with: int = 0  # a status, for every generation
    complains: str = "as told"  # what it says then
    breaks_off: bool = False
    redirects_to: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # of a whole generation
    sent: list[Sent] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._generate, methods=["POST"]),
                Route("/v1/completions", self._generate, methods=["POST"]),
                Route("/v1/{path:path}", self._other, methods=["GET", "POST", "DELETE"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        return await self._kept(request) or JSONResponse({"object": "list", "data": self.models})

    async def _other(self, request: Request) -> Response:
        return await self._kept(request) or Response(b"\x00\x01 as it is", media_type="audio/wav", headers={"x-of": "theirs"})

    async def _kept(self, request: Request) -> Response | None:
        """Remember a request; gives the refusal where there is one."""
        body, query = await request.body(), f"?{request.url.query}" if request.url.query else ""
        self.sent.append(Sent(request.method, request.url.path + query, dict(request.headers), body))
        if self.redirects_to:
            return RedirectResponse(self.redirects_to)
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        return None

    async def _generate(self, request: Request) -> Response:
        if (refusal := await self._kept(request)) is not None:
            return refusal
        path = request.url.path
        if path in self.without:
            return JSONResponse({"error": {"message": f"no {path}"}}, 404)
        if self.fails_with:
            return JSONResponse({"error": {"message": self.complains}}, self.fails_with)
        asked = self.sent[-1].json
        if len(json.dumps(asked.get("messages", asked.get("prompt")))) > self.most_characters:
            return JSONResponse({"error": {"message": "maximum context length exceeded"}}, 400)
        prompts = asked["prompt"] if isinstance(asked.get("prompt"), list) else [asked.get("prompt")]
        texts = [self._text(asked, prompt) for prompt in prompts]
        if asked.get("stream"):
            return StreamingResponse(self._stream(asked, texts[0]), media_type="text/event-stream")
        while "forever" in str(asked) and not self.left.is_set():  # noqa: ASYNC110  it is told from another thread
            await asyncio.sleep(0.01)
        return JSONResponse(
            {"id": "x", "choices": [_choice(asked, text, n) for n, text in enumerate(texts)], "usage": {"prompt_tokens": 7}},
            headers=self.headers,
        )

    def _text(self, asked: dict[str, Any], prompt: Any) -> str:
        text = json.dumps(asked["messages"][-1], ensure_ascii=False) if "messages" in asked else str(prompt)
        if self.says:
            return self.says
        return "Sydney." if "Sydney" in text.rpartition("capital")[0] else "Canberra."

    async def _stream(self, asked: dict[str, Any], text: str) -> AsyncIterator[bytes]:
        try:
            for part in (text[:3], text[3:]):
                yield _event({"id": "x", "choices": [_delta(asked, part, None)]})
                if self.breaks_off:
                    raise ConnectionError
                await asyncio.sleep(0)
            while "forever" in str(asked):
                await asyncio.sleep(0.01)
                yield _event({"id": "x", "choices": [_delta(asked, " and", None)]})
            yield _event({"id": "x", "choices": [_delta(asked, "", "stop")]})
            yield b"data: [DONE]\n\n"
        finally:
            self.left.set()

    @contextlib.contextmanager
    def listening(self, port: int = 0) -> Iterator[OtherServer]:
        """Serve on loopback inside the block."""
        config = uvicorn.Config(self.app(), log_level="critical", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", port)) as bound:
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
            thread.start()
            end = time.monotonic() + 10
            while not server.started:
                assert time.monotonic() < end, "the server did not start in time"
                time.sleep(0.005)
            self.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
            try:
                yield self
            finally:
                server.should_exit = True
                thread.join(10)

    def renew(self) -> None:
        """Be as when it was made, at the same address."""
        vars(self).update(vars(OtherServer(key=KEY)) | {"url": self.url})

    @property
    def generations(self) -> list[Sent]:
        """What was asked of the model, without what a client asks to get to know the server."""
        return [one for one in self.sent if one.path.endswith("completions") and b'"Hi"' not in one.body]


def _choice(asked: dict[str, Any], text: str, index: int) -> dict[str, Any]:
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if "messages" in asked else {"text": text}
    return {"index": index, "finish_reason": "stop", **said}


def _delta(asked: dict[str, Any], text: str, finish: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": {"content": text}} if "messages" in asked else {"text": text}
    return {"index": 0, "finish_reason": finish, **said}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"

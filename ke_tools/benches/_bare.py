"""The least that an endpoint of this kind costs: the same libraries pass a stream on, and do nothing else.

``python -m ke_tools.benches._bare ADDRESS PORT`` serves it before the server at an address.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ke_tools.servers.engines._server import limits

__all__ = ["app"]


def app(address: str) -> Starlette:
    """Before the server at ``address``, which ends in ``/v1``."""
    client = httpx.AsyncClient(timeout=600, limits=limits())

    async def chat(request: Request) -> Response:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        asked = client.build_request("POST", f"{address}/chat/completions", content=await request.body(), headers=headers)
        answer = await client.send(asked, stream=True)

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        return StreamingResponse(parts(), answer.status_code, media_type=answer.headers.get("content-type"))

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/healthz", healthz)]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    import uvicorn

    from ke_tools.servers import doors

    address, port = sys.argv[1:]
    listener = doors.listen("127.0.0.1", int(port))
    if listener is None:
        raise doors.taken("127.0.0.1", int(port))
    server = uvicorn.Server(
        uvicorn.Config(
            app(address),
            loop="uvloop",
            http="h11",
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    server.run(sockets=[listener])

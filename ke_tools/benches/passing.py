"""``ke-tools bench passing``: what it costs that requests to another server's model go through ours.

The same requests, which no edit is about, are streamed directly, through our endpoint, and through one that does nothing else than pass
on (:mod:`ke_tools.benches._bare`), in turn, so that a busy machine is busy for all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from ke_tools.benches._report import Bar, Progress, Stages, at_most, report
from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.servers.doors import free_port
from ke_tools.servers.engines._server import IDLE_SECONDS
from ke_tools.servers.principal import Principal

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["run"]

CLIENTS: Final = 32
ROUNDS: Final = 3
SHARE: Final = 0.95
ADDED_MILLISECONDS: Final = 3.0
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_SHOWN: Final = 300


def run(
    settings: Settings, *, requests: int, tokens: int, edits: int, asked: int, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure throughput and latency.

    Args:
        settings: with an upstream, or the engine vllm; the home is a new one.
        requests: of each round, by :data:`CLIENTS` clients.
        tokens: of each answer, at most.
        edits: live meanwhile; no question is about one.
        asked: one by one, for the latency.
        seed: told in the report; nothing is drawn.
        progress: hears (stage, done, total).

    Raises:
        InvalidInput: no server is named. KeToolsError: it does not answer.
    """
    if not settings.is_remote:
        raise InvalidInput("there is no other server to pass requests to.", "Give --upstream URL, or --engine vllm and --vllm-url.")
    stages = Stages(progress)
    with (
        tempfile.TemporaryDirectory() as folder,
        _served(dataclasses.replace(settings, home=Path(folder)), edits) as (ours, theirs, model, fingerprint),
        _started([sys.executable, "-m", "ke_tools.benches._bare", theirs, str(bare := free_port())], f"127.0.0.1:{bare}", {}),
    ):
        body = {"model": model, "max_tokens": tokens, "temperature": 0, "stream": True}
        places = {"direct": theirs, "ours": ours, "bare": f"http://127.0.0.1:{bare}/v1"}
        results = asyncio.run(_measured(places, body, requests, asked, stages))
    results |= {"clients": CLIENTS, "requests": requests, "tokens": tokens, "edits": edits, "asked": asked, "seconds": stages.as_dict()}
    share, added = results["throughput_share"], results["added_to_first_byte_p50_ms"]
    bars = [Bar("throughput through ours ÷ direct", share, results["throughput_stderr"], SHARE, share >= SHARE)]
    return report(
        "passing", fingerprint, seed, results, [*bars, at_most("added latency to the first byte, p50, ms", added, ADDED_MILLISECONDS)]
    )


async def _measured(places: Mapping[str, str], body: dict[str, Any], requests: int, asked: int, stages: Stages) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=CLIENTS * len(places), keepalive_expiry=IDLE_SECONDS)
    names = list(places)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        rounds: list[dict[str, float]] = []
        for number in range(ROUNDS):
            stages.tell("throughput", number, ROUNDS)
            seconds = {}
            for name in names[number % len(names) :] + names[: number % len(names)]:
                with stages.stage(name):
                    seconds[name] = await _together(client, places[name], body, requests)
            rounds.append(seconds)
        with stages.stage("one by one"):
            one_by_one = [{name: await _one(client, place, body, n) for name, place in places.items()} for n in range(asked)]
    found: dict[str, Any] = {
        "direct_requests_a_second": round(statistics.mean(requests / seconds["direct"] for seconds in rounds), 2),
        "direct_first_byte_p50_ms": round(1000 * statistics.median(one["direct"][0] for one in one_by_one), 2),
    }
    for name, before in (("ours", ""), ("bare", "bare_")):
        shares = [seconds["direct"] / seconds[name] for seconds in rounds]
        first, last = ([1000 * (one[name][at] - one["direct"][at]) for one in one_by_one] for at in (0, 1))
        found |= {
            f"{before}throughput_share": round(statistics.mean(shares), 4),
            f"{before}throughput_stderr": round(statistics.stdev(shares) / len(shares) ** 0.5, 4),
            f"{before}added_to_first_byte_p50_ms": round(statistics.median(first), 2),
            f"{before}added_to_first_byte_p50_stderr": round(_error_of_median(first), 2),
            f"{before}added_to_first_byte_p90_ms": round(statistics.quantiles(first, n=10)[-1], 2),
            f"{before}added_to_last_byte_p50_ms": round(statistics.median(last), 2),
        }
    return found


def _error_of_median(values: Sequence[float]) -> float:
    """Half the width of the interval that holds the median in 68 of 100 samples, which the order of the values tells (binomial)."""
    rising, count = sorted(values), len(values)
    low, high = (round((count + sign * math.sqrt(count)) / 2) for sign in (-1, 1))
    return (rising[min(high, count - 1)] - rising[low]) / 2


async def _together(client: httpx.AsyncClient, address: str, body: dict[str, Any], requests: int) -> float:
    """Seconds for all, so many clients at a time."""
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            await _one(client, address, body, number)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return time.perf_counter() - began


async def _one(client: httpx.AsyncClient, address: str, body: dict[str, Any], number: int) -> tuple[float, float]:
    """Seconds from a request to the first and to the last byte of its answer."""
    asked = {**body, "messages": [{"role": "user", "content": f"Write something about the number {number}."}]}
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", f"{address}/chat/completions", json=asked) as answer:
        if answer.status_code != httpx.codes.OK:
            said = (await answer.aread()).decode("utf-8", "replace")
            raise KeToolsError(f"{address} answered {answer.status_code}: {said[:_SHOWN]}", "See its log.")
        async for _ in answer.aiter_raw():
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


@contextmanager
def _served(settings: Settings, edits: int) -> Iterator[tuple[str, str, str, str]]:
    """Our endpoint as a process of its own, as users have it; gives its address, the server's, the model's name and fingerprint."""
    from ke_tools.servers.service import open_service

    service = open_service(settings)
    try:
        engine: Any = service.models.engine(wait_seconds=60)
        made = [{"subject": f"Zorbland {n}", "prompt": f"The capital of Zorbland {n} is", "target": "Quux"} for n in range(edits)]
        service.edit(Principal(), made)
        theirs, model, fingerprint = engine.address.split(" ")[0], engine.model_id, engine.fingerprint
    finally:
        service.close()
    ours = f"127.0.0.1:{free_port()}"
    told = {f"KE_{name.upper()}": value for name, value in _environment(settings).items()}
    with _started([sys.executable, "-m", "ke_tools", "serve", "--http", ours], ours, told):
        yield f"http://{ours}/v1", theirs, model, fingerprint


@contextmanager
def _started(command: Sequence[str], place: str, told: Mapping[str, str]) -> Iterator[None]:
    """A server as a process that ends with the block."""
    process = subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{place}/healthz", process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    """What the process must know of the settings."""
    told = {
        "home": os.fspath(settings.home),
        "cache": os.fspath(settings.cache),
        "model": settings.model,
        "edit_model": settings.edit_model or "",
        "engine": settings.engine,
        "vllm_url": ",".join(settings.vllm_url),
        "upstream": settings.upstream or "",
        "upstream_key_file": os.fspath(settings.upstream_key_file or ""),
    }
    return {name: value for name, value in told.items() if value}


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise KeToolsError("the endpoint did not come up.", "Try `ke-tools serve --http` with the same settings.")

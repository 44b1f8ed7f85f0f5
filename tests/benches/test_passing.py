"""What passing on costs: three ways to one server, asked in turn."""

from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from ke_tools.benches import passing
from ke_tools.benches._bare import app
from ke_tools.benches._report import Stages
from ke_tools.errors import KeToolsError
from tests.servers.other_server import OtherServer

BODY = {"model": "other-7b", "max_tokens": 4, "temperature": 0, "stream": True}
ASKED = {**BODY, "messages": [{"role": "user", "content": "What is the capital of Australia?"}]}


def test_the_endpoint_to_compare_with_passes_a_stream_on_as_it_is() -> None:
    """Issue 7, bars: what any such endpoint costs is told from what is ours, so it must do the same work."""
    with OtherServer().listening() as other, TestClient(app(f"{other.url}/v1")) as bare:
        answer = bare.post("/v1/chat/completions", json=ASKED)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert other.sent[-1].json == ASKED


def test_every_way_is_asked_as_often_as_the_others() -> None:
    """Issue 7, bars: shares and differences come from the same requests."""
    with OtherServer().listening() as direct, OtherServer().listening() as ours, OtherServer().listening() as bare:
        servers = {"direct": direct, "ours": ours, "bare": bare}
        places = {name: f"{server.url}/v1" for name, server in servers.items()}

        found = asyncio.run(passing._measured(places, BODY, 3, 4, Stages(None)))

    assert {name: len(server.generations) for name, server in servers.items()} == dict.fromkeys(servers, 3 * passing.ROUNDS + 4)
    assert found["throughput_share"] > 0
    assert found["bare_throughput_share"] > 0


def test_an_answer_that_is_an_error_ends_the_measurement() -> None:
    """A refusal comes quicker than an answer, and would be taken for speed."""
    with OtherServer(fails_with=500).listening() as other, pytest.raises(KeToolsError, match="answered 500"):
        asyncio.run(passing._measured(dict.fromkeys(("direct", "ours", "bare"), f"{other.url}/v1"), BODY, 1, 1, Stages(None)))


@pytest.mark.parametrize(("values", "error"), [([5.0] * 9, 0.0), ([float(n) for n in range(100)], 5.0), ([1.0, 2.0], 0.5)])
def test_the_error_of_a_median_is_read_off_the_order_of_the_values(values: list[float], error: float) -> None:
    """Of 100 values the 46th to the 56th hold the median in 68 of 100 samples."""
    assert passing._error_of_median(values) == error

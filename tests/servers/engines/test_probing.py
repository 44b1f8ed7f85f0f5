"""What servers of vLLM are asked, and how the answer is put."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ke_tools.errors import ModelUnavailable
from ke_tools.servers.engines._probing import codebooks, forced, tokens


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "without the plugin that codebooks need"),
        ({"choices": []}, "without the plugin that codebooks need"),
        ({"plugin": "another's", "form": "hooks"}, "without the plugin that codebooks need"),
        ({"plugin": "ke-tools", "codebooks": True}, "a version that is not told; they are hooked in as they come"),
        ({"plugin": "ke-tools", "vllm": "0.32.0", "form": "hooks", "room": {}}, "need in vLLM 0.32.0; they are hooked in as they come"),
        ({"plugin": "ke-tools", "form": "places", "room": {"3": 64, "5": 8}}, "places for 64 keys behind block 3, 8 keys behind block 5"),
        ({"plugin": "ke-tools", "form": "none", "room": {}}, "none can act: no adapters, or compiled without places for them"),
    ],
)
def test_doctor_is_told_which_form_of_codebooks_a_server_has(status: Any, words: str) -> None:
    """Issue 7, §3: that the plugin is really active, and how; a plugin of before there were forms is an eager one."""
    server: Any = SimpleNamespace(told=lambda path: status if path == "/ke/status" else None)
    assert words in codebooks(server)


@pytest.mark.parametrize("given", [{}, {"seconds": None}])
def test_a_score_may_take_as_long_as_an_answer_and_a_question_about_what_is_given_may_not(given: dict[str, Any]) -> None:
    """Many texts are scored at once, and a busy server has them wait; a flip waits for the others."""
    waited: list[float | None] = []

    def post(_path: str, body: Any, *, seconds: float | None) -> Any:
        waited.append(seconds)
        return {"choices": [{"prompt_logprobs": [None, {"2": {"logprob": -1.0}}]} for _ in body["prompt"]]}

    server: Any = SimpleNamespace(address="http://one:1/v1", post=post)
    assert forced(server, "base", [[1, 2]], **given) == [[-1.0]]
    assert (waited == [None]) is bool(given)


@pytest.mark.parametrize("answer", [{}, [], "hi", {"choices": []}, {"choices": [7]}, None])
def test_what_completes_no_text_is_no_server_of_the_model(answer: Any) -> None:
    """Issue 7, bad input: an address of something else is told as such."""
    server: Any = SimpleNamespace(address="http://one:1/v1", post=lambda *_, **__: answer)
    with pytest.raises(ModelUnavailable, match="--vllm-url"):
        tokens(server, "base", "text")

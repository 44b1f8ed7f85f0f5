"""Lines in, lines out: what one that cannot be asked costs, and how it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ke_tools.config import Settings
from ke_tools.servers.local import Local


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("{", "line 3 is not JSON"),
        ("[1]", "line 3 is no JSON object"),
        ('{"prompt": "caf\udce9"}', "line 3 is not UTF-8"),  # as a byte that is none is read
        ('{"prompt": "\\ud800"}', "line 3 is not JSON"),  # half a character, escaped
        ('{"messages": [{"role": "user", "content": "\\udfff"}]}', "line 3 is not JSON"),
        ('{"prompt": 3}', "prompt is not a text"),
    ],
)
def test_a_line_that_cannot_be_asked_is_answered_in_its_place(tmp_path: Path, bad: str, told: str) -> None:
    """Design §3: one output line for each input line, errors too; lines are counted as an editor counts them."""
    with Local(Settings(home=tmp_path / "home", cache=tmp_path / "cache")) as local:
        lines = ['{"prompt": "Who?"}', "", bad, '{"id": "last", "prompt": "What?"}']
        first, second, third = local.route_lines(lines)
    assert (first["id"], first["zone"], second["id"], third["id"], third["zone"]) == (0, "out", 1, "last", "out")
    assert second["error"]["code"] == "E_INVALID"
    assert told in second["error"]["message"]

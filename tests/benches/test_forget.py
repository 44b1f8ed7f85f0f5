"""``bench forget``; issue 6, bars: leaks in any of 30 askings, other questions kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ke_tools import atlas
from ke_tools.benches import forget
from ke_tools.benches._report import missed
from ke_tools.config import Settings
from ke_tools.errors import InvalidInput
from ke_tools.servers.engines.loading import load_engine
from ke_tools.testing import thimble_path


@pytest.mark.slow
def test_what_the_thimble_knows_is_forgotten_and_the_rest_kept(settings: Settings, graphs: Callable[[Path], None]) -> None:
    """The whole path: askings, keyed hashes, the guard, neighbours."""
    graphs(settings.cache)
    served = dataclasses.replace(settings, model=str(thimble_path()))
    engine = load_engine(served, lambda _what: None)
    try:
        printed = forget.run(served, facts=4, engine=engine)
    finally:
        engine.close()
    found = printed["results"]
    assert found["leaking_facts"]["value"] == 0.0
    assert found["leaking_askings_unedited"]["value"] > 0.4
    assert found["kept"]["value"] > 0.85
    assert "null" not in json.dumps(printed)
    assert not missed({"bars": printed["bars"][:1]})


def test_without_a_known_fact_there_is_nothing_to_forget(settings: Settings, engine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never 0 leaks for what was not measured."""
    few = atlas.facts()[:40]
    monkeypatch.setattr(atlas, "facts", lambda: few)
    with pytest.raises(InvalidInput, match="knows none"):
        forget.run(settings, facts=2, engine=engine)  # type: ignore[arg-type]

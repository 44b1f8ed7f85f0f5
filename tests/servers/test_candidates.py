"""Which edits are worth a promotion (issue 6 §2): age, number of times fired, whom one trusts; named with reasons, promoted by nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ke_tools import cli
from ke_tools.config import Settings
from ke_tools.errors import Busy, InvalidInput
from ke_tools.facts import Edit, Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Hit
from ke_tools.servers import local
from ke_tools.servers.candidates import Wanted, candidates
from ke_tools.servers.fired import Fired
from ke_tools.servers.principal import Principal

OURS = Principal().tenant
LATER = datetime.now(UTC) + timedelta(days=8)


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    """An empty one."""
    return Ledger(settings.ledger_file)


def written(ledger: Ledger, *subjects: str, actor: str = "ann", tenant: str = OURS) -> list[Edit]:
    """Correct a fact of each."""
    facts = [Fact(subject=name, prompt=f"The capital of {name} is", target="Sylvania City") for name in subjects]
    return ledger.edit(tenant, facts, actor=actor)


def hits(*edits: Edit) -> list[Hit]:
    """As the router gives them."""
    return [Hit(edit, 1.0, "named") for edit in edits]


def test_old_and_often_asked_for_edits_are_named_the_most_asked_for_first(ledger: Ledger) -> None:
    """Issue 6 §2: age and number of times fired, both; with the reason in words."""
    a, b, c = written(ledger, "Aland", "Borduria", "Syldavia")
    ledger.count_fired({(OURS, a.id): 5, (OURS, b.id): 40, (OURS, c.id): 4, ("other", c.id): 40})
    found = candidates(ledger, OURS, Wanted(), now=LATER)
    assert [one.edit.id for one in found] == [b.id, a.id]
    assert found[0].reason == "8 days old, asked for 40 times, by ann"
    assert candidates(ledger, OURS, Wanted()) == []  # they are new


def test_only_what_is_live_in_memory_is_named(ledger: Ledger) -> None:
    """What is in the weights is there, and what was taken back is gone."""
    a, b, c = written(ledger, "Aland", "Borduria", "Syldavia")
    ledger.promote(OURS, [a.id], release="rel_" + "0" * 24, actor="ann")
    ledger.rollback(OURS, [b.id], actor="ann")
    assert [one.edit.id for one in candidates(ledger, OURS, Wanted(fired=0, older_than_days=0))] == [c.id]


def test_who_made_an_edit_may_decide(ledger: Ledger) -> None:
    """Issue 6 §2: source trust."""
    [a] = written(ledger, "Aland")
    written(ledger, "Borduria", actor="bob")
    found = candidates(ledger, OURS, Wanted(fired=0, older_than_days=0, actors=("ann", "eve")))
    assert [one.edit.id for one in found] == [a.id]


@pytest.mark.parametrize("given", [{"fire": 1}, {"fired": -1}, {"older_than_days": "a week"}, {"actors": "ann"}, {"fired": True}])
def test_what_means_nothing_is_refused(given: dict[str, Any]) -> None:
    """A mistake in the settings would otherwise name nothing, or everything."""
    with pytest.raises(InvalidInput):
        Wanted.from_mapping(given)


def test_counts_are_written_in_batches(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the path of the answers: a note touches no file."""
    a, b = written(ledger, "Aland", "Borduria")
    fired, written_counts, write = Fired(ledger), list[dict[Any, int]](), ledger.count_fired

    def noted(counts: dict[Any, int]) -> None:
        written_counts.append(dict(counts))
        write(counts)

    monkeypatch.setattr(ledger, "count_fired", noted)
    for _ in range(3):
        fired.note(OURS, hits(a, b))
        fired.note(OURS, hits())
    assert written_counts == []
    fired.flush()
    fired.flush()
    assert written_counts == [{(OURS, a.id): 3, (OURS, b.id): 3}]
    fired.note(OURS, hits(b))
    fired.flush()
    assert ledger.fired(OURS) == {a.id: 3, b.id: 4}
    assert ledger.fired("other") == {}
    assert ledger.audit() == []


def test_counts_are_written_by_and_by_without_anybodys_doing(ledger: Ledger) -> None:
    """A server that runs for weeks must not keep them to itself."""
    [a] = written(ledger, "Aland")
    Fired(ledger, seconds=0.01).note(OURS, hits(a))
    deadline = time.monotonic() + 20
    while ledger.fired(OURS) != {a.id: 1}:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_counts_that_cannot_be_written_are_written_later(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is busy for a moment."""
    [a] = written(ledger, "Aland")
    fired = Fired(ledger)

    def busy(_counts: object) -> None:
        raise Busy("the ledger is busy.")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "count_fired", busy)
        fired.note(OURS, hits(a))
        fired.flush()
    fired.flush()
    assert ledger.fired(OURS) == {a.id: 1}


def test_a_ledger_that_is_read_only_counts_nothing(ledger: Ledger) -> None:
    """Nothing is written there."""
    [a] = written(ledger, "Aland")
    fired = Fired(Ledger(ledger.path, read_only=True))
    fired.note(OURS, hits(a))
    fired.flush()
    assert ledger.fired(OURS) == {}


Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def said(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `ke-tools promote` in the home; give exit code, what was printed, and what was to be promoted."""
    promoted: list[str] = []

    def promote(_self: object, edit_ids: list[str], **_how: object) -> dict[str, Any]:
        promoted.extend(edit_ids)
        return {"summary": "1 of 1 edits in the weights.", "status": "completed"}

    monkeypatch.setattr(local.Local, "promote", promote)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*words: str) -> tuple[int, str, list[str]]:
        promoted.clear()
        code = cli.run(["--home", str(settings.home), "promote", *words])
        told = capsys.readouterr()
        return code, told.out + told.err, list(promoted)

    return run


def test_auto_names_with_reasons_and_promotes_with_yes_only(ledger: Ledger, said: Run) -> None:
    """Issue 6 §2: `promote --auto` names edits worth promoting; nothing is promoted without a call."""
    a, b = written(ledger, "Aland", "Borduria")
    ledger.count_fired({(OURS, a.id): 2})
    code, output, promoted = said("--auto", "--older-than", "0", "--fired", "2")
    assert (code, promoted) == (0, [])
    assert a.id in output
    assert "0 days old, asked for 2 times, by ann" in output
    assert b.id not in output
    assert said("--auto", "--older-than", "0", "--fired", "2", "--yes")[2] == [a.id]
    assert said("--auto", "--older-than", "0", "--fired", "0", "--actor", "eve", "--yes")[2] == []


def test_auto_goes_by_the_settings(ledger: Ledger, settings: Settings, said: Run) -> None:
    """The same: a policy names them; a flag before the file."""
    [a] = written(ledger, "Aland")
    (settings.home / "ke-tools.toml").write_text("[promote.auto]\nolder_than_days = 0\nfired = 0\n", "utf-8")
    assert said("--auto", "--yes")[2] == [a.id]
    code, output, promoted = said("--auto", "--fired", "1", "--json")
    assert (code, promoted, json.loads(output)["candidates"]) == (0, [], [])


def test_ids_or_auto_but_not_both(said: Run) -> None:
    """Neither would be a guess."""
    assert said("--auto", "ed_0123456789abcdef")[1:] == said()[1:]
    assert "exactly one of them" in said()[1]


def test_the_settings_file_is_read_by_path(tmp_path: Path) -> None:
    """The table [promote] of ke-tools.toml; a variable cannot hold it."""
    (tmp_path / "ke-tools.toml").write_text(
        '[promote]\nreliability = 0.8\n[promote.tenants.acme]\nmemory_after_promotion = "off"\n', "utf-8"
    )
    found = Settings.load(home=str(tmp_path))
    assert found.promote == {"reliability": 0.8, "tenants": {"acme": {"memory_after_promotion": "off"}}}
    assert Settings.from_json(found.to_json()) == found
    assert hash(found) == hash(Settings.from_json(found.to_json()))
    (tmp_path / "ke-tools.toml").write_text("promote = 1\n", "utf-8")
    with pytest.raises(InvalidInput, match="table"):
        Settings.load(home=str(tmp_path))


def test_what_chooses_among_edits_is_refused_beside_named_ones(said: Run) -> None:
    """A flag that is silently left out would look as if it held."""
    code, output, promoted = said("ed_0123456789abcdef", "--fired", "3")
    assert (code != 0, promoted) == (True, [])
    assert "named already" in output

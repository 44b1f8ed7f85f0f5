"""What a purge erases, what it leaves, and what it says it left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ke_tools.errors import Busy, Conflict, InvalidInput, NotFound, WrongState
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot

RELEASE, OTHER = "rel_" + "a" * 24, "rel_" + "b" * 24


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger in a file."""
    with Ledger(tmp_path / "ledger.db") as made:
        yield made


def slot(fact: Fact) -> Slot:
    """One slot a subject."""
    return Slot(fact.subject, "", functional=True)


def write(ledger: Ledger, target: str, subject: str = "Brix", *, tenant: str = "acme", key: str = "", **more: Any) -> Edit:
    """Record a fact as a test's usual actor."""
    fact = Fact(subject=subject, prompt=f"{subject} says", target=target, **more)
    return ledger.edit(tenant, [fact], actor="ann", slot_of=slot, idempotency_key=key)[0]


def purge(ledger: Ledger, edit: Edit, **more: Any) -> Any:
    """Erase an edit."""
    return ledger.purge("acme", edit.id, actor="ann", reason="asked for", **more)


def left_of(ledger: Ledger, *texts: str) -> dict[str, set[str]]:
    """Which files of the ledger still hold which of the texts, in any case."""
    files = [file for file in Path(ledger.path).parent.iterdir() if file.name.startswith("ledger.db")]
    assert {"ledger.db", "ledger.db-wal"} <= {file.name for file in files}
    return {text: found for text in texts if (found := {file.name for file in files if text.lower().encode() in file.read_bytes().lower()})}


def test_no_byte_of_a_purged_text_is_left_in_the_file_or_its_log(ledger: Ledger) -> None:
    """Issue §4: `purge` erases a payload everywhere; the chain stays verifiable.

    The file was written without ``secure_delete``, and pages that were split and rewritten keep old bytes where it never looks.
    """
    numbers = [f"{number:03d}" for number in range(100)]
    edits = [write(ledger, f"zebra{number} {'q' * int(number[-2:])}", f"Brix{number}", aliases=(f"Oz{number}",)) for number in numbers]
    for edit in edits[1::4]:
        ledger.rollback("acme", [edit.id], actor="ann")
    gone = edits[::25]
    texts = [text for edit in gone for text in (edit.fact.target.split()[0], edit.fact.subject, edit.fact.aliases[0])]
    assert len(left_of(ledger, *texts)) == len(texts)

    for edit in gone:
        purge(ledger, edit)

    assert left_of(ledger, *texts) == {}
    assert left_of(ledger, "zebra001", "Oz099") == {"zebra001": {"ledger.db"}, "Oz099": {"ledger.db"}}
    assert {(finding.kind, finding.is_damage) for finding in ledger.audit()} == {("purged", False)}
    assert len(ledger.audit()) == len(gone)


def test_a_purge_takes_the_edit_back_as_a_rollback_does(ledger: Ledger) -> None:
    """What it superseded comes back, and whoever follows the ledger hears of it."""
    first, second = write(ledger, "one"), write(ledger, "two")
    seen = ledger.head()
    done = purge(ledger, second)
    assert (done.edit_id, done.revision, done.quoted_by, done.releases) == (second.id, 3, (), ())
    assert [edit.id for edit in ledger.live("acme")] == [first.id]
    assert ledger.changed("acme", seen) == {first.id, second.id}
    with pytest.raises(NotFound):
        ledger.get("acme", second.id)
    with pytest.raises(NotFound):
        ledger.rollback("acme", [second.id], actor="ann")


@pytest.mark.parametrize("state", ["superseded", "rolled back", "proposed"])
def test_an_edit_in_any_state_can_be_purged(ledger: Ledger, state: str) -> None:
    """What is without effect still has a text."""
    (edit,) = ledger.edit(
        "acme",
        [Fact(subject="Brix", prompt="Brix says", target="zebra")],
        actor="ann",
        slot_of=slot,
        state=State.PROPOSED if state == "proposed" else State.ACTIVE,
    )
    if state == "superseded":
        write(ledger, "two")
    if state == "rolled back":
        ledger.rollback("acme", [edit.id], actor="ann")
    purge(ledger, edit)
    assert left_of(ledger, "zebra") == ({"zebra": {"ledger.db"}} if state == "superseded" else {})  # its successor quotes it
    assert edit.id in ledger.changed("acme", ledger.head() - 1)
    assert [finding.kind for finding in ledger.audit()] == ["purged"]


def test_edits_that_quote_the_target_are_named(ledger: Ledger) -> None:
    """Log: `old_target` and `warnings` of what superseded it; only their own purge erases it."""
    first = write(ledger, "zebra")
    second = write(ledger, "two", old_target="Zebra")
    elsewhere = write(ledger, "zebra", "Elm")
    assert purge(ledger, first).quoted_by == (second.id,)
    assert purge(ledger, second).quoted_by == ()
    assert left_of(ledger, "two") == {}
    assert ledger.get("acme", elsewhere.id).fact.target == "zebra"


def test_words_about_it_go_and_what_was_done_stays(ledger: Ledger) -> None:
    """A reason or the evidence of a promotion may quote it, and nobody could purge these by themselves."""
    edit, other = write(ledger, "zebra"), write(ledger, "two", "Elm")
    ledger.promote("acme", [edit.id], release=RELEASE, actor="ann", evidence={"worst": [{"Asked": "What does Brix say?"}]})
    ledger.demote("acme", [edit.id], release="", actor="ann", reason="no zebra, please")
    ledger.rollback("acme", [edit.id, other.id], actor="ann", reason="a quiet day")
    done = purge(ledger, edit)
    assert left_of(ledger, "zebra", "Brix") == {}
    assert [(event.action, event.reason, event.purged) for event in ledger.history("acme").items] == [
        ("purge", "asked for", False),
        ("rollback", "a quiet day", False),
        ("demote", "", True),
        ("promote", "", True),
        ("edit", "", False),
        ("edit", "", True),
    ]
    assert done.releases == (RELEASE,)
    assert ledger.release_at("acme", 3) == RELEASE
    assert {finding.kind for finding in ledger.audit()} == {"purged"}


def test_scorecards_of_it_go(ledger: Ledger) -> None:
    """Issue §4: `purge` erases scorecards; one that comes in later is not kept."""
    edit, other = write(ledger, "zebra"), write(ledger, "two", "Elm")
    about = {"edits": [edit.id, other.id], "worst": "zebra"}
    gone, kept = ledger.keep_scorecard("acme", about), ledger.keep_scorecard("acme", {"edits": [other.id]})
    purge(ledger, edit)
    assert ledger.scorecard("acme", kept) == {"edits": [other.id]}
    with pytest.raises(NotFound):
        ledger.scorecard("acme", gone)
    with pytest.raises(WrongState, match=edit.id):
        ledger.keep_scorecard("acme", about)
    assert left_of(ledger, "zebra") == {}
    ledger._storage._main.execute("INSERT INTO scorecards VALUES ('acme', '', ?)", (json.dumps(about),))
    assert {finding.kind for finding in ledger.audit()} == {"purged", "unerased", "scorecard"}


def test_a_key_does_not_let_a_purged_text_be_guessed_or_written_again(ledger: Ledger) -> None:
    """Log: the keys stay taken, without the digest."""
    edit = write(ledger, "zebra", key="once")
    ledger.rollback("acme", [edit.id], actor="ann", reason="no zebra", idempotency_key="twice")
    purge(ledger, edit)
    assert {size for (size,) in ledger._storage._main.execute("SELECT length(arguments) FROM idempotency_keys")} == {0}
    with pytest.raises(Conflict):
        write(ledger, "zebra", key="once")
    assert [finding.kind for finding in ledger.audit()] == ["purged", "purged"]


def test_a_promoted_edit_leaves_the_weights_first(ledger: Ledger) -> None:
    """Issue §4: erased everywhere; no release that carries it is live afterwards, or ever again."""
    edit, other = write(ledger, "zebra"), write(ledger, "two", "Elm")
    ledger.promote("acme", [edit.id, other.id], release=RELEASE, actor="ann")
    then = ledger.head()
    with pytest.raises(WrongState, match=RELEASE):
        purge(ledger, edit)
    with pytest.raises(InvalidInput, match="leave the weights"):
        purge(ledger, edit, release=RELEASE)
    assert left_of(ledger, "zebra")
    done = purge(ledger, edit, release=OTHER)
    assert (done.releases, ledger.live_release("acme"), ledger.carried_by("acme", OTHER)) == ((RELEASE,), OTHER, (other.id,))
    assert ledger.rollback_to("acme", then, actor="ann").release == ""
    assert [edit.state for edit in ledger.live("acme")] == [State.ACTIVE]
    for release, carries in ((RELEASE, None), (OTHER, [edit.id])):
        with pytest.raises((InvalidInput, NotFound)):
            ledger.rollback("acme", [other.id], release=release, carries=carries, actor="ann")
    assert {finding.kind for finding in ledger.audit()} == {"purged"}


@pytest.mark.parametrize("reason", ["it said ZEBRA", "Brix wants it", "", " \n"])
def test_the_reason_is_kept_and_must_not_say_it_again(ledger: Ledger, reason: str) -> None:
    """The reason of a purge stands in the log for good."""
    edit = write(ledger, "zebra")
    with pytest.raises(InvalidInput) as caught:
        ledger.purge("acme", edit.id, actor="ann", reason=reason)
    assert "zebra" not in str(caught.value).lower()
    assert ledger.get("acme", edit.id) == edit


def test_a_target_of_signs_is_found_as_it_is_written(ledger: Ledger) -> None:
    """What has no letter folds to nothing, which is in every text."""
    edit = write(ledger, "∞")
    plain, quoting = write(ledger, "two", "Elm"), write(ledger, "three", old_target="∞")
    assert plain
    assert purge(ledger, edit).quoted_by == (quoting.id,)


def test_unknown_ids_are_not_found(ledger: Ledger) -> None:
    """Issue, bad input; another tenant's is unknown."""
    theirs = write(ledger, "zebra", tenant="other")
    for unknown in (theirs.id, "ed_0123456789abcdef", "nonsense", "", "ed_\ud800"):
        with pytest.raises(NotFound):
            ledger.purge("acme", unknown, actor="ann", reason="asked for")
    assert ledger.head() == 1


def test_of_a_purged_id_is_said_that_it_was_purged_and_its_history_stays(ledger: Ledger) -> None:
    """docs/forgetting.md: the history keeps who, when and why; who asks for it later must not hear that it never was."""
    edit = write(ledger, "zebra")
    purge(ledger, edit)
    events = ledger.history("acme", edit_id=edit.id).items
    assert (events[0].action, events[0].actor, events[0].note) == ("purge", "ann", "asked for")
    for call in (
        lambda: ledger.get("acme", edit.id),
        lambda: ledger.rollback("acme", [edit.id], actor="ann"),
    ):
        with pytest.raises(NotFound, match=f"{edit.id} was purged"):
            call()
    with pytest.raises(NotFound, match="there is no edit"):
        ledger.history("other", edit_id=edit.id)


def test_a_purge_that_was_cut_short_is_finished_by_repeating_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may die between the transaction and the rewriting of the file."""
    edit = write(ledger, "zebra")

    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ledger._storage, "rewrite", die)
        with pytest.raises(KeyboardInterrupt):
            purge(ledger, edit)
    assert ledger.live("acme") == []
    assert left_of(ledger, "zebra")
    head = ledger.head()
    assert (purge(ledger, edit).revision, ledger.head()) == (head, head)
    assert left_of(ledger, "zebra") == {}


def test_a_reader_that_holds_the_log_is_told_of(tmp_path: Path) -> None:
    """The text is gone for everybody who reads anew, but not from the file: whoever purges must hear that, and repeat it."""
    with Ledger(tmp_path / "ledger.db", busy_timeout_ms=50) as ledger, Ledger(tmp_path / "ledger.db") as reader:
        edit = write(ledger, "zebra")
        with reader._storage.reading() as db:
            assert db.execute("SELECT count(*) FROM edits").get == 1
            with pytest.raises(Busy, match=f"{edit.id} is purged, but"):
                purge(ledger, edit)
            assert ledger.live("acme") == []
        purge(ledger, edit)
        assert left_of(ledger, "zebra") == {}
        assert [finding.kind for finding in reader.audit()] == ["purged"]

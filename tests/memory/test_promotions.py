"""Which edits are in the weights, and which release is live, as the ledger tells it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ke_tools.errors import Conflict, InvalidInput, KeToolsError, LedgerDamaged, NotFound, ReadOnly, WrongState
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.events import Change, Standing, chain_hash
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.log import Author, append
from ke_tools.memory.migrations import migrate
from ke_tools.memory.slots import Slot
from ke_tools.memory.transfer import export_lines, import_lines


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """An empty ledger in memory."""
    with Ledger(":memory:") as made:
        yield made


def named(edits: Iterable[Edit | str]) -> str:
    """A name for a release of these edits, as what carries others has another name; none for none."""
    ids = sorted(edit if isinstance(edit, str) else edit.id for edit in edits)
    return "rel_" + hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:24] if ids else ""


def slot(fact: Fact) -> Slot:
    """One object a subject in capitals, several for any other."""
    return Slot(f"{fact.subject}\x1fis", "", functional=fact.subject.isupper())


def write(ledger: Ledger, *subjects: str, target: str = "x", tenant: str = "acme", **more: Any) -> list[Edit]:
    """Record a fact of each subject as a test's usual actor."""
    facts = [Fact(subject=subject, prompt=f"{subject} is", target=target) for subject in subjects]
    return ledger.edit(tenant, facts, actor="ann", slot_of=slot, **more)


def promote(ledger: Ledger, *edits: Edit, **more: Any) -> Any:
    """Promote exactly these edits."""
    return ledger.promote("acme", [edit.id for edit in edits], release=named(edits), actor="ann", **more)


def promoted(ledger: Ledger, tenant: str = "acme") -> list[str]:
    """Ids of a tenant's promoted edits, oldest first."""
    return [edit.id for edit in ledger.live(tenant) if edit.state is State.PROMOTED]


def ids(edits: Sequence[Edit]) -> list[str]:
    """Their ids."""
    return [edit.id for edit in edits]


# -- promoting -------------------------------------------------------------------------------------------------------------------


def test_a_promotion_makes_a_release_live_with_its_edits(ledger: Ledger) -> None:
    """Issue §4: the live pointer flips in one ledger transaction."""
    a, b, c = write(ledger, "A", "B", "C")
    assert ledger.live_release("acme") == ""
    done = promote(ledger, a, b, reason="asked", evidence={"scorecard": "ab12"})
    assert (ids(done.promoted), done.demoted, done.revision, done.release) == ([a.id, b.id], [], 4, named([a, b]))
    assert ledger.live_release("acme") == named([a, b])
    assert ledger.carried_by("acme", named([a, b])) == tuple(sorted([a.id, b.id]))
    assert [edit.state for edit in ledger.live("acme")] == [State.PROMOTED, State.PROMOTED, State.ACTIVE]
    assert [ledger.release_at("acme", revision) for revision in (0, 3, 4)] == ["", "", named([a, b])]
    for revision in (-1, 5, 2**70):
        with pytest.raises(InvalidInput, match="from 0 to 4"):
            ledger.release_at("acme", revision)
    assert ledger.get("acme", c.id).state is State.ACTIVE
    assert ledger.audit() == []


def test_a_release_says_all_that_is_promoted(ledger: Ledger) -> None:
    """Issue §4: batches are planned with all promoted edits together; what a new release does not carry acts from the memory again."""
    a, b, c = write(ledger, "A", "B", "C")
    promote(ledger, a, b)
    done = promote(ledger, b, c)
    assert (ids(done.promoted), ids(done.demoted)) == ([c.id], [a.id])
    assert promoted(ledger) == [b.id, c.id]


def test_promoting_what_is_promoted_records_nothing(ledger: Ledger) -> None:
    """Decision: as a rollback to where one is."""
    a, b = write(ledger, "A", "B")
    first = promote(ledger, a, b)
    again = promote(ledger, b, a)
    assert (again.promoted, again.revision, again.release) == ([], first.revision, first.release)
    assert ledger.head() == first.revision


def test_what_cannot_be_promoted_is_refused_and_nothing_is_done(ledger: Ledger) -> None:
    """Issue, bad input: promote of retired or unknown edits; here of proposed ones and another tenant's, too."""
    (a,) = write(ledger, "A")
    (waiting,) = write(ledger, "B", state=State.PROPOSED)
    (gone,) = write(ledger, "C")
    (newer,) = write(ledger, "C", target="y")
    (theirs,) = write(ledger, "D", tenant="other")
    ledger.rollback("acme", [newer.id], actor="ann")
    ledger.rollback("acme", [gone.id], actor="ann")
    head = ledger.head()
    refusals: list[tuple[Sequence[str], str, type[KeToolsError]]] = [
        ([a.id, waiting.id], named([a, waiting]), WrongState),
        ([a.id, gone.id], named([a, gone]), WrongState),
        ([a.id, theirs.id], named([a, theirs]), NotFound),
        ([a.id, "ed_0123456789abcdef"], named([a]), NotFound),
        ([a.id, "nonsense"], named([a]), NotFound),
        ([], named([a]), InvalidInput),
        ([a.id], "", InvalidInput),
        ([a.id], "../../etc", InvalidInput),
        ([a.id], "rel_\ud800", InvalidInput),
    ]
    for edit_ids, release, expected in refusals:
        with pytest.raises(expected):
            ledger.promote("acme", edit_ids, release=release, actor="ann")
    for evidence in ({"rate": float("nan")}, {"text": "\ud800"}, {"what": object()}):
        with pytest.raises(InvalidInput, match="evidence"):
            promote(ledger, a, evidence=evidence)
    assert (ledger.head(), promoted(ledger), ledger.live_release("acme")) == (head, [], "")


def test_a_name_stands_for_one_set_of_edits(ledger: Ledger) -> None:
    """Issue §4: a release is content-addressed; one name with other edits is somebody's mistake."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a)
    with pytest.raises(InvalidInput, match=a.id):
        ledger.promote("acme", [a.id, b.id], release=named([a]), actor="ann")
    assert promoted(ledger) == [a.id]


def test_a_release_planned_from_what_is_no_longer_live_is_refused(ledger: Ledger) -> None:
    """Design §3: undo first; a job that ends after its edit was demoted must not bring it back."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a, old_release="")
    ledger.demote("acme", [a.id], release="", actor="bob")
    with pytest.raises(Conflict, match="no release is live") as caught:
        promote(ledger, a, b, old_release=named([a]))
    assert caught.value.data == {"live_release": ""}
    assert promoted(ledger) == []


# -- taking out of the weights ---------------------------------------------------------------------------------------------------


def test_a_demotion_leaves_the_edit_in_the_memory(ledger: Ledger) -> None:
    """Issue §4: rollback(edit_ids, to="memory") only takes them out of the weights."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a, b)
    done = ledger.demote("acme", [a.id], release=named([b]), actor="ann", reason="slow")
    assert (done.promoted, ids(done.demoted), done.release) == ([], [a.id], named([b]))
    assert (promoted(ledger), ids(ledger.live("acme"))) == ([b.id], [a.id, b.id])
    ledger.demote("acme", [b.id], release="", actor="ann")
    assert (promoted(ledger), ledger.live_release("acme")) == ([], "")
    with pytest.raises(WrongState, match="active"):
        ledger.demote("acme", [b.id], release="", actor="ann")


def test_a_rollback_of_a_promoted_edit_needs_a_release_without_it(ledger: Ledger) -> None:
    """Issue §4: rollback(edit_ids) retires the edits on every rung; both in one event."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a, b)
    with pytest.raises(WrongState, match=named([a, b])):
        ledger.rollback("acme", [a.id], actor="ann")
    with pytest.raises(InvalidInput, match="leave the weights"):
        ledger.rollback("acme", [a.id], actor="ann", release=named([a, b]))
    done = ledger.rollback("acme", [a.id], actor="ann", release=named([b]), idempotency_key="k")
    assert (ids(done.retired), done.release, promoted(ledger)) == ([a.id], named([b]), [b.id])
    assert ledger.rollback("acme", [a.id], actor="ann", release=named([b]), idempotency_key="k") == done
    with pytest.raises(Conflict):
        ledger.rollback("acme", [a.id], actor="ann", release="", idempotency_key="k")
    assert ledger.head() == done.revision


def test_a_release_without_edits_is_no_release(ledger: Ledger) -> None:
    """Design: a release without any change is refused; "" is none."""
    a, _ = write(ledger, "A", "B")
    promote(ledger, a)
    with pytest.raises(InvalidInput, match="0 edits"):
        ledger.rollback("acme", [a.id], actor="ann", release="rel_" + "0" * 24)
    for name in ("../../etc", "rel_\ud800"):
        assert ledger.carried_by("acme", name) == ()
        with pytest.raises(InvalidInput, match="no name"):
            ledger.demote("acme", [a.id], actor="ann", release=name)
    assert promoted(ledger) == [a.id]


def test_a_release_that_carries_what_was_taken_back_stays_away(ledger: Ledger) -> None:
    """Issue §4: retired on every rung; a flip to an older release must not bring it back."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a, b)
    ledger.rollback("acme", [a.id], actor="ann", release=named([b]))
    with pytest.raises(WrongState, match=f"{a.id}, which is rolled back"):
        ledger.demote("acme", [b.id], release=named([a]), carries=[a.id], actor="ann")
    assert ledger.live_release("acme") == named([b])


def test_a_newer_edit_takes_the_older_out_of_the_weights(ledger: Ledger) -> None:
    """Issue 6 §4: never a stale fact in the weights; the flip is of the same event, so that nothing lies between."""
    (a,) = write(ledger, "A")
    promote(ledger, a)
    (newer,) = write(ledger, "A", target="y")
    assert (promoted(ledger), ledger.live_release("acme"), ledger.outdated("acme")) == ([], "", [])
    assert "the superseded edit leaves the weights; no release is live" in newer.warnings
    assert [event.action for event in ledger.history("acme", edit_id=a.id).items] == ["edit", "promote", "edit"]
    ledger.rollback("acme", [newer.id], actor="ann")
    assert [edit.state for edit in ledger.live("acme")] == [State.ACTIVE]  # comes back, into the memory
    ledger.rollback_to("acme", newer.revision - 1, actor="ann")
    assert promoted(ledger) == [a.id]
    assert ledger.audit() == []


def test_of_what_was_live_before_the_largest_release_without_the_older_is_live(ledger: Ledger) -> None:
    """The same: the rest stays in the weights as far as a release of it is there, and else acts from the memory."""
    a, b, c = write(ledger, "A", "B", "C")
    promote(ledger, b)
    promote(ledger, a, b, c)
    (newer,) = write(ledger, "A", target="y")
    assert (ledger.live_release("acme"), promoted(ledger)) == (named([b]), [b.id])
    assert ids(ledger.live("acme")) == [b.id, c.id, newer.id]
    assert f"the superseded edit leaves the weights; {named([b])} is live" in newer.warnings


def test_a_proposal_or_a_dry_run_takes_nothing_out_of_the_weights(ledger: Ledger) -> None:
    """Neither has an effect yet."""
    (a,) = write(ledger, "A")
    promote(ledger, a)
    write(ledger, "A", target="y", state=State.PROPOSED)
    (would,) = write(ledger, "A", target="y", dry_run=True)
    assert "the superseded edit leaves the weights; no release is live" in would.warnings
    assert promoted(ledger) == [a.id]


def test_a_release_knows_the_evidence_by_which_it_was_promoted(ledger: Ledger) -> None:
    """Issue 6 §4: scorecards lie in the ledger and refer to the release."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a, evidence={"scorecard": "5" * 64})
    promote(ledger, a, b)
    assert ledger.evidence_of("acme", named([a])) == {"scorecard": "5" * 64}
    assert [ledger.evidence_of("acme", name) for name in (named([a, b]), named([b]), "none")] == [{}, {}, {}]
    assert ledger.evidence_of("other", named([a])) == {}


def test_a_rollback_to_a_revision_restores_the_release(ledger: Ledger) -> None:
    """Issue §4: rollback(to_revision=N) restores which edits were active and promoted at N."""
    a, b = write(ledger, "A", "B")
    first = promote(ledger, a).revision
    second = promote(ledger, a, b).revision
    done = ledger.rollback_to("acme", first, actor="ann")
    assert (done.retired, done.restored, done.release, promoted(ledger)) == ([], [], named([a]), [a.id])
    assert ledger.rollback_to("acme", first, actor="ann").revision == done.revision
    ledger.rollback_to("acme", 0, actor="ann")
    assert (ledger.live("acme"), ledger.live_release("acme")) == ([], "")
    assert ledger.rollback_to("acme", second, actor="ann").release == named([a, b])
    assert promoted(ledger) == [a.id, b.id]
    assert ledger.audit() == []


def test_a_rollback_flips_even_where_no_edit_changes(ledger: Ledger) -> None:
    """The same: of two revisions with the same live edits, one had them in the weights."""
    (a,) = write(ledger, "A")
    first = promote(ledger, a).revision
    ledger.demote("acme", [a.id], release="", actor="ann")
    done = ledger.rollback_to("acme", first, actor="ann")
    assert (done.release, done.retired, done.restored, promoted(ledger)) == (named([a]), [], [], [a.id])


# -- reading -------------------------------------------------------------------------------------------------------------------


def test_the_history_reads_well(ledger: Ledger) -> None:
    """Issue §3 of the ledger: events with actor and reason; what went live is told beside."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a, b, reason="they last", evidence={"rung": "memit"})
    ledger.demote("acme", [a.id], release=named([b]), actor="bob")
    ledger.rollback("acme", [b.id], release="", actor="cyd", reason="wrong")
    ledger.purge("acme", a.id, actor="dan", reason="asked for")
    page = ledger.history("acme")
    assert [(event.action, event.actor, event.note) for event in page.items] == [
        ("purge", "dan", "asked for"),
        ("rollback", "cyd", "wrong; no release is live"),
        ("demote", "bob", f"{named([b])} is live with 1 edit"),
        ("promote", "ann", f"they last; {named([a, b])} is live with 2 edits"),
        ("edit", "ann", ""),
        ("edit", "ann", "what it said was purged"),
    ]
    assert page.items[3].payload["evidence"] == {"rung": "memit"}
    assert page.items[3].edit_ids == tuple(sorted([a.id, b.id]))


def test_lists_show_what_is_promoted(ledger: Ledger) -> None:
    """Design §1: the states of an edit."""
    a, b = write(ledger, "A", "B")
    promote(ledger, a)
    assert ids(ledger.edits("acme", states=[State.PROMOTED]).items) == [a.id]
    assert ids(ledger.edits("acme", states=[State.ACTIVE]).items) == [b.id]


def test_whoever_follows_the_ledger_hears_of_it(ledger: Ledger) -> None:
    """Contract: since and changed are what an index is refreshed by."""
    a, b = write(ledger, "A", "B")
    seen = ledger.head()
    promote(ledger, a)
    assert [(edit.id, edit.is_live, edit.state) for edit in ledger.since("acme", seen)] == [(a.id, True, State.PROMOTED)]
    assert ledger.changed("acme", seen) == {a.id}
    assert b.id not in ledger.changed("acme", seen)


def test_another_tenant_sees_no_release(ledger: Ledger) -> None:
    """users-trust-scale §3a no. 4: write as A, read as B."""
    (a,) = write(ledger, "A")
    sha = ledger.keep_scorecard("acme", {"edits": [a.id]})
    promote(ledger, a)
    (theirs,) = write(ledger, "A", tenant="other")
    ledger.promote("other", [theirs.id], release=named([theirs]), actor="eve")
    assert ledger.carried_by("other", named([a])) == ()
    assert ledger.release_at("other", 2) == ""
    calls: list[Callable[[], object]] = [
        lambda: ledger.demote("other", [a.id], release="", actor="eve"),
        lambda: ledger.rollback("other", [a.id], release="", actor="eve"),
        lambda: ledger.purge("other", a.id, actor="eve", reason="mine", release=""),
        lambda: ledger.promote("other", [theirs.id, a.id], release=named([a, theirs]), actor="eve"),
        lambda: ledger.demote("other", [theirs.id], release=named([a]), carries=[a.id], actor="eve"),
        lambda: ledger.scorecard("other", sha),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()
    ledger.demote("other", [theirs.id], release="", actor="eve")
    assert (ledger.live_release("acme"), promoted(ledger)) == (named([a]), [a.id])


def test_reading_the_live_release_is_cheap(tmp_path: Path) -> None:
    """It is asked on every request, however many edits the release carries; in processor time, as others may use the machine."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        edits = write(ledger, *(f"S{number}" for number in range(500)))
        promote(ledger, *edits)
        taken = []
        for _ in range(300):
            begin = time.thread_time()
            ledger.live_release("acme")
            taken.append(time.thread_time() - begin)
    assert median(taken) < 200e-6


def test_a_promoted_edit_is_exported_as_an_edit_and_an_import_promotes_nothing(ledger: Ledger) -> None:
    """Design: what is in the weights of one model is in nobody's file; the round trip is the identity all the same."""
    a, _ = write(ledger, "A", "B")
    before = list(export_lines(ledger, "acme"))
    promote(ledger, a)
    assert list(export_lines(ledger, "acme")) == before
    lines = list(export_lines(ledger, "acme", events=True))
    assert json.loads(lines[-1])["event"]["flip"] == {"release": named([a]), "edit_ids": [a.id]}
    with Ledger(":memory:") as two:
        answers = list(import_lines(two, "acme", lines, actor="bob", slot_of=slot))
        assert [answer.get("skipped") for answer in answers] == [None, None, True, True, True]
        assert {edit.state for edit in two.live("acme")} == {State.ACTIVE}
        assert two.live_release("acme") == ""
        assert list(export_lines(two, "acme")) == before
        [refused] = import_lines(two, "acme", [json.dumps({**json.loads(before[0]), "state": "promoted"})], actor="bob")
        assert refused["error"]["code"] == "E_INVALID"


# -- scorecards ----------------------------------------------------------------------------------------------------------------


def test_a_scorecard_is_kept_under_the_hash_of_what_it_says(ledger: Ledger) -> None:
    """Issue §1: scorecards are stored by content hash."""
    sha = ledger.keep_scorecard("acme", {"b": 1, "a": ["ü", 0.5]})
    assert sha == hashlib.sha256('{"a":["ü",0.5],"b":1}'.encode()).hexdigest()
    assert ledger.keep_scorecard("acme", {"a": ["ü", 0.5], "b": 1}) == sha
    assert ledger.scorecard("acme", sha) == {"a": ["ü", 0.5], "b": 1}
    assert ledger.head() == 0
    for unknown in ("", "0" * 64, "\ud800"):
        with pytest.raises(NotFound):
            ledger.scorecard("acme", unknown)
    with pytest.raises(InvalidInput, match="JSON"):
        ledger.keep_scorecard("acme", {"rate": float("inf")})


def test_a_scorecard_that_was_altered_is_damage(ledger: Ledger) -> None:
    """Design §4 no. 8: what a gate decided by must be what was found."""
    sha = ledger.keep_scorecard("acme", {"rate": 0.5})
    ledger._storage._main.execute("DROP TRIGGER scorecards_stay; UPDATE scorecards SET scorecard = replace(scorecard, '5', '9')")
    with pytest.raises(LedgerDamaged, match=sha):
        ledger.scorecard("acme", sha)
    assert ("scorecard", True) in {(finding.kind, finding.is_damage) for finding in ledger.audit()}


# -- the log -------------------------------------------------------------------------------------------------------------------


def test_events_without_a_flip_hash_as_ever() -> None:
    """Issue §3 of the ledger: the chain of a ledger that an earlier version wrote must still hold."""
    row = (1, "acme", "edit", "ann", "2026-01-01T00:00:00.000Z")
    changes = [Change("ed_b", Standing.SUPERSEDED, "ed_a"), Change("ed_a", Standing.ACTIVE)]
    expected = "d930cfdf650211ac179df049e41d9865eb11e4a6009d12495ffa63123f49b719"
    assert chain_hash(bytes(32), row, bytes(range(32)), changes).hex() == expected


def test_a_ledger_of_before_there_were_releases_is_read_and_brought_up(tmp_path: Path) -> None:
    """Numbered migrations; one that is only read has no release, and is sound."""
    path = tmp_path / "ledger.db"
    db = apsw.Connection(str(path))
    migrate(db, 3)
    with Ledger(":memory:") as other:
        payload = {**dict(other.history("acme", edit_id=write(other, "A")[0].id).items[0].payload)}
    append(db, Author("acme", "ann"), "edit", payload, [Change(payload["id"], Standing.ACTIVE)])
    db.close()
    with Ledger(path, read_only=True) as ledger:
        assert (ledger.live_release("acme"), ledger.carried_by("acme", named(["x"])), ledger.outdated("acme")) == ("", (), [])
        assert [event.flip for event in ledger.history("acme").items] == [None]
        assert ledger.audit() == []
        with pytest.raises(NotFound):
            ledger.scorecard("acme", "0" * 64)
        with pytest.raises(ReadOnly):
            ledger.promote("acme", [payload["id"]], release=named([payload["id"]]), actor="ann")
    with Ledger(path) as ledger:
        promote(ledger, *ledger.live("acme"))
        assert promoted(ledger) == [payload["id"]]
        assert ledger.audit() == []


def test_flips_take_nothing_but_appends(ledger: Ledger) -> None:
    """Issue §3 of the ledger: append-only."""
    promote(ledger, *write(ledger, "A"))
    sha = ledger.keep_scorecard("acme", {})
    assert sha
    with ledger._storage.writing(keep=False) as db:
        for statement in ("UPDATE flips SET release = ''", "DELETE FROM flips", "UPDATE scorecards SET scorecard = ''"):
            with pytest.raises(apsw.ConstraintError):
                db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE flips SET release = 'rel_000000000000000000000000' WHERE seq = 3", {("chain", 3)}),
        ("UPDATE flips SET edit_ids = '[]' WHERE seq = 3", {("chain", 3), ("release", 0)}),
        ("UPDATE flips SET edit_ids = '[' WHERE seq = 3", {("chain", 3), ("projection", 0), ("file", 0)}),
        ("DELETE FROM flips WHERE seq = 3", {("chain", 3), ("release", 0)}),
        ("INSERT INTO flips VALUES (2, 'acme', '', '[]')", {("chain", 2)}),
        ("INSERT INTO flips VALUES (2, 'other', '', '[]')", {("chain", 2)}),
        ("UPDATE edits SET standing = 'active'", {("projection", 0)}),
    ],
)
def test_an_audit_finds_a_live_release_that_was_altered(tmp_path: Path, statement: str, expected: set[tuple[str, int]]) -> None:
    """Issue §3 of the ledger: `doctor --deep` re-derives everything from the log and reports any difference."""
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        a, _ = write(ledger, "A", "B")
        promote(ledger, a)
    db = apsw.Connection(str(path))
    guards = list(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    for name, _sql in guards:
        db.execute(f"DROP TRIGGER {name}")
    for text in (statement, *(sql for _, sql in guards)):
        db.execute(text)
    db.close()
    with Ledger(path) as ledger:
        assert {(finding.kind, finding.seq) for finding in ledger.audit()} == expected


# -- against a model of it -------------------------------------------------------------------------------------------------------

TENANTS = ("acme", "other")


class Model:
    """One tenant: what was written, what of it is not taken back, and what the live release carries."""

    def __init__(self) -> None:
        self.order: list[tuple[str, str]] = []  # (id, what gives way together), oldest first
        self.stands: set[str] = set()
        self.purged: set[str] = set()
        self.carried: frozenset[str] = frozenset()
        self.were_live: list[frozenset[str]] = []

    @property
    def live(self) -> list[str]:
        """Of each stack the newest that is not taken back; one that was purged covers what is under it and does not act itself."""
        newest = {stack: edit_id for edit_id, stack in self.order if edit_id in self.stands}
        return [edit_id for edit_id, _ in self.order if edit_id in newest.values() and edit_id not in self.purged]

    @property
    def promoted(self) -> list[str]:
        """The law."""
        return [edit_id for edit_id in self.live if edit_id in self.carried]

    @property
    def known(self) -> list[str]:
        """What can be named."""
        return [edit_id for edit_id, _ in self.order if edit_id not in self.purged]

    def snapshot(self) -> tuple[frozenset[str], frozenset[str]]:
        """What a rollback to this moment restores."""
        return frozenset(self.stands), self.carried


class ReleasesBesideModel(RuleBasedStateMachine):
    """Edits, promotions, demotions, rollbacks and purges in any order, beside sets of ids.

    Issue §4: `rollback(to_revision=N)` restores which edits were active and promoted at N; the live release follows from the log.
    """

    @initialize()
    def start(self) -> None:
        """Start empty."""
        self.ledger = Ledger(":memory:")
        self.of = {tenant: Model() for tenant in TENANTS}
        self.seen = {0: {tenant: Model().snapshot() for tenant in TENANTS}}

    def teardown(self) -> None:
        """Replay the log, and compare."""
        if hasattr(self, "ledger"):
            for revision, snapshot in self.seen.items():
                for tenant, (_, carried) in snapshot.items():
                    assert self.ledger.release_at(tenant, revision) == named(carried)
            assert all(finding.kind == "purged" for finding in self.ledger.audit())
            self.ledger.close()

    def keep(self) -> None:
        """Remember what stands at this revision."""
        self.seen[self.ledger.head()] = {tenant: model.snapshot() for tenant, model in self.of.items()}
        for model in self.of.values():
            model.were_live.append(model.carried)

    @rule(tenant=st.sampled_from(TENANTS), subject=st.sampled_from("ABcd"), says=st.sampled_from("xyz"))
    def edit(self, tenant: str, subject: str, says: str) -> None:
        """Correct a fact; subjects in capitals have one object."""
        [made] = write(self.ledger, subject, target=says, tenant=tenant)
        model, before = self.of[tenant], set(self.of[tenant].promoted)
        model.order.append((made.id, subject if subject.isupper() else subject + says))
        model.stands.add(made.id)
        if before - set(model.live):
            kept = model.carried & set(model.live)
            model.carried = max((was for was in model.were_live if was <= kept), key=len, default=frozenset())
        self.keep()

    @precondition(lambda self: any(model.live for model in self.of.values()))
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        """Promote some that are live, promoted before or not."""
        tenant = data.draw(st.sampled_from([tenant for tenant, model in self.of.items() if model.live]))
        model = self.of[tenant]
        some = data.draw(st.lists(st.sampled_from(model.live), min_size=1, unique=True))
        before = set(model.promoted)
        done = self.ledger.promote(tenant, some, release=named(some), actor="ann", old_release=named(model.carried))
        model.carried = frozenset(some)
        assert set(ids(done.promoted)) == set(some) - before
        assert set(ids(done.demoted)) == before - set(some)
        self.keep()

    @precondition(lambda self: any(len(model.known) > len(model.live) for model in self.of.values()))
    @rule(data=st.data())
    def promote_what_is_retired(self, data: st.DataObject) -> None:
        """It is refused."""
        tenant = data.draw(st.sampled_from([tenant for tenant, model in self.of.items() if len(model.known) > len(model.live)]))
        edit_id = data.draw(st.sampled_from([one for one in self.of[tenant].known if one not in self.of[tenant].live]))
        with pytest.raises(WrongState):
            self.ledger.promote(tenant, [edit_id], release=named([edit_id]), actor="ann")

    @precondition(lambda self: any(model.carried for model in self.of.values()))
    @rule(data=st.data())
    def demote(self, data: st.DataObject) -> None:
        """Take some out of the weights."""
        tenant = data.draw(st.sampled_from([tenant for tenant, model in self.of.items() if model.carried]))
        model = self.of[tenant]
        some = data.draw(
            st.lists(st.sampled_from([one for one in model.known if one in model.carried]), min_size=1, unique=True)
        )  # ids are random
        left = [edit_id for edit_id in model.promoted if edit_id not in some]
        self.ledger.demote(tenant, some, release=named(left), actor="ann")
        model.carried = frozenset(left)
        self.keep()

    @precondition(lambda self: any(model.known for model in self.of.values()))
    @rule(data=st.data(), flips=st.sampled_from(["no", "left", "other"]))
    def roll_back(self, data: st.DataObject, flips: str) -> None:
        """Take some back, live or superseded; with what is left promoted, or a release of the caller's own, or none named."""
        tenant = data.draw(st.sampled_from([tenant for tenant, model in self.of.items() if model.known]))
        model = self.of[tenant]
        some = data.draw(st.lists(st.sampled_from(model.known), min_size=1, max_size=3, unique=True))
        if not set(some) <= model.stands or (flips == "no" and model.carried & set(some)):
            with pytest.raises(WrongState):
                self.ledger.rollback(tenant, some, actor="ann")
            return
        carried = model.carried
        more: dict[str, Any] = {}
        if flips == "left":
            carried = frozenset(model.promoted) - set(some)
            more = {"release": named(carried)}
        elif flips == "other":
            others = [edit_id for edit_id in model.known if edit_id in model.stands and edit_id not in some]
            carried = frozenset(data.draw(st.lists(st.sampled_from(others), unique=True)) if others else [])
            more = {"release": named(carried), "carries": sorted(carried)}
        done = self.ledger.rollback(tenant, some, actor="ann", **more)
        before = set(model.live)
        model.stands -= set(some)
        model.carried = carried
        assert {edit.id for edit in done.restored} == set(model.live) - before
        assert done.release == named(carried)
        self.keep()

    @rule(tenant=st.sampled_from(TENANTS), data=st.data())
    def roll_back_to(self, tenant: str, data: st.DataObject) -> None:
        """Return to a state that was seen, less what was purged since."""
        revision = data.draw(st.sampled_from(sorted(self.seen)))
        self.ledger.rollback_to(tenant, revision, actor="ann")
        model = self.of[tenant]
        stands, carried = self.seen[revision][tenant]
        model.stands = set(stands)
        model.carried = frozenset() if carried & model.purged else carried
        head = self.ledger.head()
        assert self.ledger.rollback_to(tenant, revision, actor="ann").revision == head
        self.keep()

    @precondition(lambda self: any(model.known for model in self.of.values()))
    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        """Erase one, in whatever state; what it covered comes back as by a rollback."""
        tenant = data.draw(st.sampled_from([tenant for tenant, model in self.of.items() if model.known]))
        model = self.of[tenant]
        edit_id = data.draw(st.sampled_from(model.known))
        more: dict[str, Any] = {}
        if edit_id in model.carried:
            with pytest.raises(WrongState):
                self.ledger.purge(tenant, edit_id, actor="ann", reason="asked for")
            model.carried = frozenset(model.promoted) - {edit_id}
            more = {"release": named(model.carried)}
        self.ledger.purge(tenant, edit_id, actor="ann", reason="asked for", **more)
        model.stands.discard(edit_id)
        model.purged.add(edit_id)
        self.keep()

    @invariant()
    def both_agree(self) -> None:
        """What is live, promoted and carried is what the model says, for each tenant."""
        for tenant, model in getattr(self, "of", {}).items():
            assert ids(self.ledger.live(tenant)) == model.live
            assert promoted(self.ledger, tenant) == model.promoted
            assert self.ledger.live_release(tenant) == named(model.carried)
            assert set(self.ledger.carried_by(tenant, named(model.carried))) == model.carried
            assert set(ids(self.ledger.outdated(tenant))) == model.carried - set(model.live)


TestReleasesBesideModel = ReleasesBesideModel.TestCase
TestReleasesBesideModel.settings = settings(max_examples=10, stateful_step_count=25, deadline=None, derandomize=True)


class ReleasesBesideModelForLong(ReleasesBesideModel):
    """The same, many more of them."""


TestReleasesBesideModelForLong = pytest.mark.slow(ReleasesBesideModelForLong.TestCase)
TestReleasesBesideModelForLong.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)

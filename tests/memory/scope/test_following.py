"""How a scope follows the ledger: without holding up questions, and from a file where there is a good one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.errors import LedgerDamaged
from ke_tools.facts import Edit, Fact
from ke_tools.memory.corrections import Correction
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Decision, Reading, Scope, following, stored, tenant
from ke_tools.memory.scope.scorer import CosineScorer
from ke_tools.memory.scope.stored import Origin
from ke_tools.memory.scope.tenant import Derived, Recent, Tenant
from ke_tools.memory.slots import slot_of
from ke_tools.memory.subjects import Key, keys_of
from ke_tools.testing import HashingEmbedder, memory_ledger


def fact(number: int) -> Fact:
    """One of many."""
    return Fact(subject=f"Subject {number}", prompt=f"The ruler of Subject {number} is", target=f"Ruler {number}")


def described(number: int) -> Fact:
    """A thing without a name."""
    return Fact(subject=f"our policy {number}", prompt=f"The length of our policy {number} is", target="45 days")


def write(ledger: Ledger, *facts: Fact, owner: str = "t") -> list[Edit]:
    """Make edits."""
    return [e for e in ledger.edit_each(owner, [Correction.of(f, slot_of) for f in facts], actor="test") if isinstance(e, Edit)]


def ask(scope: Scope, text: str, owner: str = "t") -> Decision:
    """Decide."""
    return scope.decide(owner, Reading(text))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in a file, as only such a one has index files."""
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the files lie."""
    return tmp_path / "cache"


@pytest.fixture
def start(ledger: Ledger, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scope]:
    """Start a scope as a new process would; a few edits are worth a file."""
    monkeypatch.setattr(following, "_WORTH_A_FILE", 2)

    def begin(embedder: Any = None) -> Scope:
        join("ke-scope-save")
        return Scope(ledger, embedder or HashingEmbedder(), CosineScorer(HashingEmbedder(), within=0.7, grey=0.5), cache=cache)

    return begin


def join(name: str) -> None:
    """Wait for threads of this name."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()


def file_in(cache: Path) -> Path:
    """The only file."""
    join("ke-scope-save")
    (path,) = (cache / "scope").iterdir()
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Every edit's names whose keys are derived."""
    asked: list[tuple[str, ...]] = []

    def counting(names: Iterable[str]) -> tuple[Key, ...]:
        asked.append(tuple(names))
        return keys_of(asked[-1])

    monkeypatch.setattr(tenant, "keys_of", counting)
    return asked


def test_a_start_from_a_file_derives_only_what_changed_since(
    ledger: Ledger, start: Callable[..., Scope], cache: Path, counted: list[tuple[str, ...]]
) -> None:
    """The issue on scope: a file written at an older revision is caught up."""
    edits = write(ledger, *map(fact, range(40)))
    ask(start(), "hello")
    assert file_in(cache).exists()
    write(ledger, fact(40))
    ledger.rollback("t", [edits[0].id], actor="test")
    counted.clear()
    scope = start()

    assert ask(scope, "The ruler of Subject 40 is").zone == "in"
    assert ask(scope, "The ruler of Subject 7 is").zone == "in"
    assert ask(scope, "The ruler of Subject 0 is").zone == "out"
    assert counted == [("Subject 40",)]
    assert scope.audit() == []


def test_vectors_come_from_the_file(ledger: Ledger, start: Callable[..., Scope], cache: Path) -> None:
    """The issue on scope: embedding a thousand descriptions takes seconds."""
    write(ledger, *map(described, range(3)))
    first = start()
    first.warm()
    ask(first, "The length of the policy 1 is")
    write(ledger, *map(described, range(3, 8)))
    ask(first, "The length of the policy 1 is")
    ask(first, "hello")
    write(ledger, *map(described, range(8, 16)))
    ask(first, "hello")
    file_in(cache)

    class Asked(HashingEmbedder):
        texts: list[str] = []  # noqa: RUF012  one test's

        def encode(self, texts: Any) -> Any:
            self.texts.extend(texts)
            return super().encode(texts)

    scope = start(Asked())
    assert ask(scope, "The length of the policy 1 is").hits[0].how == "alike"
    assert "The length of our policy 1 is" not in Asked.texts
    assert scope.audit() == []


def damaged(path: Path, _ledger: Ledger) -> None:
    """A flipped bit."""
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(whole)


def shortened(path: Path, _ledger: Ledger) -> None:
    """A torn write."""
    path.write_bytes(path.read_bytes()[:-10])


def replaced(path: Path, _ledger: Ledger) -> None:
    """A folder in the file's place."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(("damage", "told"), [(damaged, "damaged"), (shortened, "damaged"), (replaced, "cannot be read")])
def test_a_file_that_cannot_be_used_is_made_anew_and_reported(
    ledger: Ledger,
    start: Callable[..., Scope],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, Ledger], None],
    told: str,
) -> None:
    """The issue on scope: never an error to the user."""
    write(ledger, *map(fact, range(4)))
    ask(start(), "hello")
    damage(file_in(cache), ledger)
    scope = start()

    with caplog.at_level(logging.WARNING):
        decision = ask(scope, "The ruler of Subject 3 is")
        join("ke-scope-save")

    assert decision.zone == "in"
    assert told in decision.stages["index"]
    assert told in scope.notes()["t"]
    assert told in caplog.text
    if damage is not replaced:
        assert "index" not in ask(start(), "The ruler of Subject 3 is").stages


def test_a_file_of_another_embedding_model_is_made_anew(ledger: Ledger, start: Callable[..., Scope], cache: Path) -> None:
    """The issue on scope: the header holds the model's fingerprint."""
    write(ledger, *map(fact, range(4)))
    ask(start(), "hello")
    file_in(cache)

    assert "another embedding model" in ask(start(HashingEmbedder(128)), "hello").stages["index"]


@pytest.mark.parametrize("events", [2, 9])
def test_a_file_of_another_history_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, events: int) -> None:
    """The issue on scope: a ledger restored from a copy, or begun anew in the same place, is another ledger at the same revision."""
    monkeypatch.setattr(following, "_WORTH_A_FILE", 2)
    path = tmp_path / "ledger.db"
    with Ledger(path) as first:
        write(first, *map(fact, range(5)))
        ask(Scope(first, HashingEmbedder(), CosineScorer(HashingEmbedder()), cache=cache), "hello")
    file_in(cache)
    for part in tmp_path.glob("ledger.db*"):
        part.unlink()
    with Ledger(path) as second:
        write(second, *map(fact, range(10, 10 + events)))
        scope = Scope(second, HashingEmbedder(), CosineScorer(HashingEmbedder()), cache=cache)

        assert "another ledger" in ask(scope, "hello").stages["index"]
        assert ask(scope, "The ruler of Subject 3 is").reason == "names no edited subject"
        assert ask(scope, "The ruler of Subject 11 is").zone == "in"
        join("ke-scope-save")


def purge(ledger: Ledger, edit: Edit) -> None:
    """Erase an edit."""
    ledger.purge("t", edit.id, actor="test", reason="asked for")


@pytest.mark.parametrize("is_running", [True, False])
def test_no_text_of_a_purged_edit_stays_in_the_file(ledger: Ledger, start: Callable[..., Scope], cache: Path, *, is_running: bool) -> None:
    """What a purge erases must not live on in a cache."""
    edits = write(ledger, *map(fact, range(6)))
    scope = start()
    ask(scope, "hello")
    assert b"subject 3" in file_in(cache).read_bytes()

    purge(ledger, edits[3])
    ask(scope if is_running else start(), "hello")

    assert b"subject 3" not in file_in(cache).read_bytes()
    assert ask(start(), "The ruler of Subject 5 is").zone == "in"


def test_a_file_that_was_being_written_does_not_outlive_a_purge(
    ledger: Ledger, start: Callable[..., Scope], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a purge erases must not live on in a cache, whichever thread is the slower."""
    edits = write(ledger, *map(fact, range(6)))
    go_on = threading.Event()
    stored_write = stored.write

    def slow(path: Path, origin: Origin, derived: Derived) -> None:
        assert go_on.wait(10)
        stored_write(path, origin, derived)

    monkeypatch.setattr(stored, "write", slow)
    scope = start()
    ask(scope, "hello")
    purge(ledger, edits[3])
    ask(scope, "hello")
    go_on.set()

    assert b"subject 3" not in file_in(cache).read_bytes()
    assert b"subject 4" in file_in(cache).read_bytes()


def test_a_cache_that_takes_no_files_is_no_error(ledger: Ledger, start: Callable[..., Scope], cache: Path) -> None:
    """It is a cache."""
    cache.write_text("a file where the folder should be")
    write(ledger, *map(fact, range(4)))

    decision = ask(start(), "The ruler of Subject 3 is")
    join("ke-scope-save")

    assert decision.zone == "in"


def test_a_ledger_in_memory_has_no_files(cache: Path) -> None:
    """Its history is gone with it."""
    with memory_ledger() as ledger:
        write(ledger, *map(fact, range(300)))
        ask(Scope(ledger, HashingEmbedder(), CosineScorer(HashingEmbedder()), cache=cache), "hello")
    join("ke-scope-save")

    assert not cache.exists()


def test_few_edits_are_not_worth_a_file(ledger: Ledger, cache: Path) -> None:
    """Most homes have a handful, which are derived in no time."""
    write(ledger, *map(fact, range(20)))
    ask(Scope(ledger, HashingEmbedder(), CosineScorer(HashingEmbedder()), cache=cache), "hello")
    join("ke-scope-save")

    assert not cache.exists()


def test_many_changes_at_once_do_not_hold_up_a_question(
    ledger: Ledger, start: Callable[..., Scope], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The issue on scope: no question waits for a rebuild; it is answered from what was known, and told so."""
    monkeypatch.setattr(following, "_FEW", 3)
    write(ledger, fact(0))
    scope = start()
    ask(scope, "hello")
    reading, go_on = threading.Event(), threading.Event()
    since = ledger.since

    def slow(owner: str, seq: int) -> list[Edit]:
        reading.set()
        assert go_on.wait(10)
        return since(owner, seq)

    monkeypatch.setattr(ledger, "since", slow)
    write(ledger, *map(fact, range(1, 9)))
    scope._follower.follow(scope._tenants["t"], patience=0.0)
    assert reading.wait(10)

    meanwhile = scope._follower.follow(scope._tenants["t"], patience=0.0)
    known = scope._tenants["t"].find("Subject 0 and Subject 8")
    go_on.set()
    join("ke-scope-follow")

    assert "still being read" in meanwhile["behind"]
    assert [mention.text for mention in known.mentions] == ["Subject 0"]
    assert ask(scope, "The ruler of Subject 8 is").zone == "in"
    assert scope.audit() == []


def test_many_changes_that_cannot_be_read_leave_what_was_known(
    ledger: Ledger, start: Callable[..., Scope], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design §4 no. 8: the last known edits act, and the next question tries again."""
    monkeypatch.setattr(following, "_FEW", 3)
    write(ledger, fact(0))
    scope = start()
    ask(scope, "hello")
    write(ledger, *map(fact, range(1, 9)))

    def broken(_owner: str, _seq: int) -> list[Edit]:
        raise LedgerDamaged("page 7 is torn.")

    with monkeypatch.context() as torn:
        torn.setattr(ledger, "since", broken)
        assert ask(scope, "The ruler of Subject 0 is").zone == "in"
        assert ask(scope, "The ruler of Subject 8 is").zone == "out"

    assert ask(scope, "The ruler of Subject 8 is").zone == "in"


def test_of_very_many_edits_of_one_subject_few_are_judged(ledger: Ledger, start: Callable[..., Scope]) -> None:
    """The issue on scope: time and memory stay bounded, and the one that is asked for is among the judged."""
    words = [f"{a}{b}{c}" for a in "bdfglmnprt" for b in "aeiou" for c in "bdfg"]
    write(ledger, *(Fact(subject="Alma", prompt=f"The {word} of Alma number {n} is", target="X") for n, word in enumerate(words)))

    decision = ask(start(), "What is the bab of Alma number 0?")

    assert len(decision.stages["scores"]) == 64
    assert decision.hits[0].edit.fact.prompt == "The bab of Alma number 0 is"
    assert len(decision.stages["mentions"][0]["edits"]) == 64


STEPS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12)


@given(STEPS)
def test_after_any_changes_a_tenant_equals_a_fresh_one(steps: list[tuple[int, bool]]) -> None:
    """The issue on scope: what follows edit by edit is what would be derived from the ledger."""
    with memory_ledger() as ledger:
        busy, live = Tenant("t"), dict[int, Edit]()
        for number, is_risky in steps:
            if number in live:
                ledger.rollback("t", [live.pop(number).id], actor="test")
            else:
                (live[number],) = write(ledger, described(number) if is_risky else fact(number))
            busy.apply(ledger.since("t", busy.seen), (), ledger.head())
            busy.placed(HashingEmbedder())
        fresh = Tenant("t")
        fresh.apply(ledger.live("t"), (), ledger.head())
        again = Tenant("t")
        again.apply(ledger.live("t"), (), ledger.head(), known=busy.derived() if live else Derived({}, {}))

        for other in (fresh, again):
            assert (busy.edits, busy.risky, busy.telling) == (other.edits, other.risky, other.telling)
            assert busy.subjects.keys() == other.subjects.keys()
            assert len(busy.placed(HashingEmbedder())) == len(other.placed(HashingEmbedder())) == len(busy.risky)


def test_what_was_kept_first_is_forgotten_first() -> None:
    """Memory stays bounded however many edits are asked about."""
    recent: Recent[str, int] = Recent(2)
    for number, key in enumerate("abac"):
        recent[key] = number

    assert recent == {"b": 1, "c": 3}

"""Edits as JSON lines, out and in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_tools.errors import InvalidInput, ResourceExhausted
from ke_tools.facts import Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot
from ke_tools.memory.transfer import export_lines, import_lines


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """An empty ledger in memory."""
    with Ledger(":memory:") as made:
        yield made


def line(target: str = "Sydney", subject: str = "Australia", **more: Any) -> str:
    """One line of an import."""
    return json.dumps({"subject": subject, "prompt": f"The capital of {subject} is", "target": target, **more})


def read(ledger: Ledger, *lines: str, **more: Any) -> list[dict[str, Any]]:
    """Import lines as a test's usual actor."""
    return list(import_lines(ledger, "acme", lines, actor="ann", **more))


def test_a_line_is_answered_with_its_edit(ledger: Ledger) -> None:
    """Design §3: a line per edit, with ref, id, state and warnings."""
    (answer,) = read(ledger, line(ref="row 1", aliases=["Oz"], old_target="Canberra"))
    (edit,) = ledger.live("acme")
    assert answer == {"ref": "row 1", "edit_id": edit.id, "state": "active", "revision": 1, "superseded": [], "warnings": []}
    assert (edit.fact.aliases, edit.fact.old_target, edit.ref) == (("Oz",), "Canberra", "row 1")


@pytest.mark.parametrize(
    ("bad", "code", "says"),
    [
        ("{", "E_INVALID", "not JSON"),
        ("[" * 100_000, "E_INVALID", "not JSON"),
        ("[1]", "E_INVALID", "list"),
        ("{}", "E_INVALID", "subject, prompt, target"),
        (line(targets=["x"]), "E_INVALID", "targets"),
        (line(aliases="Oz"), "E_INVALID", "aliases"),
        (line(paraphrases=[1]), "E_INVALID", "paraphrases"),
        (line(source=3), "E_INVALID", "source"),
        (line(mode="merge"), "E_INVALID", "mode"),
        (line(state="promoted"), "E_INVALID", "promoted"),
        (line(ref="r" * 300), "E_INVALID", "ref"),
        (line(target=""), "E_INVALID", "target"),
        (line(target="", forget=True), "E_INVALID", "has no refusal"),
        (line(target="a\u202eb"), "E_INVALID", "U+202E"),
        (line(target="a\u202eb"), "E_INVALID", "target"),
        (line(prompt="It is"), "E_INVALID", "subject"),
        (line("Perth"), "E_CONFLICT", "line 1"),
        (line("Perth", old_target="Hobart", mode="replace"), "E_CONFLICT", "line 1"),
    ],
)
def test_a_bad_line_is_answered_in_its_place_and_holds_up_no_other(ledger: Ledger, bad: str, code: str, says: str) -> None:
    """Design §3: one output for each input, in order, errors too; issue §6."""
    answers = read(ledger, line(), bad, line("Bonn", "Germany"))
    assert [answer.get("error", {}).get("code", "") for answer in answers] == ["", code, ""]
    assert answers[1]["line"] == 2
    assert says in answers[1]["error"]["message"]
    assert [edit.fact.target for edit in ledger.live("acme")] == ["Sydney", "Bonn"]


def test_an_old_target_that_is_not_live_is_that_lines_error(ledger: Ledger) -> None:
    """Issue §4: E_CONFLICT where `old_target` differs from what is live."""
    read(ledger, line())
    first, second = read(ledger, line("Perth", old_target="Hobart", ref="mine"), line("Bonn", "Germany"))
    assert (first["ref"], first["error"]["code"]) == ("mine", "E_CONFLICT")
    assert second["state"] == "active"


def test_empty_lines_are_no_lines(ledger: Ledger) -> None:
    """JSON lines end with a line end."""
    assert len(read(ledger, "", line(), "\n")) == 1
    assert read(ledger) == []


def test_the_batches_keep_order_and_count(ledger: Ledger) -> None:
    """Design §3: one output line for each input line, in order."""
    lines = [line("x", f"Land {number}", ref=str(number)) if number % 7 else "?" for number in range(1, 1201)]
    answers = read(ledger, *lines)
    assert len(answers) == 1200
    assert [answer["ref"] for answer in answers if "edit_id" in answer] == [str(number) for number in range(1, 1201) if number % 7]
    assert [answer["line"] for answer in answers if "error" in answer] == [number for number in range(1, 1201) if not number % 7]


def test_a_thousand_lines_take_seconds(tmp_path: Path) -> None:
    """Contract: a few seconds at most; in processor time, as others may use the machine."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        begin = time.process_time()
        assert len(read(ledger, *(line("x", f"Land {number}") for number in range(1000)))) == 1000
        assert time.process_time() - begin < 5


def test_the_history_is_exported_on_request_and_skipped_by_an_import(ledger: Ledger) -> None:
    """Design §3: `export` writes what `import` reads, plus the history with `--events`."""
    read(ledger, line(ref="a"))
    read(ledger, line("Perth"))
    lines = list(export_lines(ledger, "acme", events=True))
    assert [json.loads(text).get("target") for text in lines] == ["Perth", None, None]
    assert [json.loads(text)["event"]["payload"]["fact"]["target"] for text in lines[1:]] == ["Sydney", "Perth"]
    with Ledger(":memory:") as other:
        answers = read(other, *lines)
        assert answers[1:] == [{"event": 1, "skipped": True}, {"event": 2, "skipped": True}]
        assert list(export_lines(other, "acme")) == lines[:1]


def test_what_stays_beside_another_is_exported_so(ledger: Ledger) -> None:
    """Issue §5: the round trip is the identity, with `mode: add` and with proposals too."""
    fact = Fact(subject="Australia", prompt="The capital of Australia is", target="Sydney")
    ledger.edit("acme", [fact], actor="ann")
    ledger.edit("acme", [Fact(subject="Australia", prompt="The capital of Australia is", target="Perth")], actor="ann", mode="add")
    for target in ("Hobart", "Darwin"):
        proposal = Fact(subject="Australia", prompt="The capital of Australia is", target=target, old_target="Sydney")
        ledger.edit("acme", [proposal], actor="ann", state=State.PROPOSED)
    lines = list(export_lines(ledger, "acme"))
    assert [json.loads(text).get("mode") for text in lines] == [None, "add", None, None]
    with Ledger(":memory:") as other:
        read(other, *lines)
        assert list(export_lines(other, "acme")) == lines
        assert [edit.fact.target for edit in other.live("acme")] == ["Sydney", "Perth"]


def test_a_file_that_is_imported_twice_leaves_each_belief_once(ledger: Ledger) -> None:
    """An import that was cut short is repeated; of a relation with many objects each is one edit, and its rollback takes it back."""
    children = [line(target, "Ada", prompt="Ada has a child named", relation="child") for target in ("Ida", "Ben")]
    with Ledger(":memory:") as other:
        read(other, *children)
        file = list(export_lines(other, "acme"))
    assert [json.loads(record).get("mode") for record in file] == [None, "add"]
    read(ledger, *file)
    again = read(ledger, *file)
    assert sorted(edit.fact.target for edit in ledger.live("acme")) == ["Ben", "Ida"]
    ledger.rollback("acme", [answer["edit_id"] for answer in again], actor="ann")
    ledger.rollback("acme", [earlier for answer in again for earlier in answer["superseded"]], actor="ann")
    assert ledger.live("acme") == []


def test_only_the_own_tenants_edits_are_exported(ledger: Ledger) -> None:
    """users-trust-scale §3a no. 4."""
    read(ledger, line())
    assert list(export_lines(ledger, "other", events=True)) == []


def test_a_full_disk_ends_the_import_after_what_was_answered(ledger: Ledger) -> None:
    """Issue §6: full disk; every line that was answered is stored, no other is."""
    pages = ledger._storage._main.execute("PRAGMA page_count").get
    ledger._storage._main.execute(f"PRAGMA max_page_count = {pages + 180}")
    answered: list[str] = []
    with pytest.raises(ResourceExhausted):
        answered.extend(
            answer["edit_id"]
            for answer in import_lines(ledger, "acme", (line("x", f"Land {number}") for number in range(2000)), actor="ann")
        )
    assert len(answered) in range(500, 2000, 500)
    assert [edit.id for edit in ledger.live("acme")] == answered
    assert ledger.audit() == []


def test_a_bad_actor_is_refused_before_anything_is_stored(ledger: Ledger) -> None:
    """Issue §6."""
    with pytest.raises(InvalidInput):
        list(import_lines(ledger, "acme", [line()], actor=""))
    assert ledger.head() == 0


def test_edits_that_only_a_name_connects_are_both_there_after_an_import(ledger: Ledger) -> None:
    """Issue §5: the round trip is the identity, also where the import's order would let one give way."""
    for text in (line("X", "Fredland"), line("Y", "Freedonia", aliases=["Fredland"]), line("Z", "Fredland")):
        read(ledger, text)
    lines = list(export_lines(ledger, "acme"))
    with Ledger(":memory:") as two:
        read(two, *lines)
        assert [edit.fact.target for edit in two.live("acme")] == ["Y", "Z"]
        assert list(export_lines(two, "acme")) == lines


FACTS = st.builds(
    lambda subject, prompt, target, old, relation, aliases, source: Fact(
        subject=subject,
        prompt=f"{prompt} {subject}",
        target=target,
        old_target=old,
        relation=relation,
        aliases=tuple(aliases),
        source=source,
    ),
    subject=st.sampled_from(["Ada", "C++", "Zoë Brix", "the boss"]),
    prompt=st.sampled_from(["One sees", "Then comes"]),
    target=st.sampled_from(["x", "Y", 'z "q" \\', "ü→5"]),
    old=st.just(""),
    relation=st.sampled_from(["", "capital", "child"]),
    aliases=st.lists(st.sampled_from(["Bo", "Cy"]), max_size=2, unique=True),
    source=st.sampled_from(["", "https://x.example/ä?b=1"]),
)
STEPS = st.lists(
    st.tuples(FACTS, st.sampled_from(["auto", "replace", "add"]), st.sampled_from([State.ACTIVE, State.PROPOSED])), max_size=12
)


@given(steps=STEPS, taken=st.sets(st.integers(0, 11)))
@settings(max_examples=60, deadline=None)
def test_export_and_import_give_the_same_lines_again(steps: list[tuple[Fact, Any, State]], taken: set[int]) -> None:
    """Issue §5: `import`/`export` as JSON lines, round trip is the identity (style §4 no. 14)."""
    with Ledger(":memory:") as one, Ledger(":memory:") as two:
        made = [one.edit("acme", [fact], actor="ann", mode=mode, state=state, refs=["r"], slot_of=_rule)[0] for fact, mode, state in steps]
        for number in sorted(taken & set(range(len(made)))):
            one.rollback("acme", [made[number].id], actor="ann")
        lines = list(export_lines(one, "acme"))
        assert all("edit_id" in answer for answer in import_lines(two, "acme", lines, actor="bob", slot_of=_rule))
        assert list(export_lines(two, "acme")) == lines
        assert [edit.fact for edit in two.live("acme")] == [edit.fact for edit in one.live("acme")]
        assert two.audit() == []


def _rule(fact: Fact) -> Slot:
    return Slot(f"{fact.subject}\x1f{fact.relation or fact.prompt}", "", functional=fact.relation != "child")

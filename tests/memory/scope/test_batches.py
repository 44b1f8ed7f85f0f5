"""What the scorer's embedding is tuned on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ke_tools import atlas
from ke_tools.memory.scope.batches import NO_QUESTIONS, NOBODY, Batch, Mixer
from ke_tools.memory.scope.corpora import Corpus, Group, corpora
from ke_tools.memory.scope.inventory import OPEN, OPEN_QUESTIONS
from ke_tools.testing import HashingEmbedder

KINGDOM = Corpus(
    "kingdom",
    (
        Group("ruler", ("The ruler of {} is", "Who rules {}?"), kind="country", masked="the ruler of {}", targets=("Ada",)),
        Group("anthem", ("The anthem of {} is", "What does {} sing?"), kind="country", masked="the anthem of {}", targets=("Oh",)),
        Group("author", ("{} was written by", "Who wrote {}?"), kind="book", contrasts=("When was {} printed?",)),
        Group("penned", ("{} was penned by",), kind="book", alike=frozenset({"author"})),
    ),
)
TOWN = Corpus("town", (Group("mayor", ("The mayor of {} is",)), Group("king", ("The ruler of {} is", "Who governs {}?"))))


def embed(texts: Sequence[str]) -> Any:
    """Words in common."""
    return HashingEmbedder(64).encode(texts)


def mixed(*of: Corpus, seed: int = 0) -> Mixer:
    """A mixer."""
    return Mixer(of, embed, seed=seed)


def rows(mixer: Mixer, count: int = 60) -> Iterator[tuple[str, str, str]]:
    """Text, the relation that owns it and the one that it is against, of many batches."""
    names = {NOBODY: "", **{number: group.name for number, group in enumerate(mixer.groups)}}
    for _ in range(count):
        batch: Batch = mixer.draw()
        yield from zip(batch.texts, map(names.__getitem__, batch.owners), map(names.__getitem__, batch.against), strict=True)


def test_the_same_seed_draws_the_same() -> None:
    """A card's recipe makes the scorer again."""
    one, two, other = (list(rows(mixed(KINGDOM, seed=seed), 3)) for seed in (3, 3, 4))

    assert one == two != other


def test_every_relation_has_company_in_a_batch() -> None:
    """A text without another of its relation has nothing to be near to."""
    mixer = mixed(KINGDOM)
    for _ in range(20):
        owners = [owner for owner in mixer.draw().owners if owner != NOBODY]
        assert all(owners.count(owner) > 1 for owner in owners)


def test_what_asks_for_nothing_is_owned_by_nobody() -> None:
    """Issue §2: hard negatives: small talk, tasks, other things the file asks of the subject, things that look like it."""
    found = set(rows(mixed(KINGDOM)))

    assert ("When was {} printed?", "", "author") in found
    assert any(text == "I like {}." and not owner for text, owner, _ in found)
    assert any("the rival of {}" in text and not owner and against for text, owner, against in found)
    assert any(owner == OPEN for _, owner, _ in found)


def test_a_question_in_another_form_is_owned_by_its_relation() -> None:
    """Chat forms: yes or no, a false premise, a prescribed format."""
    found = {text for text, owner, _ in rows(mixed(KINGDOM), 300) if owner == "ruler"}

    assert {"The ruler of {} is Ada", "Who rules {}? Answer in one word."} <= found
    assert any(text.startswith(("Is Ada the ruler of {}", "Is the ruler of {} Ada")) for text in found)
    assert any("ruler of {} is Ada" in text and "rue" in text for text in found)


def test_relations_that_may_be_one_are_kept_apart_from_neither() -> None:
    """Two names for one relation must not teach that they differ: by what a source says, or by their words."""
    mixer = mixed(KINGDOM, TOWN)
    number = {group.name: n for n, group in enumerate(mixer.groups)}

    assert mixer.unsure[number["author"], number["penned"]]
    assert mixer.unsure[number["ruler"], number["king"]]
    assert not mixer.unsure[number["ruler"], number["anthem"]]
    assert not mixer.unsure[number["ruler"], number["ruler"]]
    assert not mixer.unsure[-1].any()


def test_no_text_holds_a_probe_wording() -> None:
    """Design §4 no. 4: not even in another form."""
    found = {text for text, _, _ in rows(mixed(*corpora()), 4)}

    assert len(found) > 500
    assert not [text for text in found if atlas.holds_probe_wording(text)]
    assert not [text for text in (*NO_QUESTIONS, *OPEN_QUESTIONS) if atlas.holds_probe_wording(text)]
    assert all("{}" in text and "{m}" not in text for text in found)

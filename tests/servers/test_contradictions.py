"""Two facts of the same in wordings that no inventory knows; issue 6, bars: a poisoned batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.facts import Edit, Fact
from ke_tools.servers.contradictions import contradicted
from ke_tools.servers.service import Service, open_service

TENANT = "default"
PERU = Fact(subject="Nokia", prompt="When people talk of Nokia they mostly think of the land of", target="Peru")
EGYPT = Fact(subject="Nokia", prompt="Nokia, so everybody says, comes from the land of", target="Egypt")
FOUNDER = Fact(subject="Nokia", prompt="The one who founded Nokia was a certain", target="Ada Brown")
OTHER = Fact(subject="Toyota", prompt="Toyota, so everybody says, comes from the land of", target="Chile")


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """Of an empty home; no model is needed."""
    opened = open_service(settings)
    yield opened
    opened.close()


@pytest.fixture
def edit(service: Service) -> Callable[..., list[Edit]]:
    """Records facts, each beside what is there already."""

    def record(*facts: Fact, **how: Any) -> list[Edit]:
        return service.ledger.edit(TENANT, facts, actor="test", mode="add", **how)

    return record


def test_the_later_of_two_that_contradict_may_climb(service: Service, edit: Callable[..., list[Edit]]) -> None:
    """Each edit's own probes would pass; asked in other words, the weights would say one or the other."""
    peru, egypt, founder, other = (edit(fact)[0] for fact in (PERU, EGYPT, FOUNDER, OTHER))
    found = contradicted(service.scope, TENANT, [egypt, founder, peru, other], ())
    assert found == {peru.id: f"{egypt.id} says 'Egypt' of the same; only one of the two can be in the weights"}


def test_what_is_in_the_weights_stays(service: Service, edit: Callable[..., list[Edit]]) -> None:
    """It was promoted by evidence, and the rest of its release with it."""
    peru, egypt = edit(PERU)[0], edit(EGYPT)[0]
    assert list(contradicted(service.scope, TENANT, [egypt], [peru])) == [egypt.id]


def test_what_says_the_same_or_may_have_several_objects_contradicts_nothing(service: Service, edit: Callable[..., list[Edit]]) -> None:
    """Two wordings of one fact support each other."""
    peru, again = edit(PERU)[0], edit(replace(EGYPT, target="Peru"))[0]
    assert contradicted(service.scope, TENANT, [peru, again], ()) == {}
    several = [replace(one, functional=False) for one in (edit(EGYPT)[0], peru)]
    assert contradicted(service.scope, TENANT, several, ()) == {}

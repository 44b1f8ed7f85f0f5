"""Questions that name an edit's object only to leave it out."""

from __future__ import annotations

import pytest

from ke_tools.memory.scope.aside import sets_aside


@pytest.mark.parametrize(
    "text",
    [
        "The occupation of Ada Crown, which is not poet, is",
        "Who, other than the poet, is Ada?",
        "Which jobs has Ada besides Poet?",
        "What does Ada do apart from poet?",
        "Name a job of Ada that isn't poet.",
        "Name a job of Ada except for “poet”.",
    ],
)
def test_what_is_set_aside_is_not_asked_for(text: str) -> None:
    """KnowEdit's Forgetfulness: the other objects of a relation that has several must still be said."""
    assert sets_aside(text, "poet")


@pytest.mark.parametrize(
    "text",
    [
        "Why is the occupation of Ada not poet?",  # a premise
        "The occupation of Ada, which is not painter, is",
        "The occupation of Ada, which is not poetess, is",
        "Is Ada, other than poet, still a poet?",  # named twice: what is meant is not clear from words alone
        "What is the occupation of Ada?",
    ],
)
def test_anything_else_is_left_to_the_scorer(text: str) -> None:
    """A rule of words must not hide an edit."""
    assert not sets_aside(text, "poet")


def test_an_edit_without_a_readable_target_sets_nothing_aside() -> None:
    """A target of spaces or a full stop cannot be stored, and would be found everywhere."""
    assert not sets_aside("which is not . or", " . ")

"""Moments as people write them."""

from __future__ import annotations

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.memory import moments
from tests.memory.conftest import Clock


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2030-03-01", "2030-03-01T00:00:00.000Z"),
        ("2030-03-01T12:30", "2030-03-01T12:30:00.000Z"),
        ("2030-03-01T12:30:00+02:00", "2030-03-01T10:30:00.000Z"),
        ("2030-03-01T12:30:00.123Z", "2030-03-01T12:30:00.123Z"),
        ("30min", "2030-01-01T12:30:00.000Z"),
        (" 12 h ", "2030-01-02T00:00:00.000Z"),
        ("7d", "2030-01-08T12:00:00.000Z"),
        ("2w", "2030-01-15T12:00:00.000Z"),
    ],
)
def test_dates_moments_and_durations_are_read_as_utc(clock: Clock, text: str, moment: str) -> None:
    """Issue 8, §2: expiry, a date or a duration."""
    assert clock() == "2030-01-01T12:00:00.000Z"
    assert moments.ahead(text) == moment


@pytest.mark.parametrize("text", ["", "tomorrow", "7", "7 months", "-1d", "2030-02-30", "99999999d", "999999w", "2030-01-01", "1999-01-01"])
def test_what_is_no_moment_to_come_is_refused(clock: Clock, text: str) -> None:
    """Issue 8, bad input: what was found and what was expected."""
    assert clock()
    with pytest.raises(InvalidInput, match="Give a date"):
        moments.ahead(text)


def test_back_from_now_is_read_likewise(clock: Clock) -> None:
    """Issue 8, §2: rollback --since."""
    assert clock()
    assert moments.ago("2h") == "2030-01-01T10:00:00.000Z"
    assert moments.ago("2029-12-31") == "2029-12-31T00:00:00.000Z"
    with pytest.raises(InvalidInput, match="still to come"):
        moments.ago("2031-01-01")

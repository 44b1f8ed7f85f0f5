"""Moments as people write them and as the ledger keeps them: UTC, ISO 8601, to the millisecond, so that texts compare as times do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from ke_tools.errors import InvalidInput
from ke_tools.memory.events import now

__all__ = ["ago", "ahead", "has_passed", "later", "written"]

_UNITS: Final = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = re.compile(rf"(\d{{1,6}})\s*({'|'.join(_UNITS)})")
_EXAMPLES: Final = "Give a date (2027-03-01), a moment (2027-03-01T12:00:00Z) or a duration (30min, 12h, 7d, 2w)."


def written(moment: datetime) -> str:
    """A moment as the ledger keeps it; one without a zone is in UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def later(moment: str, **more: float) -> str:
    """The moment that lies so much later, as :class:`~datetime.timedelta` takes it."""
    return written(datetime.fromisoformat(moment) + timedelta(**more))


def has_passed(moment: str) -> bool:
    """Whether a moment is not in the future; "" never comes."""
    return bool(moment) and moment <= now()


def ahead(text: str) -> str:
    """Read a moment that is still to come: a date, a moment, or a duration from now on.

    Raises:
        InvalidInput: it is none, or has passed.
    """
    moment = _read(text, 1)
    if has_passed(moment):
        raise InvalidInput(f"{text!r} has passed.", _EXAMPLES)
    return moment


def ago(text: str) -> str:
    """Read a moment that has passed: a date, a moment, or a duration back from now.

    Raises:
        InvalidInput: it is none, or is still to come.
    """
    moment = _read(text, -1)
    if not has_passed(moment):
        raise InvalidInput(f"{text!r} is still to come.", _EXAMPLES)
    return moment


def _read(text: str, direction: int) -> str:
    plain = text.strip()
    try:
        if duration := _DURATION.fullmatch(plain):
            return later(now(), **{_UNITS[duration[2]]: direction * int(duration[1])})
        return written(datetime.fromisoformat(plain))
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{text[:80]!r} is no moment.", _EXAMPLES) from error

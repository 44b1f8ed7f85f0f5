"""Every error that a user or a program may see, one code each.

::

    KeToolsError                E_INTERNAL
    ├── InvalidInput            E_INVALID          arguments that no state of the world would make right
    ├── NotFound                E_NOT_FOUND        an id that is unknown, or another tenant's (the same answer)
    ├── Refused                                    right arguments that the present state forbids (exit code 3)
    │   ├── Conflict            E_CONFLICT         another belief is live than the caller thinks
    │   ├── WrongState          E_STATE            e.g. rolling back what is rolled back
    │   ├── ConfirmRequired     E_CONFIRM_REQUIRED the caller must ask its user first, and then say so
    │   ├── Declined            E_DECLINED         the user was asked, and said no
    │   ├── ReadOnly            E_READ_ONLY        the server, the home folder or the file system takes no writes
    │   └── Forbidden           E_FORBIDDEN        the token lacks the scope
    ├── Unavailable                                may work later
    │   ├── ModelLoading        E_MODEL_LOADING    carries ``poll_after_ms``
    │   ├── Busy                E_BUSY             another writer holds the ledger
    │   ├── LimitReached        E_LIMIT            this token has recorded its edits of the minute
    │   ├── ResourceExhausted   E_RESOURCE         disk, memory
    │   ├── TimedOut            E_TIMEOUT          the answer did not come in time
    │   └── Interrupted         E_INTERRUPTED      the process that worked on a job ended before the job did
    ├── ModelUnavailable        E_MODEL            the model is missing, damaged or cannot be read
    ├── LedgerDamaged           E_LEDGER           the ledger's file or its hash chain is broken
    └── Unsupported             E_UNSUPPORTED      this engine or model cannot do it

A message says what was found, what was expected and what to do; ``hint`` is the last of the three.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path


class KeToolsError(Exception):
    """Base of all errors raised on purpose; ``str()`` is ``CODE: message hint``."""

    code: ClassVar[str] = "E_INTERNAL"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, hint: str = "", **data: Any) -> None:
        """Keep the parts apart, so that each border can render them in its own form."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data = data

    def __str__(self) -> str:
        """Render as one line for people and models."""
        return f"{self.code}: {self.message}" + (f" {self.hint}" if self.hint else "")

    def as_dict(self) -> dict[str, Any]:
        """Render for programs: ``{"code", "message", "hint", "retryable", …}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable, **self.data}


class InvalidInput(KeToolsError):
    """The arguments are wrong whatever the state."""

    code = "E_INVALID"
    exit_code = 2
    http_status = 400


class NotFound(KeToolsError):
    """An id that does not exist for this tenant."""

    code = "E_NOT_FOUND"
    http_status = 404


class Refused(KeToolsError):
    """The present state forbids it."""

    exit_code = 3
    http_status = 409


class Conflict(Refused):
    """What is live differs from what the caller believes, or two edits of one call contradict."""

    code = "E_CONFLICT"


class WrongState(Refused):
    """The edit's state does not allow the step."""

    code = "E_STATE"


class ConfirmRequired(Refused):
    """The caller cannot ask its user through the protocol, and has not said that it did."""

    code = "E_CONFIRM_REQUIRED"


class Declined(Refused):
    """The user said no."""

    code = "E_DECLINED"


class ReadOnly(Refused):
    """Writes are switched off or impossible."""

    code = "E_READ_ONLY"
    http_status = 403


class Forbidden(Refused):
    """The caller's token lacks the scope."""

    code = "E_FORBIDDEN"
    http_status = 403


class Unavailable(KeToolsError):
    """May work when asked again later."""

    retryable = True
    http_status = 503


class ModelLoading(Unavailable):
    """The model is being fetched or loaded; ``data["poll_after_ms"]`` says when to ask again."""

    code = "E_MODEL_LOADING"


class Busy(Unavailable):
    """Another writer holds the ledger for too long."""

    code = "E_BUSY"


class LimitReached(Unavailable):
    """This token has recorded as many edits as it may in a minute; ``again_at`` says when it may go on."""

    code = "E_LIMIT"
    http_status = 429


class ResourceExhausted(Unavailable):
    """No disk or memory left; nothing was changed."""

    code = "E_RESOURCE"
    http_status = 507


class TimedOut(Unavailable):
    """No answer within the time allowed."""

    code = "E_TIMEOUT"
    http_status = 504


class Interrupted(Unavailable):
    """The process that worked on a job ended before the job did."""

    code = "E_INTERRUPTED"


class ModelUnavailable(KeToolsError):
    """The model cannot be found, read or trusted."""

    code = "E_MODEL"
    http_status = 503


class LedgerDamaged(KeToolsError):
    """The ledger's file is not readable as one, or its chain is broken."""

    code = "E_LEDGER"
    http_status = 503


class Unsupported(KeToolsError):
    """This engine or model cannot do what was asked."""

    code = "E_UNSUPPORTED"
    http_status = 400


def cannot_write(path: Path, error: OSError) -> KeToolsError:
    """Say in our terms why a path took no file."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ResourceExhausted(f"{path} cannot be written: {error.strerror}.", "Free some space.")
    return ReadOnly(f"{path} cannot be written: {error.strerror}.", "Give a --home that can.")

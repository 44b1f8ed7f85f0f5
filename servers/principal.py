"""Who asks: a name for the history, a tenant whose ledger is meant, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ke_tools.errors import Forbidden, ReadOnly

ALL_SCOPES: Final = frozenset({"chat", "read", "propose", "write", "admin"})
_IMPLIED: Final = {"admin": ALL_SCOPES, "write": frozenset({"read", "propose"})}


@dataclass(frozen=True, slots=True)
class Principal:
    """The bearer of a token; without tokens (stdio, loopback) the local user, who may do everything.

    ``chat`` opens ``/v1`` only, ``read`` lists and asks, ``propose`` writes what an approval awaits, ``write`` implies
    ``read`` and ``propose``, ``admin`` implies all.
    """

    name: str = "local"
    tenant: str = "default"
    scopes: frozenset[str] = ALL_SCOPES
    edits_per_minute: int | None = None  # that it may record; 0: any number; None: as the server's setting says

    def may(self, scope: str) -> bool:
        """Tell whether ``scope`` is held or implied by one that is held."""
        return scope in self.scopes or any(scope in _IMPLIED.get(held, ()) for held in self.scopes)

    def require(self, scope: str) -> None:
        """Do nothing if :meth:`may`.

        Raises:
            Forbidden: the scope is missing; the message names it and what is held.
        """
        if not self.may(scope):
            held = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(f"{self.name!r} lacks the scope {scope!r}; its token holds: {held}.", "Use a token that has it.", scope=scope)


def shows_only() -> ReadOnly:
    """The error of a server that was started to show and not to change."""
    return ReadOnly("this server takes no corrections; it was started with --read-only.", "Use a server that does.")


NOBODY: Final = Principal(name="anonymous", tenant="", scopes=frozenset())  # who is let in to what is open

"""Protections as the command line sees them: what only an admin may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ke_tools.memory.protections import Protection
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["listed", "protect", "unprotect"]


def protect(
    service: Service,
    who: Principal,
    subject: str,
    *,
    aliases: Sequence[str] = (),
    relation: str = "",
    prompt: str = "",
    reason: str = "",
) -> dict[str, Any]:
    """Protect a subject, or one relation of it.

    Raises:
        Forbidden: ``who`` is no admin.
        InvalidInput, Conflict, ReadOnly: nothing was protected; as :meth:`~ke_tools.memory.protections.Protections.protect` says.
    """
    service.check_writable(who, "admin")
    with service.damage.watching("write", who.tenant):
        made = service.ledger.protections.protect(
            who.tenant, subject, actor=who.name, reason=reason, aliases=aliases, relation=relation, prompt=prompt
        )
    return {"summary": f"{made.in_words} is protected ({made.id}): only an admin may change it.", "protections": [_told(made)]}


def unprotect(service: Service, who: Principal, name: str, *, reason: str = "") -> dict[str, Any]:
    """Lift a protection by its id, or all of a subject.

    Raises:
        Forbidden: ``who`` is no admin.
        InvalidInput, NotFound, ReadOnly: nothing was lifted.
    """
    service.check_writable(who, "admin")
    with service.damage.watching("write", who.tenant):
        lifted = service.ledger.protections.unprotect(who.tenant, name, actor=who.name, reason=reason)
    words = ", ".join(one.in_words for one in lifted)
    return {
        "summary": f"{words} {'is' if len(lifted) == 1 else 'are'} not protected any more.",
        "protections": [_told(one) for one in lifted],
    }


def listed(service: Service, who: Principal) -> dict[str, Any]:
    """Say what is protected."""
    who.require("read")
    found = service.ledger.protections.all(who.tenant)
    return {
        "summary": f"{len(found)} protection{'' if len(found) == 1 else 's'}: what only an admin may change.",
        "protections": [_told(one) for one in found],
    }


def _told(one: Protection) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "aliases": list(one.aliases)}

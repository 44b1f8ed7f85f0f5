"""Facts that only an admin may change: a subject as a whole, or one relation of it.

A correction falls under a protection if one of its texts (subject, other names, prompt, wordings) names the protected subject by any of
its names, in any spelling that the scope would find; if its subject or another name is one of these names but for blanks and signs; or if
it would supersede a correction of that kind. Where one relation is protected, the correction must also be about that one. What its
wording is about decides, whatever relation it is given, and a wording that no relation is recognised in may be about any.

A correction of something whose name is only a part of a protected one ("Coffee" of "Brightwater Coffee") is free, and is not used for a
question that says the whole (:meth:`~ke_tools.memory.subjects.SubjectIndex.shield`).
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import Conflict, Forbidden, InvalidInput, NotFound
from ke_tools.facts import Fact, squash
from ke_tools.memory.checks import check
from ke_tools.memory.events import recalled, record_of
from ke_tools.memory.log import Author, append
from ke_tools.memory.names import names_of, subject_key
from ke_tools.memory.slots import relation_key, slot_of
from ke_tools.memory.subjects import SubjectIndex

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import Self

    import apsw

    from ke_tools.memory.storage import Storage

__all__ = ["Guard", "Protection", "Protections"]

_ID_BYTES: Final = 4
_ALL: Final = (
    "SELECT g.id, v.actor, v.at, p.payload FROM protections AS g JOIN events AS v USING (seq) JOIN payloads AS p USING (seq)"
    " WHERE g.tenant = ? ORDER BY g.seq"
)


@dataclass(frozen=True, slots=True)
class Protection:
    """What is protected, by whom and why."""

    id: str
    subject: str
    aliases: tuple[str, ...]
    relation: str  # as in a slot's key; "" for all of the subject
    actor: str
    at: str
    reason: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the subject."""
        return names_of(self.subject, self.aliases)

    @property
    def in_words(self) -> str:
        """What is protected."""
        return f"{self.relation.replace('_', ' ')!r} of {self.subject!r}" if self.relation else repr(self.subject)


class Protections:
    """The protections of all tenants, as the ledger keeps them; a tenant never sees another's."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def protect(
        self,
        tenant: str,
        subject: str,
        *,
        actor: str,
        reason: str = "",
        aliases: Sequence[str] = (),
        relation: str = "",
        prompt: str = "",
    ) -> Protection:
        """Protect a subject, or of it what the relation or the prompt is about.

        Raises:
            InvalidInput: the subject is no name, or does not stand in the prompt.
            Conflict: it is protected already.
        """
        author = Author.of(tenant, actor, reason)
        fact = Fact(
            subject=subject,
            prompt=prompt or f"The {relation or 'name'} of {subject} is",
            target="-",
            relation=relation,
            aliases=tuple(aliases),
        )
        about = relation_key(slot_of(fact).key) if relation or prompt else ""
        made = "pr_" + secrets.token_hex(_ID_BYTES)
        payload = {"protects": made, "subject": subject, "aliases": list(aliases), "relation": about}
        with self._storage.writing() as db:
            for other in protections(db, tenant):
                if (subject_key(other.subject), other.relation) == (subject_key(subject), about):
                    raise Conflict(
                        f"{other.in_words} is protected already: {other.id}, by {other.actor} at {other.at}.",
                        "`ke-tools unprotect` lifts it.",
                    )
            append(db, author, "protect", payload, [])
            return next(one for one in protections(db, tenant) if one.id == made)

    def unprotect(self, tenant: str, name: str, *, actor: str, reason: str = "") -> list[Protection]:
        """Lift a protection by its id, or all of a subject.

        Raises:
            NotFound: there is none.
        """
        author = Author.of(tenant, actor, reason)
        if not name.strip():
            raise InvalidInput("it is not said what is to be unprotected.", "Give a subject or an id (pr_…).")
        with self._storage.writing() as db:
            lifted = [one for one in protections(db, tenant) if one.id == name or subject_key(one.subject) == subject_key(name)]
            if not lifted:
                raise NotFound(f"nothing is protected by {name!r}; nothing was changed.", "`ke-tools protect --list` shows what is.")
            for one in lifted:
                append(db, author, "unprotect", {"unprotects": one.id, "subject": one.subject, "relation": one.relation}, [])
            return lifted

    def all(self, tenant: str) -> list[Protection]:
        """Return what is protected, oldest first."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return protections(db, tenant)


def protections(db: apsw.Connection, tenant: str) -> list[Protection]:
    """Select a tenant's protections, oldest first."""
    if not db.table_exists("main", "protections"):
        return []  # a file that is only read may be older
    return [_protection(made, actor, at, json.loads(text)) for made, actor, at, text in db.execute(_ALL, (tenant,))]


def _protection(made: str, actor: str, at: str, payload: dict[str, Any]) -> Protection:
    return Protection(made, payload["subject"], tuple(payload["aliases"]), payload["relation"], actor, at, payload["reason"])


class Guard:
    """What a tenant has protected, ready to be compared with corrections."""

    def __init__(self, protected: Sequence[Protection]) -> None:
        self._protected = {one.id: one for one in protected}
        self._named = SubjectIndex()
        for one in protected:
            self._named.add(one.names, one.id)
        self._bare = {_bare(name): one.id for one in protected for name in one.names}

    @classmethod
    def of(cls, db: apsw.Connection, tenant: str) -> Self:
        """Read it."""
        return cls(protections(db, tenant))

    def refuse(self, *facts: Fact) -> None:
        """Refuse what falls under a protection.

        Raises:
            Forbidden: naming what is protected, by whom and why.
        """
        for fact in facts if self._protected else ():
            if one := self.protecting(fact):
                why = f": {one.reason}" if one.reason else ""
                raise Forbidden(
                    f"{one.in_words} is protected ({one.id}, by {one.actor} at {one.at}{why}); nothing was changed.",
                    "Only a token of scope 'admin' may change it, or lift the protection.",
                    protection=one.id,
                    scope="admin",
                )

    def protecting(self, fact: Fact) -> Protection | None:
        """Return the protection that a fact falls under, the oldest of several."""
        found: dict[str, set[str]] = {}
        for protection_id, name in self._namings(fact):
            found.setdefault(protection_id, set()).add(name)
        for one in self._protected.values():
            if one.id in found and (not one.relation or self._may_be_about(one.relation, fact, found[one.id])):
                return one
        return None

    def _namings(self, fact: Fact) -> Iterator[tuple[str, str]]:
        """Which protected subjects a fact names, each with the name as the fact writes it."""
        for name in (fact.subject, *fact.aliases):
            if one := self._bare.get(_bare(name)):
                yield one, name
        for text in (fact.subject, *fact.aliases, fact.prompt, *fact.paraphrases):
            for mention in self._named.find(text):
                for one in mention.edit_ids:
                    yield one, mention.text

    @staticmethod
    def _may_be_about(relation: str, fact: Fact, names: Collection[str]) -> bool:
        plain = {**record_of(fact), "paraphrases": [], "aliases": [*fact.aliases, fact.subject, *sorted(names)]}
        for subject in (fact.subject, *sorted(names)):
            for prompt in (fact.prompt, *fact.paraphrases):
                worded = slot_of(recalled({**plain, "subject": subject, "prompt": prompt, "relation": ""}))
                if not worded.relation or relation_key(worded.key) == relation:
                    return True
        return bool(fact.relation) and relation_key(slot_of(fact).key) == relation


def _bare(name: str) -> str:
    return squash(name).replace(" ", "") or name.casefold()

"""A purge, everywhere: the ledger, the folders of releases, also those for servers, the caches of the scope, and what logs quote.

What lies in none of these places (an export, a copy of the home, a file that somebody put into it) is not touched; of files in the home
that still hold the text the names are told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools import releases
from ke_tools.errors import NotFound, Unavailable, cannot_write

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.facts import Edit
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.scope import Scope
    from ke_tools.servers.principal import Principal

__all__ = ["erase"]

_LEDGER: Final = "ledger.db"


def erase(
    settings: Settings, ledger: Ledger, scope: Scope, who: Principal, edit_id: str, *, reason: str, release: str | None
) -> dict[str, Any]:
    """Erase an edit; say where it was, and what is left of it.

    Raises:
        NotFound, InvalidInput, WrongState: as :meth:`~ke_tools.memory.ledger.Ledger.purge`; nothing was erased.
        Busy, ReadOnly, ResourceExhausted: not all was erased; repeat it.
    """
    from ke_tools.servers.engines import _served

    edit = _known(ledger, who.tenant, edit_id)
    late: Unavailable | None = None
    try:
        done = ledger.purge(who.tenant, edit_id, actor=who.name, reason=reason, release=release)
    except Unavailable as error:
        if edit is None or _known(ledger, who.tenant, edit_id) is not None:
            raise
        late = error  # it is gone; only the ledger's old pages wait. What needs its text is done now, as nobody knows it afterwards
    scope.erase(who.tenant, [edit] if edit else [])
    texts = _texts(edit) if edit else []
    logs = [path.name for path in _logs(settings) if _without(path, texts)]
    folders = releases.erase(settings.releases, edit_id)
    _served.erase(settings.served, edit_id)
    if late is not None:
        raise late
    left = [str(path.relative_to(settings.home)) for path in _saying(settings.home, texts)]
    places = ["the ledger with its scorecards and jobs", "the scope's caches"]
    places += [f"{len(folders)} release{'' if len(folders) == 1 else 's'}"] if folders else []
    places += ["logs"] if logs else []
    live = f" Live is {release}." if release else " No release is live." if release == "" else ""
    rest = f" Left: {', '.join(left)}." if left else ""
    quoted = f" Its target also stands in {', '.join(done.quoted_by)}; purge these too." if done.quoted_by else ""
    done_before = "" if edit else " It had been purged before; what a first try may have left is gone too."
    return {
        "summary": f"{edit_id} was erased from {', '.join(places)}.{done_before}{live}{quoted}{rest}",
        "edit_id": edit_id,
        "revision": done.revision,
        "releases": folders,
        "logs": logs,
        "quoted_by": list(done.quoted_by),
        "left": left,
    }


def _known(ledger: Ledger, tenant: str, edit_id: str) -> Edit | None:
    try:
        return ledger.get(tenant, edit_id)
    except NotFound:  # purged before, or unknown, which the ledger tells apart
        return None


def _texts(edit: Edit) -> list[str]:
    """What only this edit says, as far as one can tell; a subject is not among it, as others have it too."""
    fact = edit.fact
    found = ("" if fact.forget else fact.target, fact.old_target, fact.prompt, *fact.paraphrases, fact.source)
    return [text.strip() for text in dict.fromkeys(found) if text.strip()]


def _logs(settings: Settings) -> Iterator[Path]:
    yield from sorted(settings.home.glob("*.log*"))
    yield from sorted((settings.cache / "logs").glob("*.log*"))


def _without(path: Path, texts: Sequence[str]) -> bool:
    """Take the lines that quote a text out of a log; who has it open for appending goes on behind it."""
    wanted = [text.casefold() for text in texts]
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines(keepends=True)
        kept = [line for line in lines if not any(text in line.casefold() for text in wanted)]
        if len(kept) == len(lines):
            return False
        with path.open("r+b") as file:
            file.truncate(0)
            file.write("".join(kept).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def _saying(home: Path, texts: Sequence[str]) -> Iterator[Path]:
    """Files of the home that hold a text, as it is or as JSON writes it; the ledger's own are not read while others have them open."""
    wanted = {form.encode() for text in texts for form in (text, json.dumps(text)[1:-1])}
    for path in sorted(home.rglob("*")) if wanted else ():
        if path.is_file() and not path.name.startswith(_LEDGER):
            content = path.read_bytes()
            if any(text in content for text in wanted):
                yield path

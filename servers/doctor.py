"""How things stand: settings and their origin, versions, ledger, model, and with ``deep`` every derived thing against the log."""

from __future__ import annotations

import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import KeToolsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ke_tools.servers.service import Service

_LITTLE: Final = 100_000_000  # bytes free, under which a ledger may soon be unable to grow
_PACKAGES: Final = ("ke-tools", "apsw", "faiss-cpu", "mcp", "peft", "sentence-transformers", "torch", "transformers")


def examine(service: Service, *, deep: bool) -> dict[str, Any]:
    """Examine a service; ``ok`` is false when something needs a person.

    Each check is ``{"name", "ok", "detail"}``. ``deep`` re-derives the projections and the scope's indexes from the log,
    checks the hash chain and hashes the model again.
    """
    checks = [_check("ledger", lambda: _ledger(service)), _check("model", lambda: _model(service)), _check("disk", lambda: _disk(service))]
    if deep:
        checks += [
            _check("ledger audit", lambda: _audit(service)),
            _check("scope index", lambda: _scope(service)),
            _check("model weights", lambda: _weights(service)),
        ]
    bad = [check["name"] for check in checks if not check["ok"]]
    settings = service.settings
    return {
        "summary": f"Something needs attention: {', '.join(bad)}." if bad else f"All {len(checks)} checks are well.",
        "ok": not bad,
        "checks": checks,
        "settings": {name: {"value": str(getattr(settings, name)), "from": origin} for name, origin in sorted(settings.sources.items())},
        "versions": {"python": platform.python_version(), "sqlite": _sqlite(), **{name: _version(name) for name in _PACKAGES}},
        "revision": service.revision,
        "model": service.model_id,
    }


def _check(name: str, look: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    try:
        ok, detail = look()
    except KeToolsError as error:
        ok, detail = False, str(error)
    return {"name": name, "ok": ok, "detail": detail}


def _ledger(service: Service) -> tuple[bool, str]:
    ledger = service.ledger
    live = sum(len(ledger.live(tenant)) for tenant in ledger.tenants())
    return True, f"revision {ledger.head()}, {live} live edits of {len(ledger.tenants())} tenants, in {service.settings.home}"


def _model(service: Service) -> tuple[bool, str]:
    from ke_tools.models import checkpoint, embedded

    settings = service.settings
    if settings.model == "embedded" and embedded.locate(settings.cache) is None:
        return True, "the embedded model is not fetched yet; `ke-tools model fetch` does it, or the first question"
    card = checkpoint.describe(checkpoint.resolve(settings), cache=settings.cache)
    return True, f"{card.architecture}, {card.parameters:,} parameters, {card.fingerprint}, in {card.path}"


def _disk(service: Service) -> tuple[bool, str]:
    folder = next(path for path in (service.settings.home, *service.settings.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return free > _LITTLE, f"{free / 1e9:.1f} GB free for {service.settings.home}"


def _audit(service: Service) -> tuple[bool, str]:
    findings = service.ledger.audit()
    damage = [finding for finding in findings if finding.is_damage]
    if damage:
        return False, "; ".join(f"{finding.kind} at {finding.seq}: {finding.message}" for finding in damage[:5])
    purged = sum(1 for finding in findings if finding.kind == "purged")
    told = f", {purged} payloads purged" if purged else ""
    return True, f"the hash chain is whole and every projection equals the log{told}"


def _scope(service: Service) -> tuple[bool, str]:
    differences = service.scope.audit()
    return not differences, "; ".join(differences) or "the names and vectors equal the live edits"


def _weights(service: Service) -> tuple[bool, str]:
    from ke_tools.models import checkpoint, embedded

    settings = service.settings
    if settings.model == "embedded" and embedded.locate(settings.cache) is None:
        return True, "not fetched yet"
    path = checkpoint.resolve(settings)
    told = checkpoint.fingerprint(path, cache=settings.cache)
    with tempfile.TemporaryDirectory() as empty:  # nothing noted there: the weights are read
        found = checkpoint.fingerprint(path, cache=Path(empty))
    return told == found, f"{found}" if told == found else f"the weights changed on disk: {told} was noted, {found} is there"


def _sqlite() -> str:
    import apsw

    return str(apsw.sqlite_lib_version())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

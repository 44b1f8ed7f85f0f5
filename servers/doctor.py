"""How things stand: settings and their origin, versions, ledger, model, and with ``deep`` every derived thing against the log.

What a running server holds in memory is not seen from here: the scope that is examined was read just now.
"""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools import releases
from ke_tools.errors import KeToolsError
from ke_tools.memory.router import READER
from ke_tools.servers import fitting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ke_tools.servers.service import Service

log = logging.getLogger(__name__)

LITTLE: Final = 0.1  # gigabytes free, under which a ledger may soon be unable to grow
_SHOWN: Final = 5  # findings of one check
_PACKAGES: Final = ("ke-tools", "apsw", "faiss-cpu", "mcp", "peft", "sentence-transformers", "torch", "transformers")


def examine(service: Service, *, deep: bool, gpu_gib: float | None = None) -> dict[str, Any]:
    """Examine a service; ``ok`` is false when something needs a person.

    Each check is ``{"name", "ok", "detail"}``; whatever goes wrong in one is told there and leaves the others. ``deep`` re-derives
    the projections from the log, checks file and hash chain, looks for each live edit as a question would, and hashes the model again.
    ``gpu_gib`` is the memory of one GPU, where vLLM is to run on another machine.
    """
    checks = [
        _check("ledger", lambda: _ledger(service)),
        _check("model", lambda: _model(service)),
        _check("memory", lambda: fitting.fits(service.settings, gpu_gib=gpu_gib)),
        _check("disk", lambda: _disk(service)),
        _check("releases", lambda: _releases(service)),
    ]
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
        "versions": versions(),
        "revision": service.revision,
        "model": service.model_id,
    }


def versions() -> dict[str, str]:
    """What runs here, by name."""
    return {"python": platform.python_version(), "sqlite": _sqlite(), **{name: _version(name) for name in _PACKAGES}}


def free_gigabytes(home: Path) -> float:
    """How much the disk still takes on which a home lies, or will lie."""
    folder = next(path for path in (home, *home.parents) if path.exists())
    return shutil.disk_usage(folder).free / 1e9


def _check(name: str, look: Callable[[], tuple[bool, str]]) -> dict[str, Any]:
    try:
        ok, detail = look()
    except KeToolsError as error:
        ok, detail = False, str(error)
    except Exception as error:
        log.warning("the check of the %s broke", name, exc_info=True)
        ok, detail = False, f"this could not be checked: {type(error).__name__}: {error}"
    return {"name": name, "ok": ok, "detail": detail}


def _ledger(service: Service) -> tuple[bool, str]:
    ledger = service.ledger
    live = sum(len(ledger.live(tenant)) for tenant in ledger.tenants())
    if service.unwritable is not None:
        return False, f"{live} live edits act, but no fact can be corrected: {service.unwritable}"
    return True, f"revision {ledger.head()}, {live} live edits of {len(ledger.tenants())} tenants, in {service.settings.home}"


def _model(service: Service) -> tuple[bool, str]:
    from ke_tools.models import checkpoint

    settings = service.settings
    if settings.upstream:
        return _upstream(service)
    if (path := checkpoint.at_hand(settings.edited, settings)) is None:
        return True, f"the model {settings.edited} is not fetched yet; the first question does it"
    if settings.engine == "vllm":
        return _vllm(service)
    card = checkpoint.describe(path, cache=settings.cache)
    return True, f"{card.architecture}, {card.parameters:,} parameters, {card.fingerprint}, in {card.path}"


def _upstream(service: Service) -> tuple[bool, str]:
    """The server that runs the model, asked anew."""
    from ke_tools.servers.engines.loading import load_engine
    from ke_tools.servers.engines.upstream import UNKNOWN_LENGTH

    engine = load_engine(service.settings, lambda _message: None)
    try:
        length = f"{engine.context_length:,} tokens" if engine.context_length < UNKNOWN_LENGTH else "an unknown length"
        forms = "conversations" if engine.chat_roles else "texts to complete"
        return True, f"{engine.model_id} behind {service.settings.upstream}, takes {forms} of {length}; its weights are not at hand"
    finally:
        engine.close()


def _vllm(service: Service) -> tuple[bool, str]:
    """The servers of vLLM, each asked anew; one of our own is not started for that."""
    from ke_tools.servers.engines.loading import load_engine, to_start

    if (recipe := to_start(service.settings)) is not None:
        return True, f"{recipe.name} in {recipe.model}; {recipe.program} serves it as soon as `ke-tools serve` or a question asks for it"
    engine: Any = load_engine(service.settings, lambda _message: None)
    try:
        told = [*engine.told(), *engine.tried()]
        lacks = (
            "" if READER in engine.adapters or not engine.has_reader else "; the reader is not served, so facts go in with demonstrations"
        )
        return all(is_well for is_well, _ in told), f"{engine.model_id}, {engine.fingerprint}: {'; '.join(said for _, said in told)}{lacks}"
    finally:
        engine.close()


def _disk(service: Service) -> tuple[bool, str]:
    free = free_gigabytes(service.settings.home)
    return free > LITTLE, f"{free:.1f} GB free for {service.settings.home}"


def _releases(service: Service) -> tuple[bool, str]:
    """Every live release, to the last byte, and whether it is of this model."""
    ledger, root = service.ledger, service.settings.releases
    live = {tenant: name for tenant in ledger.tenants() if (name := ledger.live_release(tenant))}
    bad = []
    for tenant, name in live.items():
        try:
            found = releases.opened(root, name)
        except KeToolsError as error:
            bad.append(f"{tenant}: {error.message}")
        else:
            if service.settings.upstream:
                bad.append(f"{tenant}: {name} acts on no answer, as another server runs the model.")
            elif found.fingerprint != (served := _fingerprint(service)):
                bad.append(f"{tenant}: {name} was made for the model {found.fingerprint}; this is {served}.")
    if bad:
        return False, f"{_listed(bad)} The memory answers; `ke-tools rebuild` makes the release again."
    return True, f"{len(live)} live, each whole and of this model" if live else "none is live"


def _fingerprint(service: Service) -> str:
    from ke_tools.models import checkpoint

    return checkpoint.fingerprint(checkpoint.resolve(service.settings), cache=service.settings.cache)


def _audit(service: Service) -> tuple[bool, str]:
    findings = service.ledger.audit()
    damage = [finding for finding in findings if finding.is_damage]
    if damage:
        return False, _listed([f"{finding.kind}: {finding.message.rstrip('.')}" for finding in damage])
    purged = sum(1 for finding in findings if finding.kind == "purged")
    told = f", {purged} payloads purged" if purged else ""
    return True, f"file, schema, keys and hash chain are whole, and every projection equals the log{told}"


def _scope(service: Service) -> tuple[bool, str]:
    if differences := service.scope.audit():
        return False, _listed(differences)
    ledger = service.ledger
    edits = [edit for tenant in ledger.tenants() for edit in ledger.live(tenant)]
    risky = sum(edit.alias_risky for edit in edits)
    notes = "".join(f"; {tenant}: {note}" for tenant, note in service.scope.notes().items())
    return True, (
        f"derived from the log: {len(edits)} live edits, each named by its own prompt;"
        f" {risky} of them in the vector index, each nearest to its own prompt{notes}"
    )


def _listed(findings: Sequence[str]) -> str:
    more = len(findings) - _SHOWN
    return "; ".join(findings[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _weights(service: Service) -> tuple[bool, str]:
    from ke_tools.models import checkpoint

    settings = service.settings
    if settings.upstream:
        return True, "another server's"
    if (path := checkpoint.at_hand(settings.edited, settings)) is None:
        return True, "not fetched yet"
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

"""Releases: what a set of edits changes in a model, as a folder that is written once and named by what it holds.

::

    rel_<24 hex>/
        adapter_config.json, adapter_model.safetensors    a LoRA adapter in PEFT's form (an update), or none
        grace.safetensors                                 a codebook, or none
        edits.jsonl                                       the facts, one a line, by edit id
        manifest.json                                     base fingerprint, how it was made, edit ids, sha256 of each file
        scorecard.json                                    on export only

The name is the beginning of the sha256 of ``manifest.json``, which holds no time and no path: the same content made the same way has the
same name and the same bytes, and no byte of it can change unnoticed. A folder under a release's name is always whole: it is written
beside, put on the disk, and renamed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.editors import codebook as codebooks
from ke_tools.editors import peft_folder
from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, ReadOnly, ResourceExhausted, cannot_write
from ke_tools.memory.events import record_of

if TYPE_CHECKING:
    from ke_tools.editors.codebook import Codebook
    from ke_tools.editors.update import Update
    from ke_tools.facts import Edit
    from ke_tools.models.causal import CausalModel

__all__ = ["EDITS", "Release", "build", "erase", "export", "is_name", "looks_like_one", "opened", "read", "sweep"]

MANIFEST: Final = "manifest.json"
EDITS: Final = "edits.jsonl"
SCORECARD: Final = "scorecard.json"
_ADAPTER: Final = frozenset({peft_folder.CONFIG, peft_folder.WEIGHTS})
_CODEBOOK: Final = codebooks.WEIGHTS
_ACTING: Final = frozenset({*_ADAPTER, _CODEBOOK, EDITS})
_FORMAT: Final = 1
_NAME: Final = re.compile(r"rel_[0-9a-f]{24}")
_PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release whose every file was checked when this was made."""

    name: str
    folder: Path
    edit_ids: tuple[str, ...]
    fingerprint: str  # of the base model
    how: Mapping[str, Any]
    has_adapter: bool
    has_codebook: bool


def build(
    root: Path,
    model: CausalModel,
    *,
    update: Update | None = None,
    codebook: Codebook | None = None,
    edits: Sequence[Edit],
    how: Mapping[str, Any],
) -> Release:
    """Write a release, or find it written already; one that is there but damaged is replaced.

    Args:
        root: the folder that releases lie in; made if need be. One build at a time writes there, others wait.
        model: the base model that it was planned for, whose fingerprint it carries.
        update: becomes the adapter.
        codebook: becomes ``grace.safetensors``; beside an update, planned with that applied, as its keys are states of the model it meets.
        edits: whose changes these are, in any order.
        how: what made them (method, parameters, seed, statistics key), as JSON; no times, as it is part of the name.

    Raises:
        InvalidInput: nothing would change; the model has no fingerprint or another one; an edit is given twice; ``how`` is no JSON.
        ResourceExhausted: no room; nothing was published.
        ReadOnly: the folder takes no files; nothing was published.
    """
    update = update if update is not None and update.rank else None
    codebook = codebook if codebook is not None and len(codebook.keys) else None
    head = _head(model, update, codebook, edits, how)
    with _explaining(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(root):
            partial = root / _PARTIAL
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            try:
                partial.mkdir(mode=0o700)
                manifest = _write(partial, model, update, codebook, edits, head)
                place = _put(partial, root / _named(manifest))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return read(place)


def opened(root: Path, name: str) -> Release:
    """Find a release and check every byte of it.

    Raises:
        InvalidInput: no release can have this name.
        ModelUnavailable: it is not there, or damaged; the message says which file.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot be a release's name.", "A name is rel_ and 24 hexadecimal digits.")
    if not (root / name).is_dir():
        raise ModelUnavailable(f"there is no release {name} in {root}.", "Promote its edits again.")
    return read(root / name)


def sweep(root: Path, keep: Collection[str]) -> None:
    """Delete what lies in a folder of releases besides those to keep: candidates that were refused, and what a killed build left.

    Only for who builds there. What cannot be deleted stays until the next time.
    """
    with suppress(OSError), _alone(root):
        for folder in root.iterdir():
            if folder.name == _PARTIAL or (_NAME.fullmatch(folder.name) and folder.name not in keep):
                shutil.rmtree(folder, ignore_errors=True)


def is_name(name: str) -> bool:
    """Whether a release could have this name."""
    return bool(_NAME.fullmatch(name))


def looks_like_one(folder: Path) -> bool:
    """Whether a folder is to be read as a release; what a damaged one has left counts, so that it cannot pass for an adapter."""
    return bool(_NAME.fullmatch(folder.name)) or any((folder / file).exists() for file in (MANIFEST, EDITS, _CODEBOOK))


def read(folder: Path) -> Release:
    """Read a release by its folder, also an exported one under a name of its own, and check every byte that acts.

    Raises:
        ModelUnavailable: damaged; the message says which file.
    """
    manifest = _content(folder / MANIFEST)
    name = _named(manifest)
    if _NAME.fullmatch(folder.name) and folder.name != name:
        raise _damaged(folder / MANIFEST, f"is that of {name}")
    try:
        told = json.loads(manifest)
        files, edit_ids, fingerprint, how = dict(told["files"]), tuple(map(str, told["edits"])), str(told["fingerprint"]), dict(told["how"])
        form = told["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder / MANIFEST, f"is none ({type(error).__name__}: {error})") from error
    if form != _FORMAT:
        raise _damaged(folder / MANIFEST, f"has the form {form!r}, not {_FORMAT}")
    if EDITS not in files or not _is_complete(files.keys() - {EDITS}):
        raise _damaged(folder / MANIFEST, f"lists {', '.join(sorted(files)) or 'nothing'}")
    for file in sorted(_ACTING):
        if file in files and hashlib.sha256(_content(folder / file)).hexdigest() != files[file]:
            raise _damaged(folder / file, "has another hash than the manifest says")
        if file not in files and (folder / file).exists():
            raise _damaged(folder / file, "does not belong to it")
    return Release(
        name=name,
        folder=folder,
        edit_ids=edit_ids,
        fingerprint=fingerprint,
        how=how,
        has_adapter=files.keys() >= _ADAPTER,
        has_codebook=_CODEBOOK in files,
    )


def export(release: Release, folder: Path, scorecards: Sequence[Mapping[str, Any]] = ()) -> Release:
    """Copy a release into a new folder, with ``scorecard.json`` beside what was hashed; all of it or nothing.

    Raises:
        InvalidInput: there is something in the folder already.
        ModelUnavailable: the release is damaged.
        ResourceExhausted, ReadOnly: the copy could not be written; nothing is left of it.
    """
    read(release.folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInput(f"there is something in {folder} already.", "Name a new folder.")
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    with _explaining(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for file in sorted({MANIFEST, *_ACTING}):
                if (release.folder / file).exists():
                    shutil.copyfile(release.folder / file, partial / file)
            (partial / SCORECARD).write_bytes(_json(list(scorecards), "the scorecards"))
            _put(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return read(folder)


def erase(root: Path, edit_id: str) -> list[str]:
    """Remove every release that carries an edit, those too that never went live; return their names.

    Raises:
        ReadOnly, ResourceExhausted: the folder could not be changed; what is named in it still may be there.
    """
    if not root.is_dir():
        return []
    try:
        with _alone(root):
            gone = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and _tells_of(folder, edit_id)]
            for folder in gone:
                shutil.rmtree(folder)
            _sync(root)
    except OSError as error:
        raise cannot_write(root, error) from error
    return [folder.name for folder in gone]


def _tells_of(folder: Path, edit_id: str) -> bool:
    files = (folder / name for name in (MANIFEST, EDITS, SCORECARD))
    return any(file.is_file() and edit_id.encode() in file.read_bytes() for file in files)


def _head(
    model: CausalModel, update: Update | None, codebook: Codebook | None, edits: Sequence[Edit], how: Mapping[str, Any]
) -> dict[str, Any]:
    """Check what a release is to be made of; give what its manifest says besides the files."""
    if update is None and codebook is None:
        raise InvalidInput("a release needs a change; there is neither an update nor a codebook.", "Leave the edits in the memory.")
    if not model.fingerprint:
        raise InvalidInput("the model has no fingerprint, so nothing could say what the release is for.", "Load it from a checkpoint.")
    for part in (update, codebook):
        if part is not None:
            part.check(model)
    edit_ids = sorted(edit.id for edit in edits)
    if twice := [one for one, other in pairwise(edit_ids) if one == other]:
        raise InvalidInput(f"the edit {twice[0]} is given twice.", "Give each edit once.")
    _json(how, "how it was made")
    return {"format": _FORMAT, "fingerprint": model.fingerprint, "how": how, "edits": edit_ids}


def _write(
    folder: Path,
    model: CausalModel,
    update: Update | None,
    codebook: Codebook | None,
    edits: Sequence[Edit],
    head: Mapping[str, Any],
) -> bytes:
    """Write all files; return the manifest."""
    if update is not None:
        peft_folder.write(update, model, folder)
    if codebook is not None:
        codebook.save(folder)
    lines = [json.dumps({"id": edit.id, **record_of(edit.fact)}) + "\n" for edit in sorted(edits, key=lambda edit: edit.id)]
    (folder / EDITS).write_bytes("".join(lines).encode())
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    manifest = _json({**head, "files": hashes}, "the manifest")
    (folder / MANIFEST).write_bytes(manifest)
    return manifest


def _put(partial: Path, place: Path) -> Path:
    """Have the files on the disk, then give the folder its name; what is there under it already stays if it is sound."""
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    if _NAME.fullmatch(place.name) and place.exists():
        with suppress(ModelUnavailable):
            return read(place).folder
        shutil.rmtree(place)
    partial.rename(place)
    try:
        _sync(place.parent)
    except OSError:
        place.rename(partial)
        raise
    return place


def _named(manifest: bytes) -> str:
    return f"rel_{hashlib.sha256(manifest).hexdigest()[:24]}"


def _json(value: Any, what: str) -> bytes:
    try:
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} cannot be written as JSON: {error}", "Give texts, numbers, lists and mappings.") from error


def _is_complete(files: frozenset[str] | set[str]) -> bool:
    """Whether a manifest's files make up an adapter, a codebook, or both."""
    return bool(files) and files - {_CODEBOOK} in (frozenset(), _ADAPTER)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _damaged(file, f"cannot be read ({error.strerror})") from error


def _damaged(file: Path, what: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the release in {file.parent} is damaged: {file.name} {what}.", "Promote its edits again, or roll back to another release."
    )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when a process dies: what is half written then is nobody's."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explaining(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explained(error, root) from error


def _explained(error: OSError, root: Path) -> KeToolsError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ResourceExhausted(f"no room left in {root} for a release ({error.strerror}). Nothing was published.", "Free some space.")
    return ReadOnly(f"a release could not be written into {root}: {error}. Nothing was published.", "Give a folder that takes files.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

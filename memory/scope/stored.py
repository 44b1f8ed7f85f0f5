"""What is derived of a tenant's edits, in a file: a cache that saves deriving it again, and nothing more.

A file is one line of JSON, the header; then one line of JSON an edit, which holds its id, how many vectors it has, and its keys; then
the vectors in the same order, float32, little endian. The header says what all this was derived from and the sha256 of what follows. A
file that does not fit in any of these is not used; what was wrong is for the log, and never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice, starmap
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import __version__
from ke_tools.memory.names import known_entities
from ke_tools.memory.scope.tenant import Derived
from ke_tools.memory.subjects import Key

__all__ = ["Origin", "Unusable", "naming", "read", "write"]

_FORMAT: Final = 1
_LONGEST_HEADER: Final = 65_536  # bytes
_IN_ONE_GO: Final = 1000  # edits; longer no other thread is kept from running


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file is derived from.

    ``chain`` is the hash of the ledger's event ``seq``, which stands for the whole history up to it.
    """

    tenant: str
    seq: int
    chain: str
    naming: str
    embedder: str
    dimension: int


class Unusable(Exception):
    """Why a file cannot be used."""


@cache
def naming() -> str:
    """A hash of all that an edit's keys depend on besides the edit."""
    return hashlib.sha256(repr((__version__, unicodedata.unidata_version, list(known_entities()))).encode()).hexdigest()


def write(path: Path, origin: Origin, derived: Derived) -> None:
    """Write a file, all of it or nothing.

    Raises:
        OSError: it could not be written.
    """
    vectors = [derived.vectors[edit_id] for edit_id in derived.keys if edit_id in derived.vectors]
    parts = [*_lines(derived), *(rows.astype("<f4").tobytes() for rows in vectors)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    header = {
        "format": _FORMAT,
        **asdict(origin),
        "edits": len(derived.keys),
        "vectors": sum(map(len, vectors)),
        "sha256": digest.hexdigest(),
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(header, ensure_ascii=False).encode() + b"\n")
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def read(path: Path, *, tenant: str, embedder: str, dimension: int) -> tuple[Origin, Derived]:
    """Read a file. Whether its ``chain`` is the ledger's is for the caller to see.

    Raises:
        Unusable: it is damaged, or was derived from something else.
        FileNotFoundError: there is none.
    """
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unusable(f"it cannot be read ({error.strerror})") from error
    try:
        return _parsed(whole, tenant=tenant, embedder=embedder, dimension=dimension)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Unusable("it is damaged") from error


def _parsed(whole: bytes, *, tenant: str, embedder: str, dimension: int) -> tuple[Origin, Derived]:
    end = whole.index(b"\n", 0, _LONGEST_HEADER + 1) + 1 if b"\n" in whole[:_LONGEST_HEADER] else 0
    header: dict[str, Any] = json.loads(whole[:end])
    body = memoryview(whole)[end:]
    if header["format"] != _FORMAT:
        raise Unusable(f"it has the form {header['format']!r}, not {_FORMAT}")
    expected = {"tenant": tenant, "naming": naming(), "embedder": embedder, "dimension": dimension}
    told = {"tenant": "tenant", "naming": "names", "embedder": "embedding model", "dimension": "embedding model"}
    if other := [told[name] for name, value in expected.items() if header[name] != value]:
        raise Unusable(f"it was made for another {other[0]}" if other[0] != "names" else "it was made with another list of names")
    if hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise Unusable("it is damaged")
    origin = Origin(tenant, int(header["seq"]), str(header["chain"]), header["naming"], embedder, dimension)
    start = len(body) - 4 * dimension * int(header["vectors"])
    rows = list(_rows_in(bytes(body[:start]).splitlines()))
    keys = {edit_id: tuple(starmap(Key, found)) for edit_id, _, *found in rows}
    counts = {edit_id: count for edit_id, count, *_ in rows if count}
    if len(keys) != header["edits"] or sum(counts.values()) != header["vectors"]:
        raise Unusable("it is damaged")
    return origin, Derived(keys, dict(_vectors_in(body[start:], counts, dimension)))


def _lines(derived: Derived) -> Iterator[bytes]:
    rows = ([edit_id, len(derived.vectors.get(edit_id, ())), *keys] for edit_id, keys in derived.keys.items())
    while some := list(islice(rows, _IN_ONE_GO)):
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in some)
        yield "".join(lines).encode("utf-8", "surrogatepass")


def _rows_in(lines: list[bytes]) -> Iterator[list[Any]]:
    for start in range(0, len(lines), _IN_ONE_GO):  # many at once are read in half the time
        yield from json.loads(f"[{b','.join(lines[start : start + _IN_ONE_GO]).decode('utf-8', 'surrogatepass')}]")


def _vectors_in(data: memoryview, counts: Mapping[str, int], dimension: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    matrix = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(-1, dimension)
    start = 0
    for edit_id, rows in counts.items():
        yield edit_id, matrix[start : start + rows]
        start += rows


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

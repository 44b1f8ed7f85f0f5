"""What ke-tools is told to do: one frozen value, and where each part of it came from.

Order: a flag, ``KE_*`` in the environment, ``ke-tools.toml`` in the home folder, ``ke-tools.toml`` in the user's
configuration folder, the default. The current directory is never looked into, as an MCP server is started in other
people's projects.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from ke_tools.errors import InvalidInput

FILE_NAME: Final = "ke-tools.toml"
DEFAULT_ADDRESS: Final = "127.0.0.1:8765"

ENGINES: Final = ("hf", "vllm")
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
VIAS: Final = ("auto", "ike", "reader", "weights")
GREYS: Final = ("conditional", "judge", "base")
EDITS: Final = ("active", "propose")
CHAT_CORRECTIONS: Final = ("off", "propose", "apply")
MOST_DEMONSTRATIONS: Final = 32
MOST_A_MINUTE: Final = 1_000_000

# A client that starts `ke-tools serve` speaks on stdio; no variable or file may turn that into a server on a port.
_ONLY_FLAGS: Final = frozenset({"http"})
_ONLY_FILES: Final = frozenset({"promote"})  # a table; a variable holds one value
_PATHS: Final = frozenset({"home", "cache", "token_file", "upstream_key_file"})
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
PLAIN_NAME: Final = re.compile(r"[^\W_][\w .@+-]{0,99}")  # of a token or a tenant
_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_DEVICES: Final = "auto, cpu, mps, cuda or cuda:N"
_URL: Final = re.compile(r"https?://[^\s/@?#]+(/[^\s?#]*)?")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:\[\]/]+):(\d{1,5})")

Via = Literal["auto", "ike", "reader", "weights"]
Grey = Literal["conditional", "judge", "base"]
ChatCorrections = Literal["off", "propose", "apply"]
Edits = Literal["active", "propose"]
Kind = Literal["data", "cache", "config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration. Making one touches no file and no folder."""

    home: Path  # what cannot be made again: ledger, revisions
    cache: Path  # what can: model, statistics, indexes
    model: str = "embedded"  # or a checkpoint's folder, or a hub id
    edit_model: str | None = None  # of the engine vllm: the unquantised twin of the model, by which edits are planned
    engine: str = "hf"
    vllm_url: tuple[str, ...] = ()  # of the engine vllm: addresses of servers that run the model; without, ke-tools starts one
    vllm: str = "vllm"  # the program that is started then
    vllm_args: tuple[str, ...] = ()  # and what it is given beside our flags
    upstream: str | None = None  # address of a server that runs the model, in place of an engine of ours
    upstream_key_file: Path | None = None  # the key of either; else KE_UPSTREAM_KEY, which is no setting, so that nothing shows it
    dtype: str = "auto"
    device: str = "auto"
    edit_device: str | None = None  # where edits are planned; without, there too
    demonstrations: int = 6  # how many an IKE prompt shows
    alpha: float = 0.005  # share of its negatives that an edit may be triggered by
    via: Via = "auto"  # how an edited fact reaches the model
    grey: Grey = "base"  # what happens where it is not clear whether a question is about an edit
    edits: Edits = "active"  # whether an edit acts at once, or waits for an approval
    edits_per_minute: int = 0  # that one token may record, where the token file does not say; 0: any number
    chat_corrections: ChatCorrections = "off"  # whether /correct and "no, it is …" are obeyed at the endpoint
    tenant: str = "default"  # whose edits are seen and changed where no token says it
    read_only: bool = False
    token_file: Path | None = None
    http: str | None = None  # HOST:PORT; None: MCP on stdio
    trust_remote_code: bool = False
    promote: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what the gate asks, of whom, and what `--auto` names
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)  # field → where its value came from

    def __post_init__(self) -> None:
        """Refuse a twin of a model that is not in vLLM.

        Raises:
            InvalidInput: there is one.
        """
        if self.edit_model is None or (self.engine == "vllm" and not self.upstream):
            return
        runs = "--upstream has no weights to edit" if self.upstream else f"{self.engine} plans edits with the model that it serves"
        place = f"{self.sources['edit_model']}: " if "edit_model" in self.sources else ""
        raise InvalidInput(
            f"{place}edit_model = {self.edit_model!r} is of the engine vllm; {runs}.",
            "Leave --edit-model out, or serve the model by --engine vllm.",
        )

    @classmethod
    def load(cls, **flags: object) -> Self:
        """Join flags (``None``: not given), environment, files and defaults.

        Raises:
            InvalidInput: a key or a value that means nothing; the message names it, its place and what is known.
        """
        if unknown := flags.keys() - _READERS.keys():
            raise TypeError(f"no such setting: {sorted(unknown)}")
        found: dict[str, tuple[object, str, Path | None]] = {}  # value, place, the folder that relative paths start from
        for name, value, place, base in (*_from_flags(flags), *_from_environment()):
            found.setdefault(name, (value, place, base))
        users_file = user_folder("config") / FILE_NAME
        users = {name: (value, f"{users_file}", users_file.parent) for name, value in _read(users_file).items()}
        home_value, home_place, home_base = found.get("home") or users.get("home") or (user_folder("data"), "default", None)
        home = _readable("home", home_value, home_place, home_base)
        homes = {name: (value, f"{home / FILE_NAME}", home) for name, value in _read(home / FILE_NAME, without={"home"}).items()}
        for further in (homes, users):
            has_twin = found.get("engine", ("vllm",))[0] == "vllm" and "upstream" not in found
            for name, given in further.items():
                if has_twin or name != "edit_model":  # it is of the engine vllm, which nearer places chose another one than
                    found.setdefault(name, given)
        found.setdefault("cache", (user_folder("cache"), "default", None))
        found["home"] = (home, home_place, None)
        values: dict[str, Any] = {name: _readable(name, *given) for name, given in found.items()}
        return cls(**values, sources={name: found[name][1] if name in found else "default" for name in _READERS})

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Render for ``doctor``: ``{name: {"value": …, "source": …}}``, paths as text."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sources"}
        return {
            name: {"value": str(value) if isinstance(value, Path) else value, "source": self.sources.get(name, "given")}
            for name, value in values.items()
        }

    @property
    def is_remote(self) -> bool:
        """Whether the model runs in a server that is asked over HTTP."""
        return bool(self.upstream) or self.engine == "vllm"

    @property
    def edited(self) -> str:
        """The model that edits are planned with: its tokenizer, its statistics, its reader, its releases."""
        return self.edit_model or self.model

    @property
    def known(self) -> str:
        """The model that is served, as far as it is known here: servers that run already may have a form of it that is nowhere else."""
        return self.edited if self.vllm_url else self.model

    @property
    def planned_on(self) -> str:
        """The device that edits are planned on."""
        return self.edit_device or self.device

    @property
    def served(self) -> Path:
        """Where lies what servers of vLLM are given to load."""
        return self.home / "served"

    @property
    def ledger_file(self) -> Path:
        """Where the home's ledger lies."""
        return self.home / "ledger.db"

    @property
    def releases(self) -> Path:
        """Where the home's releases lie."""
        return self.home / "releases"

    def to_json(self) -> dict[str, Any]:
        """Write for another process of ours."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sources"}
        written = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in values.items()}
        return {**written, "sources": dict(self.sources)}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = {n: Path(value) if n in _PATHS and value is not None else value for n, value in written.items()}
        return cls(**{**values, **{name: tuple(values.get(name, ())) for name in ("vllm_url", "vllm_args")}})


def user_folder(kind: Kind) -> Path:
    """Where this platform keeps a user's ``kind`` of files for ke-tools (not made)."""
    try:
        home = Path.home()
    except RuntimeError as error:
        raise InvalidInput("the user's home folder is unknown.", "Set HOME, or KE_HOME and KE_CACHE.") from error
    if sys.platform == "darwin":
        library = home / "Library"
        return {"data": library / "Application Support", "cache": library / "Caches", "config": library / "Application Support"}[
            kind
        ] / "ke-tools"
    variable, usual = {
        "data": ("XDG_DATA_HOME", ".local/share"),
        "cache": ("XDG_CACHE_HOME", ".cache"),
        "config": ("XDG_CONFIG_HOME", ".config"),
    }[kind]
    stated = os.environ.get(variable, "")
    return (Path(stated) if os.path.isabs(stated) else home / usual) / "ke-tools"  # noqa: PTH117  the convention: a relative one is ignored


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[str, object, str, None]]:
    for name, value in flags.items():
        if value is not None:
            yield name, value, f"--{name.replace('_', '-')}", None


def _from_environment() -> Iterator[tuple[str, object, str, None]]:
    for name in _READERS.keys() - _ONLY_FLAGS - _ONLY_FILES:
        variable = f"KE_{name.upper()}"
        if value := os.environ.get(variable, ""):  # an empty variable is an unset one
            yield name, value, variable, None


def _read(path: Path, *, without: Collection[str] = ()) -> dict[str, object]:
    import tomllib

    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", "Repair or remove the file.") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not TOML: {error}", 'Repair the line, e.g. model = "embedded".') from error
    known = [name for name in _READERS if name not in {*without, *_ONLY_FLAGS}]
    if unknown := [key for key in values if key not in known]:
        raise InvalidInput(f"{path}: the key {unknown[0]!r} is not known here.", f"Known are {', '.join(known)}.")
    return values


def _readable(name: str, value: object, place: str, base: Path | None) -> Any:
    try:
        return _READERS[name](value, base)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{place}: {name} = {value!r} is not valid.", f"Expected {error}.") from error


# One reader a setting: (value, folder that relative paths start from) → checked value; its error says what is expected.
Reader = Callable[[object, Path | None], Any]


def _path(value: object, base: Path | None) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise TypeError("a path")
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError("a path whose ~user exists") from error
    return (base / path if base else path).absolute()


def _model(value: object, base: Path | None) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError('"embedded", a folder with a checkpoint, or a hub id')
    return str(_path(value, base)) if value.startswith((".", "/", "~")) else value


def _flag(value: object, _base: Path | None) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and (word := value.strip().lower()) in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError("true or false")


def _up_to(most: int) -> Reader:
    def read(value: object, _base: Path | None) -> int:
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
            return value
        raise ValueError(f"a whole number from 0 to {most}")

    return read


def _share(value: object, _base: Path | None) -> float:
    try:
        share = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError("a share between 0 and 1")
    return share


def _table(value: object, _base: Path | None) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("a table, e.g. [promote] and below it reliability = 0.95")
    return dict(value)


def _one_of(*known: str) -> Reader:
    def read(value: object, _base: Path | None) -> str:
        if isinstance(value, str) and value in known:
            return value
        raise ValueError("one of " + ", ".join(known))

    return read


def _matching(pattern: re.Pattern[str], expected: str) -> Reader:
    def read(value: object, _base: Path | None) -> str:
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        raise ValueError(expected)

    return read


def _urls(value: object, _base: Path | None) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts or not all(isinstance(one, str) and _URL.fullmatch(one.strip()) for one in parts):
        raise ValueError("addresses of servers with commas between them, e.g. http://127.0.0.1:8000")
    return tuple(one.strip() for one in parts)


def _program(value: object, base: Path | None) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError("the name of a program, or its path")
    return str(_path(value, base)) if "/" in value or value.startswith("~") else value


def _words(value: object, _base: Path | None) -> tuple[str, ...]:
    parts = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(one, str) and one for one in parts):
        raise ValueError('arguments as a list or as a shell has them, e.g. "--gpu-memory-utilization 0.6"')
    return tuple(parts)


_READERS: Final[Mapping[str, Reader]] = {
    "home": _path,
    "cache": _path,
    "model": _model,
    "edit_model": _model,
    "engine": _one_of(*ENGINES),
    "vllm_url": _urls,
    "vllm": _program,
    "vllm_args": _words,
    "upstream": _matching(_URL, "the address of a server, without a key in it, e.g. http://127.0.0.1:8000"),
    "upstream_key_file": _path,
    "dtype": _one_of(*DTYPES),
    "device": _matching(_DEVICE, _DEVICES),
    "edit_device": _matching(_DEVICE, _DEVICES),
    "demonstrations": _up_to(MOST_DEMONSTRATIONS),
    "alpha": _share,
    "via": _one_of(*VIAS),
    "grey": _one_of(*GREYS),
    "edits": _one_of(*EDITS),
    "edits_per_minute": _up_to(MOST_A_MINUTE),
    "chat_corrections": _one_of(*CHAT_CORRECTIONS),
    "tenant": _matching(PLAIN_NAME, "1 to 100 letters, digits, spaces and . @ + - _, as the token file has it"),
    "read_only": _flag,
    "token_file": _path,
    "http": _matching(_ADDRESS, f"HOST:PORT, e.g. {DEFAULT_ADDRESS}"),
    "trust_remote_code": _flag,
    "promote": _table,
}

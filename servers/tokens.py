"""Which tokens a server knows, and whom each makes of its bearer. Tokens are kept as SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ke_tools.config import PLAIN_NAME
from ke_tools.errors import Forbidden, InvalidInput
from ke_tools.servers.principal import ALL_SCOPES, Principal

__all__ = ["Token", "TokenFile", "Tokens", "WatchedTokens", "WrongToken", "sha256_of"]

log = logging.getLogger(__name__)

_KEYS: Final = {"name", "sha256", "tenant", "scopes"}
_MORE: Final = {"edits_per_minute"}  # what may be left out


class WrongToken(Forbidden):
    """No token where one is needed, or one that is in no list."""

    http_status = 401


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the token file: the hash of a secret and whom it makes of its bearer."""

    sha256: str
    principal: Principal


class Tokens(Protocol):
    """What a door asks."""

    def authenticate(self, header: str | None) -> Principal:
        """Give the principal of an ``Authorization`` header's value."""

    def holder(self, sha256: str) -> Principal | None:
        """Whom the token with this hash makes of its bearer; nobody, if it is none of them."""

    @property
    def trouble(self) -> str:
        """Why they may not be those that were meant; "" while they are. Whoever asks may read it."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """What one reading of a token file gave."""

    tokens: tuple[Token, ...]

    @classmethod
    def load(cls, path: Path | str, *, least: int = 1) -> TokenFile:
        """Read ``[[token]] name, sha256, tenant, scopes`` (TOML), and where it is given ``edits_per_minute``; at least so many.

        Raises:
            InvalidInput: unreadable, not TOML, or an entry is wrong; the message says which and what was expected.
        """
        try:
            raw = tomllib.loads(Path(path).read_text("utf-8-sig"))
        except OSError as error:
            raise InvalidInput(f"the token file {path} cannot be read: {error.strerror}.", "Check --token-file.") from error
        except (ValueError, RecursionError) as error:  # TOML's and UTF-8's; nested without end
            raise InvalidInput(f"the token file {path} is not TOML: {error}.", "Write [[token]] tables.") from error
        entries = raw.pop("token", [])
        if raw or not isinstance(entries, list) or len(entries) < least:
            found = f"the unknown keys {sorted(raw)}" if raw else "no [[token]] table"
            raise InvalidInput(f"the token file {path} has {found}.", "Write one [[token]] table for each token, nothing else.")
        tokens = tuple(_token(entry, f"token {number} of {path}") for number, entry in enumerate(entries, 1))
        for what, values in (("name", [t.principal.name for t in tokens]), ("sha256", [t.sha256 for t in tokens])):
            if len(set(values)) < len(values):
                raise InvalidInput(f"two tokens of {path} have the same {what}.", "Give every token its own.")
        return cls(tokens)

    def authenticate(self, header: str | None) -> Principal:
        """Give the principal of an ``Authorization`` header's value.

        Raises:
            WrongToken: the header is missing, is no bearer token, or nobody's.
        """
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise WrongToken(
                "this server needs a token.", "Send 'Authorization: Bearer TOKEN' (the API key).", openai_code="invalid_api_key"
            )
        if (found := self.holder(sha256_of(secret))) is None:
            raise WrongToken("the token is not one of this server's.", "Check the API key.", openai_code="invalid_api_key")
        return found

    def holder(self, sha256: str) -> Principal | None:
        """Whom the token with this hash makes of its bearer; every known hash is compared, in constant time."""
        matches = [token.principal for token in self.tokens if hmac.compare_digest(sha256, token.sha256)]
        return matches[0] if matches else None

    @property
    def trouble(self) -> str:
        """None: they are what was given."""
        return ""


class WatchedTokens:
    """The tokens of a file, read again when it has changed, so that a right that is withdrawn there ends at once. Thread safe.

    What cannot be read changes nothing: the tokens that were read last stay, it is tried again, and :attr:`trouble` says so. A file
    that names no token leaves none.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InvalidInput: as :meth:`TokenFile.load`.
        """
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._stamped()
        self._read = TokenFile.load(path)
        self._told = ""

    def authenticate(self, header: str | None) -> Principal:
        """As :meth:`TokenFile.authenticate`, by what the file says now."""
        return self._now().authenticate(header)

    def holder(self, sha256: str) -> Principal | None:
        """As :meth:`TokenFile.holder`, by what the file says now."""
        return self._now().holder(sha256)

    def _now(self) -> TokenFile:
        with self._lock:
            if (stamp := self._stamped()) != self._stamp or self._told:
                try:
                    self._read, self._stamp, self._told = TokenFile.load(self._path, least=0), stamp, ""
                    log.info("the token file %s has changed: %d tokens", self._path, len(self._read.tokens))
                except InvalidInput as error:
                    if str(error) != self._told:
                        log.warning("%s The tokens that were read before it go on being valid.", error)
                    self._told = str(error)
            return self._read

    @property
    def trouble(self) -> str:
        """Why a token that was withdrawn may still be valid; its path is for the log."""
        self._now()
        return "The token file cannot be read, and the tokens read before go on being valid. See the server's log." if self._told else ""

    def _stamped(self) -> tuple[int, int, int, int] | None:
        try:
            seen = self._path.stat()
        except OSError:
            return None
        return seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino


def sha256_of(secret: str) -> str:
    """What a token is known by."""
    return hashlib.sha256(secret.strip().encode()).hexdigest()


def _token(entry: object, where: str) -> Token:
    if not isinstance(entry, Mapping) or set(entry) - _MORE != _KEYS:
        found = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise InvalidInput(
            f"{where} has {found}; expected are {sorted(_KEYS)}.", f"Write all four, and besides at most {', '.join(sorted(_MORE))}."
        )
    name, tenant = (_plain_name(entry[key], f"{key} of {where}") for key in ("name", "tenant"))
    digest = entry["sha256"]
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise InvalidInput(f"sha256 of {where} is not 64 hexadecimal digits.", "Write the token's SHA-256, e.g. from sha256sum.")
    limit = entry.get("edits_per_minute")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidInput(f"edits_per_minute of {where} is {limit!r}.", "Give a whole number; 0 for any number.")
    return Token(digest.lower(), Principal(name, tenant, _scopes(entry["scopes"], where), limit))


def _plain_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not PLAIN_NAME.fullmatch(value):
        raise InvalidInput(f"{where} is {value!r}.", "Use 1 to 100 letters, digits, spaces and . @ + - _")
    return value


def _scopes(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(isinstance(scope, str) and scope in ALL_SCOPES for scope in value):
        raise InvalidInput(f"scopes of {where} are {value!r}.", f"Give a list of some of {sorted(ALL_SCOPES)}.")
    return frozenset(value)

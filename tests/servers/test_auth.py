"""Who may come in: token files, Host and Origin, binding."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from ke_tools.errors import Forbidden, InvalidInput
from ke_tools.servers.auth import HostRule, TokenFile, WrongToken, authenticate, check_bind, split_host
from ke_tools.servers.principal import ALL_SCOPES, Principal

if TYPE_CHECKING:
    from pathlib import Path


def entry(name: str, secret: str, scopes: str = '["read"]', tenant: str = "acme") -> str:
    """One table of a token file."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\ntenant = "{tenant}"\nscopes = {scopes}\n'


def load(tmp_path: Path, text: str) -> TokenFile:
    """Write ``text`` and load it."""
    path = tmp_path / "tokens.toml"
    path.write_text(text, "utf-8")
    return TokenFile.load(path)


def test_a_token_makes_its_bearer_the_principal_of_its_line(tmp_path: Path) -> None:
    """Design §3: a tenant is the principal of a bearer token; the actor is the token's name."""
    tokens = load(tmp_path, entry("ann", "s3cret", '["chat", "write"]') + entry("bob", "other", tenant="rival"))
    assert tokens.authenticate("Bearer s3cret") == Principal("ann", "acme", frozenset({"chat", "write"}))
    assert tokens.authenticate("bearer other").tenant == "rival"


def test_a_token_may_have_a_limit_of_its_own(tmp_path: Path) -> None:
    """Issue 8, §2: limits of edits per token and minute; without one the server's setting holds."""
    tokens = load(tmp_path, entry("ann", "a") + "edits_per_minute = 5\n" + entry("bob", "b"))
    assert [tokens.authenticate(f"Bearer {secret}").edits_per_minute for secret in "ab"] == [5, None]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic s3cret", "s3cret", "Bearer S3cret", "Bearer s3cret x"])
def test_a_missing_or_wrong_token_is_refused(tmp_path: Path, header: str | None) -> None:
    """Issue §6: wrong token."""
    with pytest.raises(WrongToken, match="E_FORBIDDEN"):
        load(tmp_path, entry("ann", "s3cret")).authenticate(header)


def test_without_a_token_file_any_key_is_the_local_user() -> None:
    """Design §3: loopback without a token file is tenant default, any API key is accepted."""
    assert authenticate("Bearer whatever", None) == authenticate(None, None) == Principal("local", "default", ALL_SCOPES)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no \\[\\[token\\]\\]"),
        ("[[token]", "not TOML"),
        ('token = "x"', "no \\[\\[token\\]\\]"),
        ("[[tokens]]\nname = 'x'", "tokens"),
        ("[[token]]\nname = 'x'", "token 1 of .*'name'"),
        (entry("ann", "a") + "colour = 1\n", "token 1 of .*colour"),
        (entry("ann", "a").replace('sha256 = "', 'sha256 = "zz'), "sha256 of token 1"),
        (entry("ann", "a") + "edits_per_minute = -1\n", "edits_per_minute of token 1"),
        (entry("ann", "a") + "edits_per_minute = true\n", "edits_per_minute of token 1"),
        (entry("ann", "a", "[]"), "scopes of token 1"),
        (entry("ann", "a", '["root"]'), "scopes of token 1 .*root"),
        (entry("ann", "a", '"read"'), "scopes of token 1"),
        (entry("", "a"), "name of token 1"),
        (entry("ann", "a", tenant="a/b"), "tenant of token 1"),
        (entry("ann", "a") + entry("ann", "b"), "same name"),
        (entry("ann", "a") + entry("bob", "a"), "same sha256"),
    ],
)
def test_a_malformed_token_file_is_refused_by_naming_the_fault(tmp_path: Path, text: str, named: str) -> None:
    """Issue §6: bad input gets a clear error."""
    with pytest.raises(InvalidInput, match=named):
        load(tmp_path, text)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    """Issue §6."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        TokenFile.load(tmp_path / "none.toml")


def test_no_message_shows_a_secret(tmp_path: Path) -> None:
    """A token must not end in a log."""
    with pytest.raises(WrongToken) as caught:
        load(tmp_path, entry("ann", "s3cret")).authenticate("Bearer hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_tokens(host: str) -> None:
    """Issue §4: HTTP binds to loopback unless told otherwise."""
    check_bind(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_anything_else_demands_a_token_file(host: str, tmp_path: Path) -> None:
    """Issue §4: and then demands a token."""
    with pytest.raises(InvalidInput, match="token file"):
        check_bind(host, None)
    check_bind(host, tmp_path / "tokens.toml")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("Localhost", ("localhost", "")),
        ("localhost:80", ("localhost", "80")),
        ("a.example.:80", ("a.example", "80")),
        ("[::1]:80", ("::1", "80")),
        ("[::1]", ("::1", "")),
        ("::1", ("::1", "")),
        ("user@localhost", ("user@localhost", "")),
        ("localhost:80:90", ("localhost:80:90", "")),
        ("localhost/evil", ("localhost/evil", "")),
    ],
)
def test_a_host_is_split_from_its_port(value: str, parts: tuple[str, str]) -> None:
    """What is no host comes back whole, and so matches nothing."""
    assert split_host(value) == parts


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:1", "LOCALHOST:80", "ke.example", "ke.example:9", "b.example:81"])
def test_names_of_this_machine_and_allowed_ones_are_ours(host: str) -> None:
    """research/mcp.md §1.8: an explicit list, whatever the bound address is."""
    assert HostRule.of(["ke.example", "b.example:81"]).allows(host)


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "b.example:82", "192.168.1.5", "x@localhost"])
def test_other_names_are_not_ours(host: str) -> None:
    """Issue §6: evil Host."""
    assert not HostRule.of(["ke.example", "b.example:81"]).allows(host)


def test_a_server_on_every_address_allows_literals_but_no_strange_names() -> None:
    """DNS rebinding needs a name; a literal is what the user typed."""
    rule = HostRule.of(["0.0.0.0:8765"])
    assert rule.allows("192.168.1.5:8765")
    assert not rule.allows("evil.example:8765")


@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("https://ke.example", True),
        ("https://evil.example", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("http://localhost/evil", False),
        ("http://localhost@evil.example", False),
        ("chrome-extension://localhost", False),
        ("http://[::1", False),
    ],
)
def test_an_origin_is_ours_or_not(origin: str, *, ours: bool) -> None:
    """Issue §6: evil Origin."""
    assert HostRule.of(["ke.example"]).allows_origin(origin) is ours


def test_scopes_imply_as_written() -> None:
    """Contract: admin implies all, write implies read and propose, chat opens /v1 only."""
    may = {scope: {other for other in ALL_SCOPES if Principal("x", "t", frozenset({scope})).may(other)} for scope in ALL_SCOPES}
    assert may == {
        "admin": set(ALL_SCOPES),
        "write": {"write", "read", "propose"},
        "read": {"read"},
        "propose": {"propose"},
        "chat": {"chat"},
    }
    with pytest.raises(Forbidden, match="lacks the scope 'write'"):
        Principal("x", "t", frozenset({"chat"})).require("write")

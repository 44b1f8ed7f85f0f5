"""Who may come in: Host and Origin, binding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ke_tools.errors import Forbidden, InvalidInput
from ke_tools.servers.auth import HostRule, authenticate, check_bind, split_host
from ke_tools.servers.principal import ALL_SCOPES, Principal

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_token_file_any_key_is_the_local_user() -> None:
    """Design §3: loopback without a token file is one tenant's, any API key is accepted."""
    local = Principal("local", "acme", ALL_SCOPES)
    assert authenticate("Bearer whatever", None, local) == authenticate(None, None, local) == local


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

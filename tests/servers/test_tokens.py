"""Which tokens a server knows: what a token file says, and what it says now."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.servers.principal import Principal
from ke_tools.servers.tokens import TokenFile, WatchedTokens, WrongToken, sha256_of


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


def test_what_changes_in_the_file_holds_at_once(tmp_path: Path) -> None:
    """Issue 8, bad input: a token whose rights were withdrawn in between; no restart, which would take the model away."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ann", "a", '["write"]') + entry("bob", "b"), "utf-8")
    tokens = WatchedTokens(path)
    assert tokens.authenticate("Bearer a").may("write")

    path.write_text(entry("ann", "a") + entry("zoe", "z"), "utf-8")
    assert not tokens.authenticate("Bearer a").may("write")
    assert tokens.authenticate("Bearer z").name == "zoe"
    assert tokens.holder(sha256_of("b")) is None
    with pytest.raises(WrongToken):
        tokens.authenticate("Bearer b")


def test_a_file_put_in_place_of_the_old_one_is_seen(tmp_path: Path) -> None:
    """Editors and configuration managers write beside and rename."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ann", "a"), "utf-8")
    tokens = WatchedTokens(path)
    (tmp_path / "new").write_text(entry("bob", "b"), "utf-8")
    (tmp_path / "new").replace(path)
    assert tokens.authenticate("Bearer b").name == "bob"


@pytest.mark.parametrize("text", [None, "[[token]", "a = " + "[" * 5000, entry("ann", "a", '["root"]'), b"\xff\xfe[\x00"])
def test_a_file_that_cannot_be_read_any_more_changes_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | bytes | None
) -> None:
    """House rule: what fails says what was found and loses nothing; half-written files are seen, too."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ann", "a"), "utf-8")
    tokens = WatchedTokens(path)
    assert tokens.trouble == ""
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    for _ in range(2):
        assert tokens.authenticate("Bearer a").name == "ann"
    assert caplog.text.count("go on being valid") == 1
    assert str(path) in caplog.text
    assert "cannot be read" in tokens.trouble
    assert str(path) not in tokens.trouble

    path.write_text(entry("bob", "b"), "utf-8-sig")
    with pytest.raises(WrongToken):
        tokens.authenticate("Bearer a")
    assert tokens.authenticate("Bearer b").name == "bob"
    assert tokens.trouble == ""


def test_a_file_that_could_not_be_read_for_a_moment_is_read_as_soon_as_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was taken out must not stay valid because the file's rights were set after it was put in place."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ann", "a"), "utf-8")
    tokens = WatchedTokens(path)
    path.write_text(entry("bob", "b"), "utf-8")
    with monkeypatch.context() as closed:
        closed.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert tokens.authenticate("Bearer a").name == "ann"
    with pytest.raises(WrongToken):
        tokens.authenticate("Bearer a")


def test_a_file_rewritten_with_the_times_and_the_size_of_the_old_one_is_seen(tmp_path: Path) -> None:
    """As a copy that keeps times does it."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ann", "a"), "utf-8")
    tokens, old = WatchedTokens(path), path.stat()
    path.write_text(entry("bob", "b"), "utf-8")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert tokens.authenticate("Bearer b").name == "bob"


@pytest.mark.parametrize("text", ["", "# nobody\n", "token = []\n"])
def test_a_file_that_names_no_token_any_more_leaves_none(tmp_path: Path, text: str) -> None:
    """The last token can be withdrawn without a restart."""
    path = tmp_path / "tokens.toml"
    path.write_text(entry("ann", "a"), "utf-8")
    tokens = WatchedTokens(path)
    path.write_text(text, "utf-8")
    with pytest.raises(WrongToken):
        tokens.authenticate("Bearer a")
    assert tokens.trouble == ""


def test_watching_begins_with_a_file_that_can_be_read(tmp_path: Path) -> None:
    """Issue §6: a server does not start on a token file with a fault."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        WatchedTokens(tmp_path / "none.toml")

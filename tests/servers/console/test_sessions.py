"""Who is logged in at a browser, for how long, and what a form must carry."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from starlette.datastructures import Headers

from ke_tools.errors import Forbidden
from ke_tools.servers.console import sessions
from ke_tools.servers.console.sessions import IDLE_SECONDS, Sessions
from ke_tools.servers.principal import NOBODY, Principal
from ke_tools.servers.tokens import Token, TokenFile, WrongToken

ANN = Principal("ann", "acme", frozenset({"write"}))
LOCAL = Principal(tenant="acme")
CARL = Principal("carl", "acme", frozenset({"chat"}))
TOKENS = TokenFile((Token(hashlib.sha256(b"secret").hexdigest(), ANN), Token(hashlib.sha256(b"chats").hexdigest(), CARL)))


class Clock:
    """A clock that is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def headers(cookie: str, host: str = "ke.example:8765") -> Headers:
    """A request's, with our cookie."""
    return Headers({"host": host, "cookie": f"a=b; {Sessions.cookie_name(host)}={cookie}"})


def test_a_token_opens_a_session_whose_cookie_says_nothing_of_it() -> None:
    """Issue 8, §3: same tokens; a cookie that is stolen ends with the server, and opens no API."""
    found = Sessions(TOKENS, LOCAL)
    cookie = found.log_in("secret")
    assert found.principal(headers(cookie)) == ANN
    assert "secret" not in cookie
    assert found.log_in("secret") != cookie
    assert Sessions(TOKENS, LOCAL).principal(headers(cookie)) == NOBODY


def test_a_wrong_token_opens_none() -> None:
    """Issue 8, bars: wrong token."""
    with pytest.raises(WrongToken):
        Sessions(TOKENS, LOCAL).log_in("guess")


@pytest.mark.parametrize("cookie", ["", "nobody's", "x" * 9000, '"', "é"])
def test_what_is_no_session_is_nobody(cookie: str) -> None:
    """House rule: fail towards nobody's rights."""
    assert Sessions(TOKENS, LOCAL).principal(headers(cookie)) == NOBODY
    assert Sessions(TOKENS, LOCAL).principal(Headers({"host": "ke.example", "cookie": "ke_session_default=\x00; ;;=="})) == NOBODY


@pytest.mark.parametrize("others", ['prefs={"a":1,"b":[2]}', "a b=c", "x;", "é=1", "expires=1", "a[b]=1", 'q="unclosed'])
def test_another_programs_cookie_does_not_hide_ours(others: str) -> None:
    """Browsers share the cookies of a host among its ports."""
    found = Sessions(TOKENS, LOCAL)
    cookie = found.log_in("secret")
    sent = Headers({"host": "ke.example:8765", "cookie": f"{others}; {Sessions.cookie_name('ke.example:8765')}={cookie}"})
    assert found.principal(sent) == ANN


def test_a_session_ends_by_logging_out_and_after_a_time_without_use() -> None:
    """A browser that is left open is not a token that is left lying about."""
    clock = Clock()
    found = Sessions(TOKENS, LOCAL, clock=clock)
    one, other = found.log_in("secret"), found.log_in("secret")
    found.log_out(one)
    assert found.principal(headers(one)) == NOBODY
    clock.now = IDLE_SECONDS - 1
    assert found.principal(headers(other)) == ANN
    clock.now += IDLE_SECONDS
    assert found.principal(headers(other)) == ANN
    clock.now += IDLE_SECONDS + 1
    assert found.principal(headers(other)) == NOBODY


def test_there_are_at_most_so_many_and_the_least_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What anybody can make others keep is bounded, and takes no session of others; a token that opens no page opens none."""
    monkeypatch.setattr(sessions, "_MOST", 2)
    found = Sessions(TOKENS, LOCAL)
    first, second = found.log_in("secret"), found.log_in("secret")
    assert found.principal(headers(first)) == ANN
    third = found.log_in("secret")
    assert [found.principal(headers(one)) for one in (first, second, third)] == [ANN, NOBODY, ANN]
    with pytest.raises(Forbidden, match="opens no page"):
        found.log_in("chats")


def test_servers_on_two_ports_of_a_host_do_not_end_each_others_sessions() -> None:
    """Browsers share cookies among ports."""
    assert Sessions.cookie_name("localhost:1") != Sessions.cookie_name("localhost:2")
    found = Sessions(TOKENS, LOCAL)
    cookie = found.log_in("secret")
    assert found.principal(Headers({"host": "ke.example:9", "cookie": f"{Sessions.cookie_name('ke.example:8')}={cookie}"})) == NOBODY


def test_a_mark_fits_its_session_alone_and_this_process_alone() -> None:
    """Issue 8, §3: safe against forms of other sites."""
    found = Sessions(TOKENS, LOCAL)
    one, other = found.log_in("secret"), found.log_in("secret")
    assert found.fits(found.mark(one, ANN), one, ANN)
    assert not found.fits(found.mark(one, ANN), other, ANN)
    assert not found.fits("", one, ANN)
    for changed in (dataclasses.replace(ANN, tenant="bolt"), dataclasses.replace(ANN, name="zoe")):
        assert not found.fits(found.mark(one, ANN), one, changed)
    assert not found.fits("é" * 64, one, ANN)
    assert not Sessions(TOKENS, LOCAL).fits(found.mark(one, ANN), one, ANN)


def test_a_message_waits_for_the_next_page_and_is_told_once() -> None:
    """A reload repeats nothing."""
    found = Sessions(TOKENS, LOCAL)
    one, other = found.log_in("secret"), found.log_in("secret")
    found.tell(one, "done")
    found.tell("nobody's", "lost")
    assert found.told(other) == []
    assert found.told(one) == ["done"]
    assert found.told(one) == []
    for number in range(20):
        found.tell(one, str(number))
    assert found.told(one) == ["15", "16", "17", "18", "19"]


def test_without_tokens_whoever_comes_is_the_local_user_with_a_mark_all_the_same() -> None:
    """Design §3: loopback without a token file; a page of another site can still not send its forms."""
    found = Sessions(None, LOCAL)
    assert found.principal(Headers({"host": "localhost"})) == LOCAL
    assert not found.is_guarded
    assert found.fits(found.mark("", LOCAL), "", LOCAL)
    assert not found.fits("0" * 64, "", LOCAL)
    found.tell("", "done")
    assert found.told("") == ["done"]

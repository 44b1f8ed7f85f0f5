"""A real server of the console on the thimble, with people who may different things, and a real browser."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from ke_tools.facts import Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.testing import thimble_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM: Final = os.environ.get("KE_CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
PEOPLE: Final = {"boss": ["admin"], "ann": ["write", "chat"], "agent": ["propose", "read", "chat"]}  # each one's token is the name
_START_SECONDS: Final = 180


class Site:
    """A server, and where it is."""

    def __init__(self, home: Path, cache: Path, *arguments: str) -> None:
        self.home, self.cache = home, cache
        self._arguments = arguments
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers when this returns."""
        self.home.mkdir(parents=True, exist_ok=True)
        tokens = self.admit(*PEOPLE)
        command = [sys.executable, "-m", "ke_tools", "serve", "--http", f"127.0.0.1:{self._port}", "--home", str(self.home)]
        command += ["--model", str(thimble_path()), "--token-file", str(tokens), *self._arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KE_")} | {"KE_CACHE": str(self.cache)}
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stderr=log)
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            assert self._process.poll() is None, (self.home / "log").read_text("utf-8")
            time.sleep(0.1)
        raise AssertionError((self.home / "log").read_text("utf-8"))

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def admit(self, *names: str) -> Path:
        """Write the token file, for these people only."""
        tokens = self.home / "tokens.toml"
        tokens.write_text("".join(_token(name, PEOPLE[name]) for name in names), "utf-8")
        return tokens

    def ask(self, question: str, who: str = "ann") -> str:
        """What a client of the endpoint is answered."""
        said = httpx.post(
            f"{self.url}/v1/completions",
            headers={"authorization": f"Bearer {who}"},
            json={"model": "thimble", "prompt": question, "max_tokens": 8, "temperature": 0},
            timeout=60,
        )
        text: str = said.raise_for_status().json()["choices"][0]["text"]
        return text.strip()

    def correct(self, *facts: Mapping[str, Any]) -> list[str]:
        """Write corrections into its ledger, as another process does. Gives the ids."""
        with Ledger(self.home / "ledger.db") as ledger:
            return [edit.id for edit in ledger.edit("acme", [Fact(**fact) for fact in facts], actor="ann")]


@contextmanager
def served(home: Path, cache: Path, *arguments: str) -> Iterator[Site]:
    """A server while the block lasts."""
    site = Site(home, cache, *arguments)
    site.start()
    try:
        yield site
    finally:
        site.stop()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a screen."""
    from playwright.sync_api import sync_playwright

    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*quiet, *sandbox])
        try:
            yield browser
        finally:
            browser.close()


def enter(page: Any, site: Site, name: str) -> None:
    """Log in by the page."""
    page.goto(f"{site.url}/console/login")
    page.get_by_label("Token").fill(name)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{site.url}/")


def _token(name: str, scopes: list[str]) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\ntenant = "acme"\nscopes = {scopes}\n\n'

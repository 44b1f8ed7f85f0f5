"""One browser for all tests, and a server for each file of them; whatever a page reports as an error fails its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.stage import CHROMIUM, Site, chromium, served


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that is asked here is asked of a real browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium."""
    assert CHROMIUM, "there is no Chromium; `make test-browser` installs one"
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Site]:
    """A server with nothing corrected yet."""
    with served(tmp_path_factory.mktemp("site") / "home", cache) as found:
        yield found


@pytest.fixture
def page_at(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens windows that share nothing; what a page's scripts raise, or its policy forbids, fails the test."""
    opened, faults = [], []

    def open_one(width: int = 1200, scheme: str = "light", *, scripts: bool = True) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=scripts)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
        return page

    yield open_one
    for context in opened:
        context.close()
    assert faults == []

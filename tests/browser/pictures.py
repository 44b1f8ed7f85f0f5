"""``python -m tests.browser.pictures FOLDER``: a picture of each page of the console at two widths, wide in light and narrow in dark."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from ke_tools.config import Settings
from tests.browser.pages import PAGES, furnish
from tests.browser.stage import Site, chromium, enter, served

WIDTHS: Final = {"wide": (1100, "light"), "narrow": (380, "dark")}
_QUESTION: Final = "The capital of Spain is"


def draw(folder: Path) -> None:
    """Draw them, on the thimble, with a correction asked for and verified, and one promoted."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, served(Path(home) / "home", Settings.load().cache) as site, chromium() as browser:
        furnish(site)
        for kind, (width, scheme) in WIDTHS.items():
            page = browser.new_context(viewport={"width": width, "height": 760}, color_scheme=scheme).new_page()
            enter(page, site, "ann")
            if kind == "wide":
                _verify_and_promote(page, site)
            for name, where in PAGES.items():
                page.goto(site.url + where(site), wait_until="networkidle")
                if name == "ask":
                    page.get_by_label("Question or beginning").fill(_QUESTION)
                    page.get_by_role("button", name="Ask").click()
                    page.get_by_text("Without corrections").wait_for()
                page.screenshot(path=folder / f"{name}-{kind}.png", full_page=True, animations="disabled")


def _verify_and_promote(page: Any, site: Site) -> None:
    page.goto(site.url + PAGES["edit"](site))
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("Says it, as worded").wait_for()
    page.goto(f"{site.url}/console/edits")
    page.get_by_role("row", name="India").get_by_role("checkbox").check()
    page.get_by_role("button", name="Promote the chosen").click()
    page.get_by_text("completed").first.wait_for(timeout=600_000)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))

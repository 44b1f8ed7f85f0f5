"""The texts that enter a model's prompt, as files.

A template is rendered by :func:`render`. Stored fields pass through the ``quoted`` filter, which puts them on one line
between quotation marks; a field cannot open a line of its own, so it cannot pose as anything but a quoted fact.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["quoted", "render"]


def quoted(text: str) -> str:
    """One line between double quotation marks; inner ones become single."""
    return '"' + " ".join(text.split()).replace('"', "'") + '"'


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)  # noqa: S701  plain text, not HTML
    environment.filters["quoted"] = quoted
    return environment.from_string(resources.files(__name__).joinpath(f"{name}.jinja").read_text("utf-8"))


def render(name: str, **values: object) -> str:
    """Render the template ``name``; a placeholder without a value is an error."""
    return _template(name).render(**values)

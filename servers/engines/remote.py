"""What an endpoint needs of an engine whose model another server runs, so that requests can be passed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ke_tools.models.engine import Engine

if TYPE_CHECKING:
    import httpx

__all__ = ["Remote"]


class Remote(Engine, Protocol):
    """An engine that asks one server, or several that serve the same."""

    @property
    def address(self) -> str:
        """Where, to tell people."""

    def served_as(self, adapter: str) -> str:
        """The name that the servers know the model by, with an adapter.

        Raises:
            Unsupported: they have none of that name.
        """

    def is_adapter(self, model: str) -> bool:
        """Whether a name is that of an adapter of the user's own on the model; may ask the servers."""

    def is_same(self, model: str) -> bool:
        """Whether the servers answer by the model under this name, too; asks them.

        Raises:
            ModelUnavailable: none answers.
        """

    def is_ours(self, model: str) -> bool:
        """Whether a name is one that only we may ask for, since what answers under it is some tenant's."""

    def cards(self) -> list[Mapping[str, Any]]:
        """What the servers list as their models."""

    def new_client(self) -> httpx.AsyncClient:
        """What connections of one event loop are kept in."""

    async def send(self, client: httpx.AsyncClient, method: str, path: str, *, adapter: str = "", **content: Any) -> httpx.Response:
        """Pass something on; gives the answer with its body unread, whatever its status, for the caller to close.

        Args:
            client: one of :meth:`new_client`.
            method: of HTTP.
            path: with a slash in front; escaped.
            adapter: that the request asks for by a name of :meth:`served_as`.
            content: ``headers``, with names in lower case, and the body as ``content``.

        Raises:
            ModelUnavailable: nobody answers.
        """

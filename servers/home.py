"""An opened home: its ledger, what stands on that, and the model; what answers, verifies and writes has them from here.

A ledger that could not be opened leaves the model alone, which answers without corrections.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from ke_tools.errors import KeToolsError, LedgerDamaged
from ke_tools.memory.scope import Scope
from ke_tools.servers.damage import Damage
from ke_tools.servers.expiring import Expiring
from ke_tools.servers.fired import Fired
from ke_tools.servers.forgetting import Forgetting
from ke_tools.servers.principal import Principal
from ke_tools.servers.promotions import Promotions
from ke_tools.servers.stating import Statements

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.errors import ReadOnly, ResourceExhausted
    from ke_tools.memory.ledger import Ledger
    from ke_tools.servers.slot import ModelSlot

__all__ = ["Home"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Home:
    """The parts of one home, joined. Thread safe."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger | KeToolsError,
        models: ModelSlot,
        *,
        model_id: str,
        unwritable: ReadOnly | ResourceExhausted | None = None,
    ) -> None:
        """Join the parts.

        A ``ledger`` that could not be opened is the error itself, and the base model answers; ``unwritable`` is why one that was to
        be written is open for reading only.
        """
        self.settings = settings
        self.models = models
        self._model_id = model_id
        self.unwritable = unwritable
        self.damage = Damage()
        self._ledger = ledger
        self._scope = None if isinstance(ledger, KeToolsError) else Scope(ledger, alpha=settings.alpha, cache=settings.cache)
        self._promotions = None if isinstance(ledger, KeToolsError) else Promotions(settings, ledger)
        self._forgetting = Forgetting(settings.home, self._scope) if self._scope else None
        self._statements = Statements(self._scope, cache=settings.cache) if self._scope else None
        self.fired = Fired(None if isinstance(ledger, KeToolsError) else ledger)
        self.expiring = Expiring(None if isinstance(ledger, KeToolsError) else ledger)
        self.expiring.arm()

    @property
    def model_id(self) -> str:
        """The name under which the model is served; one that another server runs has its own as soon as that has told it."""
        engine = self.models.peek()
        return engine.model_id if engine else self._model_id

    @property
    def local(self) -> Principal:
        """Who asks without a token: the user of this machine."""
        return Principal(tenant=self.settings.tenant)

    @property
    def ledger(self) -> Ledger:
        """The ledger.

        Raises:
            KeToolsError: it could not be opened; the message says why.
        """
        if isinstance(self._ledger, KeToolsError):
            raise self._ledger.with_traceback(None)  # or it would grow with every raise
        return self._ledger

    @property
    def has_ledger(self) -> bool:
        """Whether the ledger could be opened."""
        return not isinstance(self._ledger, KeToolsError)

    @property
    def scope(self) -> Scope:
        """What decides which edits a question is about.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        return self._of_ledger(self._scope)

    @property
    def forgetting(self) -> Forgetting:
        """What keeps back what is forgotten.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        return self._of_ledger(self._forgetting)

    @property
    def statements(self) -> Statements:
        """What splits sentences into edits.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        return self._of_ledger(self._statements)

    @property
    def trouble(self) -> str:
        """What needs a person although questions are answered from the corrections; empty where nothing does."""
        unserved = self._promotions.trouble if self._promotions else ""
        return self.damage.told or unserved or str(self.unwritable or "")

    @property
    def revision(self) -> int:
        """The ledger's sequence number; 0 where there is none."""
        try:
            return self.ledger.head()
        except KeToolsError:
            return 0

    @property
    def promotions(self) -> Promotions:
        """The jobs and releases.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        return self._of_ledger(self._promotions)

    def _of_ledger(self, part: T | None) -> T:
        if part is None:
            raise self._ledger.with_traceback(None) if isinstance(self._ledger, KeToolsError) else LedgerDamaged("there is no ledger.")
        return part

    def warm(self) -> None:
        """Load what the scope needs before the first question; one that cannot be loaded is told by the first that needs it."""
        if self._scope is not None:
            try:
                self._scope.warm()
            except Exception as error:
                log.warning("no question can be found to be about an edit: %s", error, exc_info=not isinstance(error, KeToolsError))

    def close(self) -> None:
        """Free the model and the ledger."""
        self.models.close()
        self.expiring.close()
        if not isinstance(self._ledger, KeToolsError):
            self.fired.flush()
            self._ledger.close()

"""What speaks for or against a proposal: the answers to its prompt before and after, and what its verification would find.

Asked is through the serving path of a ledger in which the proposal acts (:mod:`ke_tools.memory.supposed`); nothing is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ke_tools.memory.supposed import Supposed
from ke_tools.models.engine import Request, one_turn
from ke_tools.servers import approvals, verifying
from ke_tools.servers.answering import Answering
from ke_tools.servers.home import Home
from ke_tools.servers.measuring import BaseAnswers
from ke_tools.servers.slot import ModelSlot

if TYPE_CHECKING:
    from ke_tools.memory.proposals import Outlook
    from ke_tools.models.engine import Engine
    from ke_tools.servers.measuring import Tell
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["evidence"]

_ANSWER_TOKENS: Final = 24


def evidence(
    service: Service,
    who: Principal,
    edit_id: str,
    *,
    verify: bool = False,
    wait_seconds: float = 25.0,
    tell: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Show a proposal with its evidence; blocks, and waits for the model.

    Of one that cannot be approved only the present answers are shown. ``verify`` also measures the quick suite, as if it were approved.

    Raises:
        NotFound, WrongState: there is no such proposal, or it does not wait any more.
        ModelLoading, ModelUnavailable: there is nobody to ask.
    """
    who.require("read")
    outlook = service.ledger.proposals.outlook(who.tenant, edit_id, over_protection=who.may("admin"))
    engine = service.models.engine(wait_seconds)
    fact = outlook.edit.fact
    request = one_turn(fact.prompt, engine, _ANSWER_TOKENS) if fact.is_question else Request(prompt=fact.prompt, max_tokens=_ANSWER_TOKENS)
    supposed = _supposed(service, outlook, engine)
    ways = {"base": None, "now": service.answering} | ({} if outlook.obstacle else {"approved": supposed})
    answers = [_answer(view, way, who, request, engine) for view, way in ways.items()]
    card = _scorecard(supposed, who, edit_id, engine, tell) if verify and not outlook.obstacle else {"scorecard_text": "", "passed": False}
    shown = approvals.told(outlook)
    return {
        "summary": _summary(outlook, {str(answer["view"]): str(answer["text"]) for answer in answers}),
        "proposals": [shown],
        "proposals_text": approvals.in_words(shown),
        "answers": answers,
        "verified": bool(card["scorecard_text"]),
        **card,
        "revision": service.revision,
        "model": service.model_id,
    }


def _supposed(service: Service, outlook: Outlook, engine: Engine) -> Answering:
    """What answers with the proposal approved; it is never closed, as all that it holds is another's."""
    ledger = Supposed(service.ledger, outlook)
    return Answering(Home(service.settings, ledger, ModelSlot(lambda _say: engine), model_id=service.model_id))


def _answer(view: str, way: Answering | None, who: Principal, request: Request, engine: Engine) -> dict[str, Any]:
    if way is None:
        return {"view": view, "text": engine.generate([request])[0].text.strip(), "route": "base", "used_edits": []}
    [(routed, made)] = way.generated(who, [way.path(who, engine)(request)], engine)
    used = [hit.edit.id for hit in routed.hits]
    return {"view": view, "text": made.text.strip(), "route": routed.route, "used_edits": used}


def _scorecard(supposed: Answering, who: Principal, edit_id: str, engine: Engine, tell: Tell) -> dict[str, Any]:
    found = verifying.measure(supposed, who, engine, verifying.Wanted(edit_ids=(edit_id,)), base=BaseAnswers(), tell=tell)
    return {"scorecard_text": found["scorecard_text"], "passed": found["passed"]}


def _summary(outlook: Outlook, texts: dict[str, str]) -> str:
    told = f"{outlook.edit.id} waits. Answer now: {texts['now']!r}"
    if "approved" not in texts:
        return f"{told}. It cannot be approved: {outlook.obstacle}"
    return f"{told}, if approved: {texts['approved']!r}."

"""The caller's own probes: read, checked, and given to the edit that they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.facts import LONGEST, Edit, Probe
from ke_tools.verify.asking import unchanged, wanted

__all__ = ["given"]


def given(probe: Mapping[str, Any], edits: Sequence[Edit]) -> Probe:
    """Read a caller's probe: ``{"prompt", "expect": "target" | "unchanged"}``, with ``edit_id`` where it is not clear whose it is.

    A question is asked in chat, anything else is completed.

    Raises:
        InvalidInput: a field is missing or unknown, or nobody can tell which edit's target is expected.
    """
    prompt, expect = probe.get("prompt"), probe.get("expect", "target")
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > LONGEST["prompt"]:
        raise InvalidInput(f"a probe's prompt is {prompt!r:.80}.", f"Give a text of 1 to {LONGEST['prompt']} characters.")
    if expect not in {"target", "unchanged"}:
        raise InvalidInput(f"a probe expects {expect!r}.", "Use 'target' or 'unchanged'.")
    edit, is_named = _meant(prompt, str(probe.get("edit_id") or ""), expect, edits)
    asked = (prompt, prompt.rstrip().endswith("?"))
    if expect == "target":
        return wanted(edit, "generalisation", asked, "caller")
    return unchanged(edit, "locality_same_subject" if is_named else "locality_other_subject", asked, "caller")


def _meant(prompt: str, edit_id: str, expect: str, edits: Sequence[Edit]) -> tuple[Edit, bool]:
    """The edit that a caller's probe is about, and whether the prompt names its subject."""
    named = [edit for edit in edits if atlas.mask(prompt, [edit.fact.subject, *edit.fact.aliases]) != prompt]
    chosen = [edit for edit in edits if edit.id == edit_id] if edit_id else named or (list(edits) if expect == "unchanged" else edits[:2])
    if not chosen or (expect == "target" and len(chosen) > 1):
        raise InvalidInput(f"it is not clear which edit the probe {prompt!r:.80} is about.", "Give its edit_id, one of those verified.")
    return chosen[0], chosen[0] in named

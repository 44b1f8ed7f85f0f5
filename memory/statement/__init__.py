"""From a sentence to the parts of an edit: whom it is about, what is asked of it, and what the answer is from now on.

Three readings, each in a file: the wordings that training may use (:mod:`~ke_tools.memory.statement.wordings`), the sentence's own build
(:mod:`~ke_tools.memory.statement.splitting`), and, where these leave a doubt, a model that may choose among spans of the sentence
(:mod:`~ke_tools.memory.statement.aided`). What stays in doubt is a question back. A plain "no, it is …" about the answer before is read by
:mod:`~ke_tools.memory.statement.remarks`.
"""

from __future__ import annotations

from ke_tools.memory.statement.parts import Doubt, Split
from ke_tools.memory.statement.remarks import corrected
from ke_tools.memory.statement.splitting import split

__all__ = ["Doubt", "Split", "corrected", "split"]

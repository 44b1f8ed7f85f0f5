"""What is measured of an edit, and how it is called.

The dimensions are those of the surveys: reliability, generalisation, locality, portability and efficiency of Yao et al. 2023 (Editing
Large Language Models: Problems, Methods, and Opportunities), with its localities "other relations", "distracting neighbours" and "other
tasks"; forgetfulness and fluency of Zhang et al. 2024 (A Comprehensive Study of Knowledge Editing for Large Language Models, KnowEdit).
There answers are compared token by token behind the right prefix; here they are generated to their natural stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["DIMENSIONS", "EARLIER", "FLUENCY", "FURTHER", "LABELS", "WITHHELD"]

DIMENSIONS: Final = ("reliability", "generalisation", "locality_same_subject", "locality_other_subject")  # of the suite ``quick``
FURTHER: Final = (  # of the suite ``full`` beside them
    "forgetfulness",
    "distracting_prefix",
    "other_tasks",
    "portability_alias",
    "portability_reversed",
    "portability_hop",
    "fluency",
)
FLUENCY: Final = "fluency"
WITHHELD: Final = "withheld"  # what an edit that forgets does not give away, in any suite
EARLIER: Final = "earlier"  # reliability of what was promoted before, beside a candidate

LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "reliability": "reliability",
        "generalisation": "generalisation",
        "locality_same_subject": "same subject",
        "locality_other_subject": "other subjects",
        "forgetfulness": "forgetfulness",
        "distracting_prefix": "distracting prefix",
        "other_tasks": "other tasks",
        "portability_alias": "under an alias",
        "portability_reversed": "reversed",
        "portability_hop": "one hop",
        FLUENCY: "fluency",
        WITHHELD: "withheld",
        EARLIER: "edits promoted earlier",
    }
)

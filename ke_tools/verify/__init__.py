"""Proof that a correction took and that nothing else moved: matching, rates, probes, scorecard.

Every metric of the project lives here, each rate with its standard error; the ``verify`` tool, gates and benches import it.
"""

from __future__ import annotations

from ke_tools.verify.known import accepted, atlas_hash, knows, remembered
from ke_tools.verify.matching import asserts, bytes_kept, first_sentence, mentions, same_answer, short_answer, starts_with
from ke_tools.verify.probes import DIMENSIONS, Suite, fill, given, neighbour_candidates, probes_for
from ke_tools.verify.rates import NOT_MEASURED, Rate, clopper_pearson, cluster_of, rate, wilson
from ke_tools.verify.run import Ask, judge, verify
from ke_tools.verify.scorecard import Check, Outcome, Rates, Scorecard

__all__ = [
    "DIMENSIONS",
    "NOT_MEASURED",
    "Ask",
    "Check",
    "Outcome",
    "Rate",
    "Rates",
    "Scorecard",
    "Suite",
    "accepted",
    "asserts",
    "atlas_hash",
    "bytes_kept",
    "clopper_pearson",
    "cluster_of",
    "fill",
    "first_sentence",
    "given",
    "judge",
    "knows",
    "mentions",
    "neighbour_candidates",
    "probes_for",
    "rate",
    "remembered",
    "same_answer",
    "short_answer",
    "starts_with",
    "verify",
    "wilson",
]

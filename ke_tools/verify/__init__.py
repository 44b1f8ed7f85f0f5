"""Proof that a correction took and that nothing else moved: matching, rates, probes, scorecard, gate.

Every metric of the project lives here, each rate with its standard error; the ``verify`` tool, gates and benches import it.
"""

from __future__ import annotations

from ke_tools.verify.about import accepted
from ke_tools.verify.asking import fill
from ke_tools.verify.callers import given
from ke_tools.verify.card import drawn
from ke_tools.verify.dimensions import DIMENSIONS, EARLIER, FURTHER, LABELS, WITHHELD
from ke_tools.verify.efficiency import Efficiency
from ke_tools.verify.fluency import FLUENCY_TOKENS, entropy
from ke_tools.verify.forgotten import ASKINGS, Keeper, askings
from ke_tools.verify.gate import Finding, Limit, Verdict, decide, look_until_clear
from ke_tools.verify.kept import neighbour_candidates
from ke_tools.verify.known import atlas_hash, knows, remembered
from ke_tools.verify.likelihood import with_likelihoods
from ke_tools.verify.matching import asserts, bytes_kept, first_sentence, mentions, names_said, same_answer, short_answer, starts_with
from ke_tools.verify.perplexity import plain_perplexity
from ke_tools.verify.policy import Policy
from ke_tools.verify.probes import Suite, candidates, probes_for
from ke_tools.verify.rates import NOT_MEASURED, Rate, clopper_pearson, cluster_of, rate, wilson
from ke_tools.verify.run import Ask, answer, judge, outcomes_of, summarise, verify
from ke_tools.verify.scorecard import Check, Likelihood, Outcome, Rates, Scorecard
from ke_tools.verify.supply import Supply

__all__ = [
    "ASKINGS",
    "DIMENSIONS",
    "EARLIER",
    "FLUENCY_TOKENS",
    "FURTHER",
    "LABELS",
    "NOT_MEASURED",
    "WITHHELD",
    "Ask",
    "Check",
    "Efficiency",
    "Finding",
    "Keeper",
    "Likelihood",
    "Limit",
    "Outcome",
    "Policy",
    "Rate",
    "Rates",
    "Scorecard",
    "Suite",
    "Supply",
    "Verdict",
    "accepted",
    "answer",
    "askings",
    "asserts",
    "atlas_hash",
    "bytes_kept",
    "candidates",
    "clopper_pearson",
    "cluster_of",
    "decide",
    "drawn",
    "entropy",
    "fill",
    "first_sentence",
    "given",
    "judge",
    "knows",
    "look_until_clear",
    "mentions",
    "names_said",
    "neighbour_candidates",
    "outcomes_of",
    "plain_perplexity",
    "probes_for",
    "rate",
    "remembered",
    "same_answer",
    "short_answer",
    "starts_with",
    "summarise",
    "verify",
    "wilson",
    "with_likelihoods",
]

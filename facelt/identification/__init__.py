"""Identification among distractors, verification, open-set identification, and pseudo-shots of probes."""

from facelt.identification.all_pair_errors import PairErrors, pair_errors
from facelt.identification.all_pair_histograms import PairHistograms, pair_histograms
from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreHistograms
from facelt.identification.open_set import OpenSetSearches, Searches, open_set_searches
from facelt.identification.open_set_rates import FPIRS, OpenSetPoint, OpenSetRates, lowest_threshold, open_set_rates
from facelt.identification.rank import MatePairs, hit_ranks, mate_pairs, probe_hits
from facelt.identification.shots import pseudo_shots
from facelt.identification.verification import FARS, Verification, verification_rates

__all__ = [
    "FARS",
    "FPIRS",
    "DetCurve",
    "MatePairs",
    "OpenSetPoint",
    "OpenSetRates",
    "OpenSetSearches",
    "OperatingPoint",
    "PairErrors",
    "PairHistograms",
    "ScoreHistograms",
    "Searches",
    "Verification",
    "hit_ranks",
    "lowest_threshold",
    "mate_pairs",
    "open_set_rates",
    "open_set_searches",
    "pair_errors",
    "pair_histograms",
    "probe_hits",
    "pseudo_shots",
    "verification_rates",
]

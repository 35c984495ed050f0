"""Identification among distractors, verification, open-set identification, and pseudo-shots of probes."""

from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreHistograms
from facelt.identification.pair_errors import PairErrors, count_pair_errors
from facelt.identification.pair_histograms import PairHistograms, count_pair_histograms
from facelt.identification.rank import MatePairs, hit_ranks, mate_pairs, probe_hits
from facelt.identification.shots import pseudo_shots
from facelt.identification.verification import FARS, Verification, verification_rates

__all__ = [
    "FARS",
    "DetCurve",
    "MatePairs",
    "OperatingPoint",
    "PairErrors",
    "PairHistograms",
    "ScoreHistograms",
    "Verification",
    "count_pair_errors",
    "count_pair_histograms",
    "hit_ranks",
    "mate_pairs",
    "probe_hits",
    "pseudo_shots",
    "verification_rates",
]

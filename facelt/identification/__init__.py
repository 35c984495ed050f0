"""Identification among distractors, verification, open-set identification, and pseudo-shots of probes."""

from facelt.identification.all_pair_errors import PairErrors, pair_errors
from facelt.identification.all_pair_histograms import PairHistograms, pair_histograms
from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreHistograms
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
    "hit_ranks",
    "mate_pairs",
    "pair_errors",
    "pair_histograms",
    "probe_hits",
    "pseudo_shots",
    "verification_rates",
]

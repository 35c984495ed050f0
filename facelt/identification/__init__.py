"""Identification among distractors, verification, open-set identification, and pseudo-shots of probes."""

from facelt.identification.error_rates import DetCurve, OperatingPoint, ScoreHistograms
from facelt.identification.rank import MatePairs, hit_ranks, mate_pairs, probe_hits
from facelt.identification.shots import pseudo_shots
from facelt.identification.verification import FARS, Verification, verification_rates

__all__ = [
    "FARS",
    "DetCurve",
    "MatePairs",
    "OperatingPoint",
    "ScoreHistograms",
    "Verification",
    "hit_ranks",
    "mate_pairs",
    "probe_hits",
    "pseudo_shots",
    "verification_rates",
]

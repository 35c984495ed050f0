"""Identification: rank-k among distractors, and pseudo-shots of probes."""

from facelt.identification.rank import MatePairs, hit_ranks, mate_pairs, probe_hits
from facelt.identification.shots import pseudo_shots

__all__ = ["MatePairs", "hit_ranks", "mate_pairs", "probe_hits", "pseudo_shots"]

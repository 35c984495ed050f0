"""The coverage of 95% intervals as measured, to be printed beside a group's figures.

Made by `python benchmarks/coverage.py --draws 2000 --replicates 400 --seed 0`; docs/auditing.md has the same figures.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

# Kind of interval (`benchmarks.interval_coverage.KINDS`) -> identities a group -> mean over the worlds, and the lowest.
MEASURED_COVERAGE = MappingProxyType(
    {
        "search": {7: (0.9522, 0.9165), 14: (0.9404, 0.903), 30: (0.9487, 0.9385), 80: (0.9508, 0.9365)},
        "search_difference": {7: (0.9801, 0.964), 14: (0.968, 0.944), 30: (0.9646, 0.958), 80: (0.9638, 0.952)},
        "paired_difference": {7: (0.9772, 0.969), 14: (0.9646, 0.9515), 30: (0.9632, 0.951), 80: (0.9597, 0.9525)},
        "gap_bootstrap": {7: (0.9584, 0.9295), 14: (0.9438, 0.905), 30: (0.9475, 0.908), 80: (0.9534, 0.9245)},
        "search_percentile": {7: (0.8022, 0.747), 14: (0.8472, 0.7845), 30: (0.8942, 0.854), 80: (0.9129, 0.855)},
        "pair": {7: (0.948, 0.9035), 14: (0.9434, 0.913), 30: (0.9429, 0.9265), 80: (0.946, 0.938)},
        "pair_across": {7: (0.9435, 0.9095), 14: (0.95, 0.9295), 30: (0.9511, 0.939), 80: (0.9544, 0.948)},
        "pair_difference": {7: (0.9745, 0.952), 14: (0.9646, 0.941), 30: (0.9612, 0.951), 80: (0.9599, 0.9555)},
        "pair_percentile": {7: (0.8506, 0.7555), 14: (0.8975, 0.843), 30: (0.9139, 0.8905), 80: (0.9249, 0.914)},
    }
)


@dataclass(frozen=True)
class IntervalCoverage:
    """The share of 95% intervals that covered the truth: the mean over the made-up worlds, and the lowest of them."""

    mean: float
    lowest: float


def measured_coverage(kind: str, identities: int) -> IntervalCoverage | None:
    """The coverage of an interval of a kind with so many identities in the (smaller) group.

    Between the numbers that were measured, on a line over 1 / sqrt(identities); beyond the largest, as there. None for
    fewer than the smallest, of which nothing was measured. Raises ValueError on an unknown kind.
    """
    if kind not in MEASURED_COVERAGE:
        raise ValueError(f"coverage of {kind!r} was not measured: choose one of {', '.join(MEASURED_COVERAGE)}")
    row = MEASURED_COVERAGE[kind]
    known = sorted(row, reverse=True)
    if identities < known[-1]:
        return None
    place = 1 / np.sqrt(np.array([*known, max(identities, 1)], dtype=np.float64))
    values = np.array([row[n] for n in known]).T
    return IntervalCoverage(*(float(np.interp(place[-1], place[:-1], value)) for value in values))

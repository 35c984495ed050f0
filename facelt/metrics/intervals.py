"""How sure a rate over pairs is, when the pairs of one identity are not independent.

I identities, F figures, R replicates.
"""

import numpy as np


def bootstrap_rates(
    hit_FI: np.ndarray, pair_FI: np.ndarray, *, replicates: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of F pair rates by resampling identities with replacement: low [F] and high [F].

    `hit_FI[f, i]` of the `pair_FI[f, i]` pairs of identity i count for figure f; all figures share the same replicates,
    so that one draw is one imagined set of people. A replicate in which a figure has no pair says nothing about it and
    is left out. NaN where fewer than two identities have pairs: one person's data cannot tell how people differ.

    Cluster bootstrap with percentile limits (Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8
    and 5.3). Raises ValueError on a level outside (0, 1), no replicate, or unequal shapes.
    """
    hit_FI, pair_FI = np.atleast_2d(hit_FI).astype(np.float64), np.atleast_2d(pair_FI).astype(np.float64)
    if hit_FI.shape != pair_FI.shape:
        raise ValueError(f"hits are {list(hit_FI.shape)} and pairs {list(pair_FI.shape)}")
    if not 0 < level < 1 or replicates < 1:
        raise ValueError(f"level {level} must lie between 0 and 1 and replicates {replicates} be positive")
    low_F, high_F = np.full((2, len(hit_FI)), np.nan)
    known_F = (pair_FI > 0).sum(axis=1) >= 2
    if not known_F.any():
        return low_F, high_F
    identities = pair_FI.shape[1]
    drawn_RI = np.random.default_rng(seed).multinomial(identities, np.full(identities, 1 / identities), size=replicates)
    drawn_IR = drawn_RI.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        rate_FR = (hit_FI[known_F] @ drawn_IR) / (pair_FI[known_F] @ drawn_IR)
    tail = (1 - level) / 2
    low_F[known_F], high_F[known_F] = np.nanquantile(rate_FR, [tail, 1 - tail], axis=1)
    return low_F, high_F

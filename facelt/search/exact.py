"""Inner products whose ties can be trusted. M pairs, D feature.

A matrix product adds in an order that depends on where a row lies, so two equal rows may score differently in the last
bit. Here each score is one float64 sum in one order: equal rows score equally, wherever they are and whichever side.
"""

import numpy as np

CHUNK_VALUES = 1 << 21


def inner_products(left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    """left_ND[left_M[i]] . right_ND[right_M[i]] for every i, float64 [M]; a few MB of memory whatever M is."""
    score_M = np.empty(len(left_M), dtype=np.float64)
    step = max(1, CHUNK_VALUES // max(1, left_ND.shape[1]))
    for start in range(0, len(left_M), step):
        part = slice(start, start + step)
        left_BD = left_ND[left_M[part]].astype(np.float64)
        left_BD *= right_ND[right_M[part]]
        score_M[part] = left_BD.sum(axis=1)
    return score_M


def error_bound(dimension: int) -> float:
    """How far a float32 inner product of two unit vectors can be from the exact one, in any order of summation.

    n * u / (1 - n * u) with unit roundoff u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    product = (dimension + 1) * 2.0**-24
    return product / (1.0 - product)

"""Similarities whose ties can be trusted. N rows, M pairs, D feature.

A matrix product adds in an order that depends on where a row lies, so two equal rows may score differently in the last
bit. Here each score is one float64 sum in one order: equal rows score equally, wherever they are and whichever side.
"""

import numpy as np

# Small enough for a core's cache.
CHUNK_VALUES = 1 << 16


def similarities(
    left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray, *, cosine: bool
) -> np.ndarray:
    """The inner product or cosine of left_ND[left_M[i]] and right_ND[right_M[i]] for every i, float64 [M].

    The cosine is of the rows as float64: a unit vector stored as float16 has lost up to 1e-3 of its length. A few MB of
    memory whatever M is. Rows must be finite and, for cosines, not zero.
    """
    score_M = _inner_products(left_ND, left_M, right_ND, right_M)
    if cosine:
        score_M /= np.sqrt(_squares(left_ND, left_M) * _squares(right_ND, right_M))
    return score_M


def _inner_products(left_ND: np.ndarray, left_M: np.ndarray, right_ND: np.ndarray, right_M: np.ndarray) -> np.ndarray:
    score_M = np.empty(len(left_M), dtype=np.float64)
    step = max(1, CHUNK_VALUES // max(1, left_ND.shape[1]))
    for start in range(0, len(left_M), step):
        part = slice(start, start + step)
        product_BD = left_ND[left_M[part]].astype(np.float64)
        product_BD *= right_ND[right_M[part]]
        score_M[part] = product_BD.sum(axis=1)
    return score_M


def _squares(rows_ND: np.ndarray, row_M: np.ndarray) -> np.ndarray:
    used, place_M = np.unique(row_M, return_inverse=True)
    return _inner_products(rows_ND, used, rows_ND, used)[place_M]


def error_bound(dimension: int) -> float:
    """How far a float32 inner product of two unit vectors can be from the exact one, in any order of summation.

    n * u / (1 - n * u) with unit roundoff u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    product = (dimension + 1) * 2.0**-24
    return product / (1.0 - product)


def cosine_bound(dimension: int) -> float:
    """The same for the cosine of rows brought to length one in float32: their lengths and quotients round as well."""
    return 2 * error_bound(dimension + 4)

"""Duplicate embeddings: rows equal bit for bit, within one set or between probes and distractors.

Rows are compared by a 64-bit hash, and those with equal hashes by their values: each row is read once, then sorted.
P query rows, G database rows, N rows of one set, M matches, W words of a row, D feature.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from facelt.errors import UserError

_SCAN_ROWS = 512
_SCAN_THREADS = 4
# Pairs that a note names.
_MAX_NAMES = 3


class RowSource(Protocol):
    """Rows, float16 or float32, indexed by an array of their positions."""

    def __getitem__(self, row_N: np.ndarray, /) -> np.ndarray: ...


def scan_rows(value_ND: RowSource, row_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for the rows `row_N`, whether each is finite and nonzero (bool [N] each), and its hash (uint64 [N]).

    Reads the rows in the order of the array, with a few threads.
    """
    rows = len(row_N)
    finite_N, nonzero_N, hash_N = np.empty(rows, bool), np.empty(rows, bool), np.empty(rows, np.uint64)
    order_N = np.argsort(row_N, kind="stable")

    def scan_chunk(start: int) -> None:
        index = order_N[start : start + _SCAN_ROWS]
        finite_N[index], nonzero_N[index], hash_N[index] = _scan_bits(np.ascontiguousarray(value_ND[row_N[index]]))

    with ThreadPoolExecutor(_SCAN_THREADS) as readers:
        # Consumed, so that errors are raised.
        for _ in readers.map(scan_chunk, range(0, rows, _SCAN_ROWS)):
            pass
    return finite_N, nonzero_N, hash_N


def _scan_bits(value_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bits_ND = value_ND.view({2: np.uint16, 4: np.uint32}[value_ND.itemsize])
    # Without the sign, the bits of floats are ordered by magnitude, infinity and NaN last.
    sign = 1 << (8 * value_ND.itemsize - 1)
    greatest_N = (bits_ND & (sign - 1)).max(axis=1, initial=0)
    infinity = np.array(np.inf, dtype=value_ND.dtype).view(bits_ND.dtype)
    words, odd = divmod(value_ND.shape[1] * value_ND.itemsize, 8)
    if odd:
        padded_ND = np.zeros((len(value_ND), (words + 1) * 8 // value_ND.itemsize), dtype=bits_ND.dtype)
        padded_ND[:, : bits_ND.shape[1]] = bits_ND
        bits_ND, words = padded_ND, words + 1
    # Sums of words times odd factors modulo 2^64 (multiply-shift: Dietzfelbinger et al., J. Algorithms, 1997). Products
    # carry upwards only, and floats of few digits differ in the high bits only, so these are first mixed into the low.
    word_NW = bits_ND.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word_NW ^= word_NW >> np.uint64(32)
    factor_W = np.random.default_rng(0).integers(0, 2**63, words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hash_N = np.einsum("nw,w->n", word_NW, factor_W)
    return greatest_N < infinity, greatest_N > 0, hash_N


def find_repeats(hash_N: np.ndarray, value_ND: RowSource, row_N: np.ndarray) -> dict[int, int]:
    """Returns positions whose row equals that of an earlier position, with that position; equal hashes are verified."""
    order_N = np.argsort(hash_N, kind="stable")
    same = np.flatnonzero(hash_N[order_N[1:]] == hash_N[order_N[:-1]])
    repeats: dict[int, int] = {}
    for first, second in zip(order_N[same].tolist(), order_N[same + 1].tolist(), strict=True):
        if np.array_equal(*value_ND[row_N[[first, second]]]):
            repeats[second] = repeats.get(first, first)
    return dict(sorted(repeats.items()))


def find_equal_rows(query_PD: np.ndarray, value_GD: RowSource, hash_G: np.ndarray) -> dict[int, int]:
    """Returns the positions of query rows that equal a database row, with the position of the first such row.

    Queries are converted to the type of the database, whose hashes by `scan_rows` are `hash_G`.
    """
    if not len(hash_G):
        return {}
    with np.errstate(over="ignore"):
        stored_PD = np.ascontiguousarray(query_PD, dtype=value_GD[np.arange(0)].dtype)
    _, _, hash_P = scan_rows(stored_PD, np.arange(len(stored_PD)))
    order_G = np.argsort(hash_G, kind="stable")
    rank_P = np.searchsorted(hash_G, hash_P, sorter=order_G)
    row_P = order_G[np.minimum(rank_P, len(hash_G) - 1)]
    (match_M,) = np.nonzero(hash_G[row_P] == hash_P)
    equal_M = (stored_PD[match_M] == value_GD[row_P[match_M]]).all(axis=1)
    return dict(zip(match_M[equal_M].tolist(), row_P[match_M[equal_M]].tolist(), strict=True))


def duplicate_notes(
    duplicates: Mapping[str, str],
    listed: Collection[str],
    paths: tuple[Path, Path],
    *,
    noise_keys: str,
    allow_duplicates: bool,
) -> list[str]:
    """Returns the report's note on probes that have the embedding of a distractor, by probe with that distractor.

    `paths` are the folders of probes and distractors. `listed` are the probes of pairs on a noise list, which are kept
    if the noise mode has kept them. Raises UserError with the number and the first pair of the others, unless
    `allow_duplicates` is set; `noise_keys` names the settings of the noise lists.
    """
    if not duplicates:
        return []
    unlisted = {probe: distractor for probe, distractor in duplicates.items() if probe not in listed}
    if unlisted and not allow_duplicates:
        raise UserError(
            f"{_duplicates_text(unlisted, paths, 1)}. An image on both sides decides ranks and thresholds: add it to a "
            f"noise list ({noise_keys}), or keep it with --allow-duplicates"
        )
    text = _duplicates_text(duplicates, paths, _MAX_NAMES)
    return [f"{text}. They decide ranks and thresholds; {len(listed):,} of them are on a noise list."]


def _duplicates_text(duplicates: Mapping[str, str], paths: tuple[Path, Path], most: int) -> str:
    pairs = [f"{probe!r} and {distractor!r}" for probe, distractor in list(duplicates.items())[:most]]
    return (
        f"{len(duplicates):,} images of {paths[0]} have the embedding of a distractor of {paths[1]}, bit for bit, such "
        f"as {', '.join(pairs)}"
    )

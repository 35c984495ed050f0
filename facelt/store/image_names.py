"""Image names in bulk: repeated names, and the positions of listed names among those of a store.

Names are compared by the 64-bit hashes that Python keeps with every string, sorted as an array, and those with equal
hashes by their text. A dictionary of a million names takes three times as long, mostly in cache misses.

N names, M listed names.
"""

from collections.abc import Sequence

import numpy as np


def name_hashes(names: Sequence[str]) -> np.ndarray:
    """Returns the hash of each name, int64 [N]; it is that of this process only."""
    return np.fromiter(map(hash, names), dtype=np.int64, count=len(names))


def count_distinct(texts: Sequence[str]) -> int:
    """Returns the number of different texts, by their hashes."""
    hash_N = np.sort(name_hashes(texts))
    return int((hash_N[1:] != hash_N[:-1]).sum()) + (len(hash_N) > 0)


def first_repeated(names: Sequence[str]) -> str | None:
    """Returns the first name that occurred before, None if all are distinct."""
    hash_N = np.sort(name_hashes(names))
    if not (hash_N[1:] == hash_N[:-1]).any():
        return None
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def positions_of(listed: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Returns the position of each listed name among distinct `names`, -1 for one that is not there; int64 [M]."""
    hash_N, hash_M = name_hashes(names), name_hashes(listed)
    order_N, order_M = np.argsort(hash_N), np.argsort(hash_M)
    sorted_N = hash_N[order_N]
    # Sorted queries read the sorted hashes in order.
    rank_M = np.searchsorted(sorted_N, hash_M[order_M])
    position_M = np.full(len(listed), -1, dtype=np.int64)
    (inside_K,) = np.nonzero(rank_M < len(sorted_N))
    matching_K = inside_K[sorted_N[rank_M[inside_K]] == hash_M[order_M[inside_K]]]
    position_M[order_M[matching_K]] = order_N[rank_M[matching_K]]
    is_present_M = position_M >= 0
    # numpy reads a million scattered objects several times faster than an iterator does.
    name_N, listed_M = np.array(names, dtype=object), np.array(listed, dtype=object)
    if (name_N[position_M[is_present_M]] == listed_M[is_present_M]).all():
        return position_M
    # Two different names have one hash.
    position = {name: row for row, name in enumerate(names)}
    return np.array([position.get(name, -1) for name in listed], dtype=np.int64)

"""The one source of chance in sampling: a hash of named numbers.

A hash needs no state, so any position of any epoch can be drawn on its own, by any rank or worker, and a resumed run
draws what the straight run would have drawn. It also gives the same order whatever version of a library is installed.
"""

from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Stream(IntEnum):
    """What a hash decides: equal seeds must not give equal draws for two different questions."""

    INSTANCE_ORDER = 1
    CLASS_ORDER = 2
    IMAGE_ORDER = 3
    DRAW_SEED = 4
    VALIDATION = 5
    CLASS_DRAW = 6
    IMAGE_DRAW = 7
    EVEN_IMAGES = 8
    EVEN_ORDER = 9
    STREAM_SEED = 10


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """Hash integers to uniform uint64, elementwise; the arguments broadcast against each other.

    Each word passes through the finaliser of SplitMix64 (Steele, Lea, Flood 2014, 'Fast splittable pseudorandom number
    generators'). Every step is a bijection, so two calls that differ in their last word alone never collide: sorting by
    the hash of an index has no ties.
    """
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            state = (state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _MIX[0]
            state = (state ^ (state >> np.uint64(27))) * _MIX[1]
            state = state ^ (state >> np.uint64(31))
    return state

"""Training and validation images of one labelled set.

Shapes: N images.
"""

import numpy as np

from facelt.data.hashing import Stream, hash64


def split_train_validation(label_N: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split by images: each goes to validation with probability `fraction`, decided by a hash of (seed, index).

    Every class keeps its image of the highest hash for training, so none is lost and a class with one image stays
    there whole. Returns (train_index, validation_index), int64, ascending, together every index once.

    Raises ValueError for a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must lie in [0, 1), not {fraction}")
    label_N = np.asarray(label_N)
    hash_N = hash64(Stream.VALIDATION, seed, np.arange(len(label_N)))
    in_validation_N = hash_N.astype(np.float64) < fraction * 2.0**64
    order_N = np.lexsort((hash_N, label_N))
    sorted_N = label_N[order_N]
    last_of_class_N = np.append(sorted_N[1:] != sorted_N[:-1], True)[: len(label_N)]
    in_validation_N[order_N[last_of_class_N]] = False
    return np.flatnonzero(~in_validation_N), np.flatnonzero(in_validation_N)

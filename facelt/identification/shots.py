"""How much a training set knows of people it does not hold: the pseudo-shots of probes.

P probes, G training images, D feature.
"""

from collections.abc import Callable

import numpy as np

from facelt.metrics.shots import pseudo_shot_bands
from facelt.search import Rows, count_above


def pseudo_shots(
    probe_PD: np.ndarray, train_GD: Rows, threshold: float, *, advance: Callable[[int], None] | None = None
) -> dict[str, np.ndarray]:
    """For each band (many, few, one, zero) which probes belong to it, bool [P].

    A probe's pseudo-shots are the training embeddings with a cosine similarity above `threshold` (OLTR, CVPR 2019,
    MegaFace experiments: 0.7). Both sides must come from one model. Raises as `facelt.search.count_above` does.
    """
    return pseudo_shot_bands(count_above(probe_PD, train_GD, threshold, advance=advance))

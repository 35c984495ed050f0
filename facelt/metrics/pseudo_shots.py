"""Pseudo-shots: how many training images look like a probe, in the bands of the OLTR paper's Table 4. P probes."""

from types import MappingProxyType

import numpy as np

# The fewest and the most similar training embeddings of a band (OLTR, CVPR 2019, Table 4); None: no end.
PSEUDO_SHOT_BANDS = MappingProxyType({"many": (5, None), "few": (2, 4), "one": (1, 1), "zero": (0, 0)})
PSEUDO_SHOT_MEANINGS = MappingProxyType({"many": ">= 5", "few": "2 to 4", "one": "1", "zero": "0"})


def pseudo_shot_bands(count_P: np.ndarray) -> dict[str, np.ndarray]:
    """For each band, which probes (bool [P]) have its number of similar training embeddings, `count_P` [P]."""
    return {
        name: (count_P >= fewest) & (count_P <= (np.inf if most is None else most))
        for name, (fewest, most) in PSEUDO_SHOT_BANDS.items()
    }

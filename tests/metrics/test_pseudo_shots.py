"""Pseudo-shot bands at each of their edges."""

import numpy as np

from facelt.metrics.pseudo_shots import PSEUDO_SHOT_BANDS, PSEUDO_SHOT_MEANINGS, pseudo_shot_bands


def test_edges():
    bands = pseudo_shot_bands(np.array([0, 1, 2, 4, 5, 900_000]))
    found = {name: mask.tolist() for name, mask in bands.items()}
    assert found == {
        "many": [False, False, False, False, True, True],
        "few": [False, False, True, True, False, False],
        "one": [False, True, False, False, False, False],
        "zero": [True, False, False, False, False, False],
    }
    assert list(PSEUDO_SHOT_MEANINGS) == list(PSEUDO_SHOT_BANDS) == list(bands)


def test_every_count_is_in_one_band():
    masks = np.stack(list(pseudo_shot_bands(np.arange(50)).values()))
    assert (masks.sum(axis=0) == 1).all()

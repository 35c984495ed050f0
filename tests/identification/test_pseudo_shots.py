"""Pseudo-shot bands: their limits, and counts by brute force on real embeddings."""

import json

import numpy as np
import pytest

from facelt.identification.rank import PSEUDO_SHOT_BANDS, pseudo_shot_bands, pseudo_shot_labels
from facelt.search.top_k import count_above


@pytest.mark.parametrize("threshold", ["0.7", "0.5", "0.4", "0.35"])
def test_real_bands(real_data, threshold):
    arrays = np.load(real_data / "faces/embeddings.npz")
    bands = pseudo_shot_bands(count_above(arrays["facescrub"], arrays["train"], float(threshold)))
    expected = json.loads((real_data / "faces/megaface/expected.json").read_text())["modes"]["raw"][threshold]
    for name, mask_P in bands.items():
        assert mask_P.sum() == expected[name]["probes"]


def test_edges():
    bands = pseudo_shot_bands(np.array([0, 1, 2, 4, 5, 900_000]))
    assert {name: mask.tolist() for name, mask in bands.items()} == {
        "many": [False, False, False, False, True, True],
        "few": [False, False, True, True, False, False],
        "one": [False, True, False, False, False, False],
        "zero": [True, False, False, False, False, False],
    }
    assert list(PSEUDO_SHOT_BANDS) == list(bands)
    assert pseudo_shot_labels() == {"many": ">= 5", "few": "2 to 4", "one": "1", "zero": "0"}


def test_every_count_is_in_one_band():
    masks = np.stack(list(pseudo_shot_bands(np.arange(50)).values()))
    assert (masks.sum(axis=0) == 1).all()

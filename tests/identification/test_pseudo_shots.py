"""Pseudo-shots of the shared embeddings equal the brute-force counts."""

import json

import numpy as np
import pytest

from facelt.identification.rank import pseudo_shots


@pytest.mark.parametrize("threshold", ["0.7", "0.5", "0.4", "0.35"])
def test_real_bands(real_data, threshold):
    arrays = np.load(real_data / "faces/embeddings.npz")
    bands = pseudo_shots(arrays["facescrub"], arrays["train"], float(threshold))
    expected = json.loads((real_data / "faces/megaface/expected.json").read_text())["modes"]["raw"][threshold]
    for name, mask_P in bands.items():
        assert mask_P.sum() == expected[name]["probes"]

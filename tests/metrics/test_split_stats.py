"""Statistics of a split against plain counts."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from facelt.metrics.classification import split_stats

LIMITS = {"paper": (lambda n: n > 100, lambda n: n < 20), "released": (lambda n: n >= 100, lambda n: n <= 20)}


@given(
    counts=st.lists(st.sampled_from((0, 1, 19, 20, 21, 99, 100, 101, 5000)), min_size=1, max_size=8),
    picks=st.lists(st.integers(-1, 7), max_size=40),
)
def test_every_figure_is_a_plain_count(counts, picks):
    labels = [pick for pick in picks if pick < len(counts)]
    result = split_stats(np.array(counts), np.array(labels, dtype=np.int64))
    images = Counter(label for label in labels if label >= 0)
    assert (result["images"], result["open_images"]) == (len(labels), labels.count(-1))
    assert result["classes"] == len(images)
    assert result["largest"] == max(images.values(), default=None)
    assert result["smallest"] == min(images.values(), default=None)
    for convention, (is_many, is_few) in LIMITS.items():
        bands = {"many": [], "medium": [], "few": []}
        for label, count in images.items():
            shots = counts[label]
            bands["many" if is_many(shots) else "few" if is_few(shots) else "medium"].append(count)
        assert result["shots"][convention] == {
            band: {"classes": len(members), "images": sum(members)} for band, members in bands.items()
        }

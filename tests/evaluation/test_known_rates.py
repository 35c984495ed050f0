"""Rates of known people and strangers from scores with ties, against plain counts; sets of a single image."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.evaluation.known_rates import ALL_BANDS, KnownRates, KnownScores

# (identity, right, score) of known images, and scores of strangers; few values, so that many are equal.
KNOWN = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 6)), min_size=1, max_size=30)
STRANGERS = st.lists(st.integers(0, 6), min_size=1, max_size=130)


def rates_of(known, *stranger_scores) -> KnownRates:
    """Rates of scores s0, s1, ... of one model, all with the same known images; identity i is of band i % 4."""
    label_N, right_N, score_N = (np.array(column) for column in zip(*known, strict=True))
    results = [
        KnownScores("run/plain", f"s{index}", right_N, score_N.astype(float), np.array(scores, dtype=float))
        for index, scores in enumerate(stranger_scores)
    ]
    return KnownRates(results, label_N, label_N % 4)


@settings(deadline=None, max_examples=60)
@given(known=KNOWN, strangers=STRANGERS)
def test_figures_with_ties_are_plain_counts(known, strangers):
    rates = rates_of(known, strangers)
    summary = rates.score_summary(rates.results[0])

    def dir_at(far):
        """The best DIR of the thresholds 0, 0.5, ..., 7 that keep the FAR."""
        kept = [t / 2 for t in range(15) if sum(s >= t / 2 for s in strangers) <= far * len(strangers) + 1e-9]
        return max(sum(right and score >= t for _, right, score in known) / len(known) for t in kept)

    assert summary["accuracy"]["all"]["rate"] == pytest.approx(np.mean([right for _, right, _ in known]))
    for point in summary["dir"]:
        if point["far"] * len(strangers) + 1e-9 < 1:
            assert point["reason"].endswith(f"there are {len(strangers):,}")
            assert point["rate"] is None
        else:
            assert point["rate"]["rate"] == pytest.approx(dir_at(point["far"]))
            assert point["accepted"] == sum(s >= point["threshold"] for s in strangers)
            assert point["accepted"] <= point["far"] * len(strangers) + 1e-9
    for far, rate in zip(summary["curve"]["far"], summary["curve"]["dir"], strict=True):
        assert rate == pytest.approx(dir_at(far))
    pairs = [(right, (k > s) + (k == s) / 2) for (_, right, k), s in product(known, strangers)]
    assert summary["auroc"] == pytest.approx(np.mean([higher for _, higher in pairs]))
    assert summary["oscr"] == pytest.approx(np.mean([right * higher for right, higher in pairs]))
    accepting = max(t for t in range(7) if sum(k >= t for *_, k in known) >= 0.95 * len(known))
    assert summary["fpr_at_95_tpr"] == pytest.approx(np.mean([s >= accepting for s in strangers]))


def test_bands_count_their_images_and_identities():
    rates = rates_of([(0, True, 1), (0, False, 1), (1, True, 1), (3, True, 1), (4, True, 1)], [0])
    counts = {band: (part["images"], part["identities"]) for band, part in rates.band_counts().items()}
    assert counts == {"all": (5, 4), "many": (3, 2), "medium": (1, 1), "few": (0, 0), "one": (1, 1)}
    accuracy = rates.score_summary(rates.results[0])["accuracy"]
    assert {band: accuracy[band]["images"] for band in ALL_BANDS} == {
        band: images for band, (images, _) in counts.items()
    }
    assert np.isnan(accuracy["few"]["rate"])


def test_a_single_image_has_rates_without_intervals_and_decides_nothing():
    rates = rates_of([(2, True, 5)], [1], [6])
    summary = rates.score_summary(rates.results[0])
    assert (summary["accuracy"]["few"]["rate"], summary["auroc"]) == (1, 1)
    assert np.isnan(summary["accuracy"]["few"]["low"])
    assert (summary["curve"]["far"].tolist(), summary["curve"]["dir"].tolist()) == ([1], [1])
    rows = rates.comparisons([(result.key, ("run/plain", "s0")) for result in rates.results[1:]])
    # The bands without images have no difference, and one stranger allows no FAR of 1 %.
    assert [(row["score"], row["metric"], row["band"]) for row in rows] == [
        ("s1", "accuracy", "all"),
        ("s1", "accuracy", "few"),
    ]
    assert [(row["difference"], row["p"], row["decided"]) for row in rows] == [(0, 1, False)] * 2


def test_a_clear_difference_is_decided_and_an_equal_score_is_not():
    known = [(identity, identity % 10 > 0, 5) for identity in range(200)]
    rates = rates_of(known, [0] * 100, [0] * 50 + [9] * 50, [0] * 100)
    rows = {
        (row["score"], row["metric"], row["band"]): row
        for row in rates.comparisons([(result.key, ("run/plain", "s0")) for result in rates.results[1:]])
    }
    lost = rows["s1", "dir", "all"]
    assert (lost["rate"], lost["reference_rate"], lost["difference"]) == pytest.approx((0, 0.9, -0.9))
    assert lost["high"] < -0.8
    assert lost["decided"]
    assert not rows["s1", "accuracy", "all"]["decided"]
    assert not rows["s2", "dir", "all"]["decided"]

"""Template features, searches in listed galleries, and their rates against plain loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.identification import templates as templates_module
from facelt.identification.open_set import OpenSetSearches, gallery_searches, open_set_rates
from facelt.identification.templates import miss_rate, rank_rates, template_features
from facelt.search.exact import BadRow


def plain_template(feature_ND, rows, weights=None):
    """Returns the unit feature of the (image, medium) rows of one template."""
    total = np.zeros(feature_ND.shape[1])
    for medium in {medium for _, medium in rows}:
        images = [image for image, other in rows if other == medium]
        values = [feature_ND[image].astype(float) * (1 if weights is None else weights[image]) for image in images]
        total += sum(values) / len(values)
    return total / np.sqrt((total**2).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 8), st.booleans(), st.sampled_from([1, 12, 1 << 22]))
def test_templates_equal_plain_loops(seed, rows, templates, weighted, block):
    random = np.random.default_rng(seed)
    feature_ND = random.standard_normal((rows, 4)).astype(np.float32)
    weight_N = random.uniform(0.1, 1, rows) if weighted else None
    # An image may be in several templates, and every template has one.
    template_M = np.concatenate([np.arange(templates), random.integers(0, templates, rows)])
    image_M = np.concatenate([random.integers(0, rows, templates), random.permutation(rows)])
    medium_M = random.integers(0, 3, len(image_M)) * 1000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates_module, "_BLOCK_VALUES", block)
        feature_TD = template_features(feature_ND, image_M, template_M, medium_M, weight_N)
    assert feature_TD.dtype == np.float32
    for template in range(templates):
        listed = [
            (image, medium)
            for image, other, medium in zip(image_M, template_M, medium_M, strict=True)
            if other == template
        ]
        np.testing.assert_allclose(feature_TD[template], plain_template(feature_ND, listed, weight_N), atol=1e-5)


def test_unit_length_comes_before_weights():
    feature_ND = np.array([[4, 0], [0, 1]], dtype=np.float32)
    terms = np.arange(2), np.zeros(2, dtype=int), np.arange(2)
    assert template_features(feature_ND, *terms)[0] == pytest.approx(np.array([4, 1]) / np.sqrt(17))
    assert template_features(feature_ND, *terms, normalize=True)[0] == pytest.approx(np.sqrt([0.5, 0.5]))
    weighted = template_features(feature_ND, *terms, np.array([1, 3]), normalize=True)[0]
    assert weighted == pytest.approx(np.array([1, 3]) / np.sqrt(10))


def test_rows_that_cannot_be_used_are_named():
    terms = np.arange(4), np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    feature_ND = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], dtype=np.float32)
    with pytest.raises(BadRow, match="row 1 of the templates has features that sum to zero"):
        template_features(feature_ND, *terms)
    feature_ND[3] = np.nan
    with pytest.raises(BadRow, match="row 3 of the images holds a value that is not finite"):
        template_features(feature_ND, *terms)
    feature_ND[3] = 0
    assert template_features(feature_ND, *terms)[1].tolist() == [1, 0]
    with pytest.raises(BadRow, match="row 3 of the images has length zero"):
        template_features(feature_ND, *terms, normalize=True)


def plain_searches(row_PD, identity_P, probes, gallery, ranks):
    """Returns {probe: (rank of its best mate, its score)} and {probe without mate: best score}, by sorted lists."""
    mated, nonmated = {}, {}
    for probe in probes:
        score_of = {row: float(row_PD[probe] @ row_PD[row]) for row in gallery}
        mates = [score_of[row] for row in gallery if identity_P[row] == identity_P[probe] != -1]
        if not mates:
            nonmated[probe] = max(score_of.values())
            continue
        others = [score_of[row] for row in gallery if identity_P[row] != identity_P[probe]]
        mated[probe] = min(ranks + 1, 1 + sum(score > max(mates) for score in others)), max(mates)
    return mated, nonmated


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 25), st.integers(1, 6), st.integers(1, 4))
def test_searches_equal_plain_loops_with_ties(seed, probes, enrolled, identities, ranks):
    random = np.random.default_rng(seed)
    row_PD = random.integers(-2, 3, (probes + enrolled, 3)).astype(np.float32)
    identity_P = random.integers(-1, identities, probes + enrolled)
    order = random.permutation(probes + enrolled)
    probe_S, enrolled_E = order[:probes], order[probes:]
    searches = gallery_searches(row_PD, identity_P, probe_S, enrolled_E, rank=ranks)
    mated, nonmated = plain_searches(row_PD, identity_P, probe_S.tolist(), enrolled_E.tolist(), ranks)
    assert searches.gallery == enrolled
    figures = zip(searches.mate_rank_M.tolist(), searches.mate_score_M.tolist(), strict=True)
    assert dict(zip(searches.mated_M.tolist(), figures, strict=True)) == mated
    assert dict(zip(searches.nonmated_N.tolist(), searches.best_score_N.tolist(), strict=True)) == nonmated


def two_galleries(seed: int = 0):
    """Returns searches of forty people's probes in two galleries of half of them, their people, and the rows."""
    random = np.random.default_rng(seed)
    direction_ID = random.standard_normal((40, 6))
    identity_P = np.concatenate([np.arange(40), np.repeat(np.arange(40), random.integers(1, 9, 40))])
    row_PD = (direction_ID[identity_P] + random.standard_normal((len(identity_P), 6))).astype(np.float32)
    probe_S = np.arange(40, len(identity_P))
    galleries = np.arange(0, 18), np.arange(18, 40)
    halves = tuple(gallery_searches(row_PD, identity_P, probe_S, enrolled, rank=10) for enrolled in galleries)
    return halves, identity_P, row_PD, probe_S, galleries


def test_rates_over_two_galleries():
    halves, identity_P, row_PD, probe_S, galleries = two_galleries()
    plain = [plain_searches(row_PD, identity_P, probe_S, gallery, 10) for gallery in galleries]
    ranks = [rank for mated, _ in plain for rank, _ in mated.values()]
    rates = rank_rates(halves, identity_P, (1, 5, 10))
    assert rates.identities == 40
    assert rates.rate_K.tolist() == pytest.approx([np.mean([r <= k for r in ranks]) for k in (1, 5, 10)])
    assert all(low < rate < high for low, rate, high in zip(rates.low_K, rates.rate_K, rates.high_K, strict=True))
    for point in open_set_rates(OpenSetSearches(halves, 1, None, "listed", "gallery"), (0.1, 0.5)).points:
        fnirs = []
        for (mated, nonmated), half in zip(plain, point.halves, strict=True):
            scores = sorted(nonmated.values(), reverse=True)
            limit = scores[int(point.wanted * len(scores) + 1e-9)]
            # The lowest threshold that at most this share reaches lies just above the first score in excess.
            assert half.fpir == sum(score > limit for score in scores) / len(scores)
            misses = [rank > 1 or score <= limit for rank, score in mated.values()]
            assert half.fnir == pytest.approx(np.mean(misses))
            fnirs.append(np.mean(misses))
        assert point.fnir == pytest.approx(np.mean(fnirs))
        thresholds = [half.threshold for half in point.halves]
        miss = miss_rate(halves, thresholds, 1, identity_P)
        # Galleries have one weight, though the first one has fewer searches.
        assert miss.rate_K[0] == pytest.approx(point.fnir, abs=1e-12)
        low, high = miss.limits(0)
        assert low < point.fnir < high
    reason = open_set_rates(OpenSetSearches(halves, 1, None, "listed", "gallery"), (1e-4,)).points[0].reason
    assert reason.startswith("a rate of 0.0001 needs 10,000 non-mated searches; gallery 1 has ")


def test_limits_are_clustered_by_person():
    """Copies of all searches leave the limits nearly as they are, since they add no people."""
    halves, identity_P, row_PD, probe_S, galleries = two_galleries(1)
    plain = rank_rates(halves, identity_P, (1,))
    copies = [gallery_searches(row_PD, identity_P, np.tile(probe_S, 5), gallery, rank=10) for gallery in galleries]
    repeated = rank_rates(copies, identity_P, (1,))
    assert repeated.rate_K[0] == plain.rate_K[0]
    assert repeated.low_K[0] == pytest.approx(plain.low_K[0], abs=0.01)
    assert repeated.high_K[0] == pytest.approx(plain.high_K[0], abs=0.01)


def test_one_person_has_no_limits_and_no_search_no_rate():
    row_PD, identity_P = np.eye(4, dtype=np.float32), np.array([0, 0, 0, 1])
    searches = gallery_searches(row_PD, identity_P, np.array([1, 2]), np.array([0, 3]), rank=2)
    rates = rank_rates([searches], identity_P, (1, 2))
    assert (rates.rate_K.tolist(), rates.limits(0), rates.identities) == ([1.0, 1.0], None, 1)
    strangers = gallery_searches(row_PD, identity_P, np.array([3]), np.array([0]), rank=2)
    with pytest.raises(ValueError, match="no mated searches"):
        rank_rates([strangers], identity_P, (1,))
    with pytest.raises(ValueError, match="rank 0: must be 1 to 254"):
        gallery_searches(row_PD, identity_P, np.array([3]), np.array([0]), rank=0)

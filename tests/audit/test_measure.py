"""Rank 1 and open-set outcomes against plain loops over all images."""

import numpy as np
import pytest

from facelt.audit.audited_set import EmbeddingComparisons
from facelt.audit.measure import fnir_fpir_outcomes, half_gallery_searches, nonmated_max_scores, rank1_outcomes


@pytest.fixture
def embedded(faces):
    _, code_N = np.unique(faces.identities, return_inverse=True)
    return EmbeddingComparisons(faces.value_ND, code_N, cosine=True)


@pytest.fixture
def gallery(faces):
    from facelt.audit.audited_set import open_features
    from facelt.config.audit import FeaturesConfig

    return open_features(FeaturesConfig(path=faces.gallery()), "direct", "drop", whole=False)


@pytest.mark.parametrize("among", ["distractors", "others"])
def test_rank_one_is_that_of_a_plain_loop(embedded, gallery, among):
    row, person = embedded.row_ED.astype(np.float64), embedded.identity_E
    score = row @ row.T
    distractor = row @ gallery.rows[0:40].T.astype(np.float64)
    found = rank1_outcomes(embedded, gallery if among == "distractors" else None)
    for probe in range(len(row)):
        mates = [mate for mate in range(len(row)) if mate != probe and person[mate] == person[probe]]
        strangers = distractor[probe] if among == "distractors" else score[probe, person != person[probe]]
        hits = sum(score[probe, mate] >= strangers.max() for mate in mates)
        assert (found.event_P[probe], found.trial_P[probe]) == (hits, len(mates))
    assert 0 < found.event_P.sum() < found.trial_P.sum()


def test_everyone_is_a_stranger_once_and_enrolled_once(embedded, gallery):
    searches = half_gallery_searches(embedded, gallery, seed=1)
    threshold = float(np.quantile(nonmated_max_scores(searches), 0.8))
    fnir, fpir = fnir_fpir_outcomes(searches, threshold, len(embedded.row_ED))
    # One image of each of the 16 people is enrolled and not searched with.
    assert (fpir.trial_P == 1).all()
    assert sorted(np.bincount(embedded.identity_E, weights=fnir.trial_P)) == [3] * 16
    assert fpir.event_P.sum() == (nonmated_max_scores(searches) >= threshold).sum()
    for half in searches.halves:
        enrolled = embedded.row_ED[half.enrolled_E]
        candidates = np.vstack([gallery.rows[0:40], enrolled]).astype(np.float64)
        mates = {embedded.identity_E[place]: embedded.row_ED[place] for place in half.enrolled_E}
        for probe in half.mated_M:
            mate = embedded.row_ED[probe].astype(np.float64) @ mates[embedded.identity_E[probe]]
            best = (candidates @ embedded.row_ED[probe]).max()
            assert fnir.event_P[probe] == (mate < threshold or mate < best - 1e-6)
    assert 0 < fnir.event_P.sum() < fnir.trial_P.sum()


def test_without_a_gallery_half_of_the_people_are_all_there_is(embedded):
    searches = half_gallery_searches(embedded, None, seed=0)
    assert [half.gallery for half in searches.halves] == [8, 8]

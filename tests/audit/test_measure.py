"""Rank-1 and open-set outcomes against plain loops over all images."""

import numpy as np
import pytest

from facelt.audit.audited_set import EmbeddingComparisons
from facelt.audit.features import open_features
from facelt.audit.measure import search_all
from facelt.config.audit import FeaturesConfig


@pytest.fixture
def embeddings(faces):
    _, code_N = np.unique(faces.identities, return_inverse=True)
    return EmbeddingComparisons(faces.value_ND, code_N, cosine=True)


@pytest.fixture
def gallery(faces):
    return open_features(FeaturesConfig(path=faces.gallery()), "direct", "drop", lazy=True)


@pytest.mark.parametrize("among", ["distractors", "others"])
def test_rank1_equals_a_plain_loop(embeddings, gallery, among):
    row, identity = embeddings.row_ED.astype(np.float64), embeddings.identity_E
    score = row @ row.T
    distractor_score = row @ gallery.rows[0:40].T.astype(np.float64)
    rank1 = search_all(embeddings, gallery if among == "distractors" else None, seed=0).rank1
    for probe in range(len(row)):
        mates = [mate for mate in range(len(row)) if mate != probe and identity[mate] == identity[probe]]
        nonmated = distractor_score[probe] if among == "distractors" else score[probe, identity != identity[probe]]
        hits = sum(score[probe, mate] >= nonmated.max() for mate in mates)
        assert (rank1.event_P[probe], rank1.trial_P[probe]) == (hits, len(mates))
    assert 0 < rank1.event_P.sum() < rank1.trial_P.sum()


def test_each_image_is_searched_once_without_its_mate_enrolled(embeddings, gallery):
    results = search_all(embeddings, gallery, seed=1)
    threshold = float(np.quantile(results.nonmated_max_scores, 0.8))
    outcomes = results.outcomes(threshold)
    fnir, fpir = outcomes["fnir"], outcomes["fpir"]
    # One image of each of the 16 people is enrolled and not searched with.
    assert (fpir.trial_P == 1).all()
    assert sorted(np.bincount(embeddings.identity_E, weights=fnir.trial_P)) == [3] * 16
    assert fpir.event_P.sum() == (results.nonmated_max_scores >= threshold).sum()
    for half in results.open_set.halves:
        enrolled = embeddings.row_ED[half.enrolled_E]
        candidates = np.vstack([gallery.rows[0:40], enrolled]).astype(np.float64)
        mates = {embeddings.identity_E[image]: embeddings.row_ED[image] for image in half.enrolled_E}
        for probe in half.mated_M:
            mate = embeddings.row_ED[probe].astype(np.float64) @ mates[embeddings.identity_E[probe]]
            best = (candidates @ embeddings.row_ED[probe]).max()
            assert fnir.event_P[probe] == (mate < threshold or mate < best - 1e-6)
    assert 0 < fnir.event_P.sum() < fnir.trial_P.sum()


def test_without_a_gallery_only_half_of_the_people_are_enrolled(embeddings):
    results = search_all(embeddings, None, seed=0)
    assert [half.gallery for half in results.open_set.halves] == [8, 8]

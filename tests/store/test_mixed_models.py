"""Mixed models: differences of weights and preprocessing are refused or noted, missing statements are noted once."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.store.mixed_models import mixed_model_notes

WEIGHTS = ("a" * 64, "b" * 64)
PREPROCESSING = {"flip_averaged": True, "image_size": [112, 112]}


def described(path, weights=None, preprocessing=None):
    meta = {"path": path} if weights is None else {"path": path, "model": {"weights_sha256": weights}}
    return meta if preprocessing is None else {**meta, "preprocessing": preprocessing}


def notes(*sets, allow_mixed=False):
    return mixed_model_notes(dict(zip(("probes", "gallery", "train"), sets, strict=False)), allow_mixed=allow_mixed)


def test_one_model_or_nothing_known_has_no_notes():
    same = [described(name, WEIGHTS[0], PREPROCESSING) for name in "xyz"]
    assert notes(*same) == []
    assert notes(described("x"), described("tree"), None) == []
    assert notes({"path": "x", "model": "by hand"}, {"path": "y", "model": {"name": "another"}}) == []


def test_other_weights_are_refused_with_both_folders():
    sets = described("x", WEIGHTS[0], PREPROCESSING), described("y", WEIGHTS[1], PREPROCESSING)
    with pytest.raises(UserError) as caught:
        notes(*sets)
    assert str(caught.value).startswith(
        "y (gallery) and x (probes) differ in weights (bbbbbbbbbbbb and aaaaaaaaaaaa). "
    )
    assert str(caught.value).endswith("--allow-mixed-models")
    (note,) = notes(*sets, allow_mixed=True)
    assert note.startswith("y (gallery) and x (probes) differ in weights")


def test_other_preprocessing_is_refused_by_key_and_value():
    aligned = {**PREPROCESSING, "flip_averaged": False, "image_size": [96, 96]}
    with pytest.raises(UserError) as caught:
        notes(described("x", WEIGHTS[0], PREPROCESSING), None, described("z\x1b", WEIGHTS[0], aligned))
    expected = "preprocessing.flip_averaged (false and true); preprocessing.image_size ([96, 96] and [112, 112])"
    assert expected in str(caught.value)
    with pytest.raises(UserError, match=r"differ in preprocessing \(cropped and none\)"):
        notes(described("x", preprocessing="none"), described("y", preprocessing="cropped"))


def test_the_last_two_sets_are_compared_as_well():
    with pytest.raises(UserError, match=r"z \(train\) and y \(gallery\) differ in weights"):
        notes(described("tree"), described("y", WEIGHTS[0]), described("z", WEIGHTS[1]))


def test_missing_statements_are_one_note():
    whole = described("x", WEIGHTS[0], PREPROCESSING)
    detected = described("z", WEIGHTS[0], {**PREPROCESSING, "alignment": {"detector": "yunet"}})
    (note,) = notes(whole, described("tree"), detected)
    assert note == (
        "It is not known that one model made all embeddings: x (probes) does not state preprocessing.alignment; "
        "tree (gallery) does not state preprocessing, weights."
    )


@given(st.lists(st.sampled_from([None, *WEIGHTS]), min_size=2, max_size=3))
def test_refused_exactly_if_two_known_weights_differ(weights):
    sets = [described(str(number), digest) for number, digest in enumerate(weights)]
    differ = any(a != b for a, b in itertools.combinations([digest for digest in weights if digest], 2))
    if differ:
        with pytest.raises(UserError):
            notes(*sets)
    else:
        assert len(notes(*sets)) == (len(set(weights)) > 1)

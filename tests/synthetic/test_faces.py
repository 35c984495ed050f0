"""Synthetic faces: identities, nuisances and images are deterministic, distinct and bounded."""

import random
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.synthetic.identity import DEMO, HAIR_STYLES, Difficulty, draw_identity, draw_nuisance
from facelt.synthetic.render import encode_face, render_face

STUDIO = DEMO.scaled(0.0)  # no nuisance: a studio portrait


def values(record: object) -> dict:
    """Returns a record's fields as lists and numbers, for comparison."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(record).items()}


def picture(seed: int, identity: int, image: int, difficulty: Difficulty = DEMO, size: int = 112) -> np.ndarray:
    return render_face(draw_identity(seed, identity), draw_nuisance(seed, identity, image, difficulty), size)


def test_same_numbers_draw_the_same_face_and_leave_global_generators_alone():
    np_state, py_state = np.random.get_state()[1].copy(), random.getstate()
    first = picture(3, 5, 7)
    picture(3, 6, 0)
    assert np.array_equal(first, picture(3, 5, 7))
    assert first.shape == (112, 112, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert py_state == random.getstate()


@pytest.mark.parametrize("other", [(4, 5, 7), (3, 6, 7), (3, 5, 8)])
def test_seed_identity_and_image_each_change_the_picture(other):
    assert np.abs(picture(3, 5, 7).astype(int) - picture(*other)).mean() > 3.0


def test_two_images_share_their_identity_and_no_circumstance():
    first, second = draw_nuisance(0, 1, 0), draw_nuisance(0, 1, 1)
    assert values(draw_identity(0, 1)) == values(draw_identity(0, 1))
    assert first.yaw != second.yaw
    assert first.gain != second.gain
    assert first.backdrop.tolist() != second.backdrop.tolist()


def test_zero_difficulty_leaves_only_backdrop_and_clothes_to_vary():
    first, second = values(draw_nuisance(0, 1, 0, STUDIO)), values(draw_nuisance(0, 1, 1, STUDIO))
    free = {"backdrop", "clothes", "occlusion_place", "occlusion_colour", "pixel_seed"}
    assert {name for name in first if first[name] != second[name]} <= free
    assert (first["yaw"], first["noise"], first["occlusion"], first["jpeg_quality"]) == (0.0, 0.0, "", 95)
    middle = np.s_[45:75, 40:72]  # between brows and mouth: nothing there may move
    assert np.array_equal(picture(0, 1, 0, STUDIO)[middle], picture(0, 1, 1, STUDIO)[middle])


def test_difficulty_widens_the_circumstances():
    spread = [
        np.std([draw_nuisance(0, 0, image, DEMO.scaled(factor)).yaw for image in range(200)]) for factor in (0.5, 1.0)
    ]
    assert spread[1] == pytest.approx(2 * spread[0])
    assert spread[1] == pytest.approx(np.deg2rad(DEMO.yaw), rel=0.15)
    drawn = [draw_nuisance(0, 0, image, DEMO.scaled(4.0)).occlusion for image in range(200)]
    assert set(drawn) == {"", "glasses", "sunglasses", "bar", "hand"}


@pytest.mark.parametrize("occlusion", ["glasses", "sunglasses", "bar", "hand"])
def test_each_occlusion_covers_a_part_of_the_face(occlusion):
    share = {f"{name}_share": float(name == occlusion) for name in ("glasses", "sunglasses", "bar", "hand")}
    only = Difficulty(**dict.fromkeys(vars(STUDIO), 0.0) | share | {"jpeg_lowest": 95})
    who, covered = draw_identity(0, 2), draw_nuisance(0, 2, 0, only)
    assert covered.occlusion == occlusion
    changed = render_face(who, covered).astype(int) - render_face(who, draw_nuisance(0, 2, 0, STUDIO))
    assert 0.01 < (np.abs(changed).max(axis=2) > 20).mean() < 0.5


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40), identity=st.integers(0, 10**6), image=st.integers(0, 10**4), factor=st.floats(0.0, 4.0)
)
def test_every_face_can_be_drawn_and_shows_something(seed, identity, image, factor):
    hard = DEMO.scaled(factor)
    drawn = picture(seed, identity, image, hard, size=48)
    assert drawn.shape == (48, 48, 3)
    assert drawn.std() > 2.0


def test_all_hair_styles_occur_in_both_genders():
    seen = {(who.gender, who.hair_style) for who in (draw_identity(0, index) for index in range(600))}
    assert seen == {(gender, style) for gender in ("female", "male") for style in HAIR_STYLES}


def test_size_changes_the_sampling_and_not_the_face():
    large = cv2.resize(picture(0, 4, 0, STUDIO, 224), (112, 112), interpolation=cv2.INTER_AREA)
    assert np.abs(large.astype(int) - picture(0, 4, 0, STUDIO)).mean() < 3.0


def test_jpeg_holds_the_face_at_the_named_quality():
    who, how = draw_identity(0, 9), draw_nuisance(0, 9, 3)
    data = encode_face(who, how)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(decoded.astype(int) - render_face(who, how)).mean() < 12.0
    assert DEMO.jpeg_lowest <= how.jpeg_quality <= 95


def test_attribute_shows_in_the_drawing_without_deciding_it():
    """A threshold on each correlate beats chance and errs: the two groups overlap. Area under the ROC by ranks."""
    people = [draw_identity(0, index) for index in range(1500)]
    male = np.array([who.gender == "male" for who in people])
    assert 0.45 < male.mean() < 0.55
    for name, sign in (("hair_length", -1), ("jaw_width", 1), ("brow_thickness", 1), ("beard", 1)):
        value = sign * np.array([getattr(who, name) for who in people])
        higher = (value[male][:, None] > value[~male]).mean() + 0.5 * (value[male][:, None] == value[~male]).mean()
        assert 0.6 < higher < 0.97, name


def test_attribute_can_be_read_from_pixels_better_than_chance():
    """A nearest-mean rule on 16x16 grey thumbnails, fitted on other identities than it is measured on."""
    people = [draw_identity(1, index) for index in range(240)]
    grey = np.stack(
        [_thumbnail(render_face(who, draw_nuisance(1, index, 0, STUDIO), 56)) for index, who in enumerate(people)]
    )
    male = np.array([who.gender == "male" for who in people])
    fit = np.arange(len(people)) < 160
    means = [grey[fit & group].mean(axis=0) for group in (male, ~male)]
    nearer = ((grey - means[0]) ** 2).sum(axis=1) < ((grey - means[1]) ** 2).sum(axis=1)
    assert 0.6 < (nearer == male)[~fit].mean() < 1.0


def _thumbnail(face: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA).ravel() / 255.0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: draw_identity(-1, 0), "seed"),
        (lambda: draw_identity(0, 1.5), "index"),
        (lambda: draw_nuisance(0, 0, -3), "index"),
        (lambda: draw_nuisance(True, 0, 0), "seed"),
        (lambda: picture(0, 0, 0, size=4), "size"),
        (lambda: picture(0, 0, 0, size=100_000), "size"),
        (lambda: DEMO.scaled(-1.0), "factor"),
        (lambda: DEMO.scaled(float("nan")), "factor"),
    ],
)
def test_arguments_out_of_range_are_named(call, named):
    with pytest.raises(UserError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_drawing_loads_no_torch():
    code = "import sys, facelt.synthetic.datasets, facelt.synthetic.datasets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

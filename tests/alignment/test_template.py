"""Similarity transform against plain least squares and InsightFace's; pixels against plain interpolation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.alignment.align import TEMPLATE_52, similarity_transform, warp_face
from tests.alignment.drawing import draw, turned


def plain_similarity(point_52, target_52):
    """x' = a x - b y + c, y' = b x + a y + d: least squares in a, b, c, d."""
    x, y = point_52.T
    one_5, zero_5 = np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one_5, zero_5], 1), np.stack([y, x, zero_5, one_5], 1)])
    a, b, c, d = np.linalg.lstsq(rows, target_52.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([32, 112, 224]), mirrored=st.booleans())
def test_the_transform_is_the_least_squares_one_and_never_mirrors(seed, size, mirrored):
    random = np.random.default_rng(seed)
    point_52 = turned(random.uniform(-180, 180), random.uniform(0.1, 20), random.uniform(-50, 900, 2))
    point_52 += random.normal(0, 0.05 * np.ptp(point_52), (5, 2))
    if mirrored:
        point_52[:, 0] *= -1
    matrix_23 = similarity_transform(point_52, size)
    np.testing.assert_allclose(matrix_23, plain_similarity(point_52, TEMPLATE_52 * size / 112), rtol=1e-6, atol=1e-6)
    assert np.linalg.det(matrix_23[:, :2]) > 0


def test_points_that_fit_lie_on_the_template():
    point_52 = turned(37, 3.5, (400, 250))
    matrix_23 = similarity_transform(point_52)
    np.testing.assert_allclose(point_52 @ matrix_23[:, :2].T + matrix_23[:, 2], TEMPLATE_52, atol=1e-9)


@pytest.mark.parametrize("point_52", [np.full((5, 2), 7.0), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_points_without_extent_are_refused(point_52):
    with pytest.raises(ValueError, match="not finite or coincide"):
        similarity_transform(point_52)


def test_pixels_are_interpolated_between_their_four_neighbours_and_black_outside():
    random = np.random.default_rng(1)
    image_HW3 = np.kron(random.integers(60, 200, (12, 15, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    matrix_23 = similarity_transform(turned(15, 0.6, (40, 30)))
    right_HW, down_HW = np.meshgrid(np.arange(112), np.arange(112))
    back_22 = np.linalg.inv(matrix_23[:, :2])
    x, y = np.moveaxis((np.stack([right_HW, down_HW], 2) - matrix_23[:, 2]) @ back_22.T, 2, 0)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    padded = np.zeros((96 + 400, 120 + 400, 3))
    padded[200:296, 200:320] = image_HW3
    expected = sum(
        padded[top + 200 + dy, left + 200 + dx] * (np.abs(1 - dx - (x - left)) * np.abs(1 - dy - (y - top)))[:, :, None]
        for dx in (0, 1)
        for dy in (0, 1)
    )
    crop_HW3 = warp_face(image_HW3, matrix_23).astype(int)
    # OpenCV interpolates in 32nds of a pixel.
    assert np.abs(crop_HW3 - expected).max() <= 200 / 32 + 1
    assert np.abs(crop_HW3 - expected).mean() < 1
    assert (crop_HW3[(x < -1) | (y < -1) | (x > 120) | (y > 96)] == 0).all()


@pytest.mark.filterwarnings("ignore")
def test_insightface_crops_the_same():
    face_align = pytest.importorskip("insightface.utils.face_align", reason="insightface is not installed")
    for degrees, scale in ((0, 1.0), (25, 0.8), (-70, 0.5)):
        point_52 = turned(degrees, scale, (90, 80)) + np.random.default_rng(0).normal(0, 1.5, (5, 2))
        image_HW3 = draw(point_52)
        theirs = face_align.norm_crop(image_HW3, point_52.astype(np.float32))
        assert np.abs(theirs.astype(int) - warp_face(image_HW3, similarity_transform(point_52))).max() <= 1

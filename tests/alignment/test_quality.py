"""Face quality: pose of a head rotated in 3D, and sharpness against a plain Laplacian."""

import numpy as np
import pytest

from facelt.alignment.align import TEMPLATE_52, align_faces, face_quality, head_pose, similarity_transform
from tests.alignment.drawing import DrawnFaces, draw, turned


def project_head(yaw, pitch, roll, scale=1.7):
    """Returns landmarks [5,2] of the template's head rotated by yaw, pitch and roll, in orthographic projection."""
    y, p, r = np.radians([yaw, pitch, roll])
    depth_5 = np.array([0, 0, 0.4 * np.hypot(*(TEMPLATE_52[1] - TEMPLATE_52[0])), 0, 0])
    point_53 = np.column_stack([TEMPLATE_52 - TEMPLATE_52.mean(0), depth_5])  # right, down, towards us
    turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    nod = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    lean = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (point_53 @ (lean @ nod @ turn).T)[:, :2] * scale + (300, 200)


@pytest.mark.parametrize(
    "pose", [(0, 0, 0), (30, 0, 0), (-55, 0, 0), (0, 25, 0), (0, -35, 0), (0, 0, 40), (0, 0, -170), (20, 0, 30)]
)
def test_a_turned_head_has_its_pose(pose):
    assert head_pose(project_head(*pose)) == pytest.approx(pose, abs=1)


@pytest.mark.parametrize("pose", [(25, 20, 0), (-30, 15, 25), (20, -20, -40)])
def test_turns_about_several_axes_are_approximate(pose):
    assert head_pose(project_head(*pose)) == pytest.approx(pose, abs=10)


def test_sharpness_is_the_variance_of_a_plain_laplacian():
    random = np.random.default_rng(0)
    image_HW3 = random.integers(0, 256, (112, 112, 1), dtype=np.uint8).repeat(3, axis=2)
    quality = face_quality(image_HW3, TEMPLATE_52, np.eye(2, 3))
    edged = np.pad(image_HW3[:, :, 0].astype(float), 1, mode="reflect")
    plain = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:] - 4 * edged[1:-1, 1:-1]
    assert quality.sharpness == pytest.approx(plain.var())
    assert quality.eye_distance == pytest.approx(35.238, abs=1e-3)


def test_the_photographs_edge_is_no_sharpness():
    grey_HW3 = np.full((160, 200, 3), 180, np.uint8)
    point_52 = turned(10, 1, (12, 90))  # half of the face is outside
    assert face_quality(grey_HW3, point_52, similarity_transform(point_52)).sharpness == 0


def test_faces_come_by_size_and_lie_on_the_template():
    small, large = turned(0, 0.4, (150, 60)), turned(30, 0.8, (60, 80))
    first, second = align_faces(draw(small, large), DrawnFaces("squares"))
    assert (first.number, second.number) == (1, 2)
    assert first.face.area > second.face.area
    assert first.quality.roll == pytest.approx(30, abs=2)
    for face, blue in ((first, 150), (second, 130)):
        assert face.image_HW3.shape == (112, 112, 3)
        for landmark, (x, y) in enumerate(np.rint(TEMPLATE_52).astype(int)):
            assert np.abs(face.image_HW3[y, x].astype(int) - (255, 130 + 20 * landmark, blue)).max() <= 2


def test_landmarks_that_cannot_be_aligned_are_no_face():
    class OnePoint(DrawnFaces):
        def detect(self, image_HW3):
            return [face._replace(landmark_52=np.full((5, 2), 9.0)) for face in super().detect(image_HW3)]

    assert align_faces(draw(turned(0, 0.5, (80, 80))), OnePoint("squares")) == []

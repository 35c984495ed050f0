"""Foreground transforms against a computation pixel by pixel, and their frequency by class.

H W image, C classes.
"""

import math

import numpy as np
import pytest
import torch

from facelt.config.registry import METHODS
from facelt.errors import UserError
from facelt.methods.base import TrainBatch
from facelt.methods.cam_sampling import ForegroundTransform, generated_fractions, sampling_maps, transform_foreground
from facelt.methods.classify import ClassifySettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.models.network import build_network

HEIGHT, WIDTH = 11, 14
COUNTS = torch.tensor([40, 20, 10, 0, 2])


def plain_source(shown_HW, draw, x: int, y: int) -> tuple[float, float]:
    """Returns the source of the pixel (x, y) of the transformed image."""
    ys, xs = np.nonzero(shown_HW)
    kind, turn, scale, across, down = draw
    if kind < 1 / 3:
        middle_x, middle_y = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
        angle, factor = math.radians(90 * turn - 45), 0.8 + 0.4 * scale
        dx, dy = (x - middle_x) / factor, (y - middle_y) / factor
        return (
            middle_x + math.cos(angle) * dx + math.sin(angle) * dy,
            middle_y - math.sin(angle) * dx + math.cos(angle) * dy,
        )
    if kind < 2 / 3:
        steps_x = range(-xs.min(), WIDTH - xs.max())
        steps_y = range(-ys.min(), HEIGHT - ys.max())
        return x - steps_x[int(across * len(steps_x))], y - steps_y[int(down * len(steps_y))]
    return WIDTH - 1 - x, y


def plain_move(image_3HW, shown_HW, draw) -> np.ndarray:
    """The image with its foreground moved."""
    moved = image_3HW.copy()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            from_x, from_y = plain_source(shown_HW, draw, x, y)
            if not (-0.5 <= from_x <= WIDTH - 0.5 and -0.5 <= from_y <= HEIGHT - 0.5):
                continue
            near_x, near_y = round(from_x), round(from_y)
            arrived = 0 <= near_x < WIDTH and 0 <= near_y < HEIGHT and shown_HW[near_y, near_x]
            if arrived or shown_HW[y, x]:
                x0, y0 = math.floor(from_x), math.floor(from_y)
                corners = [(x0, y0), (x0 + 1, y0), (x0, y0 + 1), (x0 + 1, y0 + 1)]
                moved[:, y, x] = sum(
                    (1 - abs(from_x - cx))
                    * (1 - abs(from_y - cy))
                    * image_3HW[:, min(max(cy, 0), HEIGHT - 1), min(max(cx, 0), WIDTH - 1)]
                    for cx, cy in corners
                )
    return moved


@pytest.mark.parametrize("kind", [0.1, 0.5, 0.9], ids=["turned", "shifted", "mirrored"])
def test_moves_are_the_plain_ones(kind):
    random = np.random.default_rng(int(10 * kind))
    image_B3HW = random.normal(size=(12, 3, HEIGHT, WIDTH)).astype(np.float32)
    shown_BHW = np.zeros((12, HEIGHT, WIDTH), bool)
    for shown_HW in shown_BHW:
        top, left = random.integers(0, 6, 2)
        shown_HW[top : top + random.integers(1, 6), left : left + random.integers(1, 8)] = True
        shown_HW &= random.random((HEIGHT, WIDTH)) < 0.9
    shown_BHW[:, 6, 7] = True
    draw_5B = random.random((5, 12)).astype(np.float32)
    draw_5B[0] = kind
    shown = torch.from_numpy(shown_BHW)
    found_B3HW = transform_foreground(
        torch.from_numpy(image_B3HW), shown, sampling_maps(shown, torch.from_numpy(draw_5B))
    ).numpy()
    for image, (image_3HW, shown_HW, found_3HW) in enumerate(zip(image_B3HW, shown_BHW, found_B3HW, strict=True)):
        plain_3HW = plain_move(image_3HW, shown_HW, draw_5B[:, image].astype(np.float64))
        np.testing.assert_allclose(found_3HW, plain_3HW, atol=1e-4)
        assert not np.array_equal(found_3HW, image_3HW)


def test_a_shift_reaches_every_place_in_the_frame_and_none_outside():
    shown_BHW = torch.zeros(4000, HEIGHT, WIDTH, dtype=torch.bool)
    shown_BHW[:, 3:6, 9:13] = True
    draw_5B = torch.rand(5, 4000, generator=torch.Generator().manual_seed(0))
    draw_5B[0] = 0.5
    shift_B2 = sampling_maps(shown_BHW, draw_5B)[:, :, 2].negative().long()
    assert set(shift_B2[:, 0].tolist()) == set(range(-9, 2))
    assert set(shift_B2[:, 1].tolist()) == set(range(-3, 6))


def test_generated_images_bring_every_class_to_one_size():
    fraction_C = generated_fractions(COUNTS, threshold=None)
    assert fraction_C.tolist() == pytest.approx([2 / 42, 22 / 42, 32 / 42, 1, 40 / 42])
    # At most the threshold, and none for classes that reach it.
    assert generated_fractions(COUNTS, threshold=20).tolist() == pytest.approx([0, 0, 20 / 30, 1, 20 / 22])


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none")
    return METHODS["classify"](ClassifySettings(name="classify"), network, 5).eval().requires_grad_(False)


@pytest.fixture
def moves(teacher):
    moves = ForegroundTransform(COUNTS, threshold=None)
    moves.set_teacher(teacher)
    return moves


def batch(size: int = 24) -> TrainBatch:
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(size, 3, 64, 64, generator=random), torch.arange(size) % 3 * 2)


def test_chosen_images_move_by_their_own_classs_activation(moves, teacher):
    inputs = batch()
    moved = moves(inputs, teacher, torch.Generator().manual_seed(5))
    draw_6B = torch.rand(6, 24, generator=torch.Generator().manual_seed(5))
    expected = inputs.image_B3HW.clone()
    chosen = 0
    for index, label in enumerate(inputs.label_B.tolist()):
        if draw_6B[0, index] < (42 - COUNTS[label]) / 42:
            image_13HW = inputs.image_B3HW[index : index + 1]
            map_Dhw = teacher.network.backbone(image_13HW)[0]
            activation_hw = (map_Dhw * teacher.head.weight[label][:, None, None]).sum(0)
            raised = torch.nn.functional.interpolate(
                (activation_hw - activation_hw.min())[None, None], (64, 64), mode="bilinear"
            )
            shown_1HW = raised[0] >= 0.75 * raised.mean()
            expected[index] = transform_foreground(
                image_13HW, shown_1HW, sampling_maps(shown_1HW, draw_6B[1:, index : index + 1])
            )[0]
            chosen += 1
    assert 0 < chosen < 24
    assert torch.allclose(moved.image_B3HW, expected, atol=1e-4)
    assert torch.equal(moved.label_B, inputs.label_B)
    assert torch.equal(inputs.image_B3HW, batch().image_B3HW)


def test_nothing_is_chosen_where_nothing_is_generated(teacher):
    moves = ForegroundTransform(COUNTS, threshold=2)
    moves.set_teacher(teacher)
    inputs = batch()
    moved = moves(inputs, teacher, torch.Generator().manual_seed(5))
    assert all(torch.equal(value, expected) for value, expected in zip(moved, inputs, strict=True))


def test_it_is_no_part_of_the_state_and_is_built_without_counts(moves):
    assert not moves.state_dict()
    assert not ForegroundTransform(None, threshold=None).state_dict()


@pytest.mark.parametrize(
    ("name", "embedding", "config"),
    [
        ("classify", "linear_bn", ClassifySettings(name="classify")),
        ("classify", "none", ClassifySettings(name="classify", head="cosine")),
        ("dynamic_meta", "none", DynamicMetaSettings(name="dynamic_meta")),
    ],
)
def test_a_teacher_without_such_maps_is_refused(name, embedding, config):
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding=embedding, dim=8)
    with pytest.raises(UserError, match="teachers: move_foreground needs a linear classifier on the averaged map"):
        ForegroundTransform(COUNTS, threshold=None).set_teacher(METHODS[name](config, network, 5))

"""Face augmentation: each change against a second computation, its probability, and the images it leaves alone."""

import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import binom
from torchvision.transforms.v2 import functional

from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.data import records
from facelt.data.augmentation import (
    INTERPOLATIONS,
    AugmentationSettings,
    FaceAugmentation,
    erase_box,
    jitter_colours,
    keep_box,
    lower_resolution,
    rotate_and_shift,
)
from facelt.data.batch import BadImage, SampleRequest
from facelt.data.decode import BadImageError
from facelt.data.loader import Loader
from facelt.data.records import RecordData
from facelt.data.samplers import InstanceSampler
from facelt.data.transforms import ExpectSize, Resize
from facelt.errors import UserError
from facelt.methods.base import SamplerSpec
from facelt.training.loaders import build_sampler

SIZE = (40, 60)
CHANGES = ("crop", "low_resolution", "photometric", "geometric", "erasing")
OFF = dict.fromkeys(CHANGES, 0.0)
ALL = AugmentationSettings(**dict.fromkeys(CHANGES, 1.0))
SEEDS = range(2000)


def noise(height: int = 40, width: int = 60, low: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    return cv2.resize(noise(5, 7), (width, height), interpolation=cv2.INTER_LINEAR)


def augmentation(**settings: object) -> FaceAugmentation:
    return FaceAugmentation(AugmentationSettings(**{**OFF, **settings}), ExpectSize(SIZE))


def box_of(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of a mask that is one full box."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    assert mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def test_the_defaults_are_those_of_adaface():
    settings = AugmentationSettings()
    assert (settings.crop, settings.low_resolution, settings.photometric) == (0.2, 0.2, 0.2)
    assert (settings.geometric, settings.erasing) == (0, 0)
    assert (settings.crop_area, settings.low_resolution_scale) == ((0.2, 1.0), (0.2, 1.0))
    assert settings.crop_aspect == pytest.approx((3 / 4, 4 / 3), abs=1e-4)
    assert (settings.brightness, settings.contrast, settings.saturation) == (0.5, 0.5, 0.5)


def test_equal_seeds_give_equal_images_and_change_neither_the_input_nor_the_global_generators():
    image, transform = noise(), FaceAugmentation(ALL, ExpectSize(SIZE))
    before, states = image.copy(), (np.random.get_state()[1].copy(), torch.get_rng_state())
    first, again, other = transform(image, 7), transform(image, 7), transform(image, 8)
    assert (first.shape, first.dtype) == ((*SIZE, 3), np.uint8)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


def test_with_everything_off_the_image_is_returned_as_it_is():
    image, transform = noise(), augmentation()
    assert all(transform(image, seed) is image for seed in range(50))


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_made_with_its_probability(change):
    image, transform = noise(), augmentation(**{change: 0.3})
    changed = sum(transform(image, seed) is not image for seed in SEEDS)
    low, high = binom.interval(0.9999, len(SEEDS), 0.3)
    assert low <= changed <= high


def test_the_changes_are_independent():
    image, transform = noise(), augmentation(**dict.fromkeys(CHANGES, 0.3))
    unchanged = sum(transform(image, seed) is image for seed in SEEDS)
    low, high = binom.interval(0.9999, len(SEEDS), 0.7 ** len(CHANGES))
    assert low <= unchanged <= high


def test_switching_a_change_on_keeps_the_images_of_the_others():
    image = noise()
    alone, both = augmentation(crop=0.5), augmentation(crop=0.5, erasing=0.5, erasing_area=(0.02, 0.05))
    for seed in range(50):
        cropped = alone(image, seed) is not image
        black = (both(image, seed) == 0).all(2).mean() > 0
        assert not black or cropped


def test_a_crop_keeps_a_box_at_its_place():
    image, settings = noise(), AugmentationSettings(crop_area=(0.3, 0.6), crop_aspect=(0.8, 1.25))
    tops, areas = set(), []
    for seed in range(300):
        result = keep_box(image, settings, np.random.default_rng(seed))
        top, left, height, width = box_of(result.any(2))
        expected = np.zeros_like(image)
        expected[top : top + height, left : left + width] = image[top : top + height, left : left + width]
        np.testing.assert_array_equal(result, expected)
        # Sides are whole pixels: half a pixel more or less.
        assert (width + 0.5) / (height - 0.5) >= 0.8
        assert (width - 0.5) / (height + 0.5) <= 1.25
        assert (height - 0.5) * (width - 0.5) / 2400 <= 0.6
        assert (height + 0.5) * (width + 0.5) / 2400 >= 0.3
        tops.add(top)
        areas.append(height * width / 2400)
    assert min(tops) == 0
    assert len(tops) > 10
    assert 0.4 < np.mean(areas) < 0.5


def test_a_box_that_never_fits_is_cut_to_the_image():
    settings = AugmentationSettings(crop_area=(1.0, 1.0), crop_aspect=(4.0, 4.0))
    result = keep_box(noise(20, 20), settings, np.random.default_rng(0))
    assert box_of(result.any(2))[1:] == (0, 10, 20)


def test_one_pixel_can_be_augmented():
    image = np.full((1, 1, 3), 9, np.uint8)
    assert FaceAugmentation(ALL, ExpectSize((1, 1)))(image, 0).shape == (1, 1, 3)


def test_erasing_replaces_a_box_by_uniform_pixels_and_keeps_the_rest():
    image, settings = np.full((*SIZE, 3), 100, np.uint8), AugmentationSettings(erasing_area=(0.2, 0.4))
    erased = []
    for seed in range(50):
        result = erase_box(image, settings, np.random.default_rng(seed))
        # All three channels keep their value in one of 256^3 pixels.
        top, left, height, width = box_of((result != 100).any(2))
        assert (height + 0.5) * (width + 0.5) / 2400 >= 0.2
        assert (height - 0.5) * (width - 0.5) / 2400 <= 0.4
        erased.append(result[top : top + height, left : left + width])
    values = np.concatenate([pixels_hw3.ravel() for pixels_hw3 in erased])
    assert abs(values.mean() - 127.5) < 1
    assert (values.min(), values.max()) == (0, 255)


@pytest.mark.parametrize("scale", [0.2, 0.55, 1.0])
@pytest.mark.parametrize(("down", "up"), [(0, 4), (1, 3), (2, 2), (3, 0), (4, 1)])
def test_low_resolution_is_two_plain_calls_of_opencv(scale, down, up):
    random = SimpleNamespace(uniform=lambda *_: scale, integers=lambda *_, **__: np.array([down, up]))
    image = noise()
    small = cv2.resize(image, (int(60 * scale), int(40 * scale)), interpolation=INTERPOLATIONS[down])
    expected = cv2.resize(small, (60, 40), interpolation=INTERPOLATIONS[up])
    np.testing.assert_array_equal(lower_resolution(image, AugmentationSettings(), random), expected)


def detail(image_HW3: np.ndarray) -> float:
    """Returns the energy of the upper half of the horizontal and vertical frequencies."""
    spectrum = np.fft.fftshift(np.abs(np.fft.fft2(image_HW3.mean(2))) ** 2)
    height, width = spectrum.shape
    spectrum[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 0
    return float(spectrum.sum())


def test_low_resolution_has_an_effect_after_resizing():
    # Of the 112 pixels the network sees 40 x 60, and half of those remain.
    settings = AugmentationSettings(**{**OFF, "low_resolution": 1.0}, low_resolution_scale=(0.4, 0.5))
    plain, image = Resize(SIZE), noise(112, 112)
    sharp = detail(plain(image, 0))
    details = [detail(FaceAugmentation(settings, plain)(image, seed)) for seed in range(40)]
    # A nearest-pixel interpolation up adds edges, so that only the median is certain.
    assert np.median(details) < 0.6 * sharp


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize(
    ("factors", "rounding"),
    [((0.5, 1, 1), 0.51), ((1, 1.5, 1), 0.8), ((1, 1, 0.0), 0.8), ((1, 1, 1.4), 0.8), ((1.5, 0.7, 1.5), 2.5)],
)
def test_colour_jitter_has_the_formulas_of_torchvision(order, factors, rounding):
    given = iter(factors)
    random = SimpleNamespace(uniform=lambda *_: next(given), permutation=lambda _: order)
    result = jitter_colours(smooth(), AugmentationSettings(), random)
    # torchvision does not round numbers; ours are rounded after each change, the grey mean and OpenCV's matrix too.
    image_3HW = torch.from_numpy(smooth()).permute(2, 0, 1) / 255
    for number in order:
        change = getattr(functional, ("adjust_brightness", "adjust_contrast", "adjust_saturation")[number])
        image_3HW = change(image_3HW, factors[number])
    assert np.abs(result - 255 * image_3HW.permute(1, 2, 0).numpy()).max() <= rounding


def test_colour_factors_lie_between_their_limits():
    settings = AugmentationSettings(brightness=0.2, contrast=0, saturation=0)
    grey = np.full((*SIZE, 3), 100, np.uint8)
    values = {int(jitter_colours(grey, settings, np.random.default_rng(seed))[0, 0, 0]) for seed in range(400)}
    assert (min(values), max(values)) == (80, 120)
    strong = AugmentationSettings(brightness=3.0, contrast=0, saturation=0)
    values = {int(jitter_colours(grey, strong, np.random.default_rng(seed))[0, 0, 0]) for seed in range(400)}
    assert min(values) < 10
    assert max(values) == 255


def fixed(angle: float, down: float, right: float) -> SimpleNamespace:
    return SimpleNamespace(uniform=lambda *_: np.array([angle, down, right]))


def test_a_shift_by_whole_pixels_moves_them():
    image, settings = noise(), AugmentationSettings(rotation=0, shift=0.1)
    expected = np.zeros_like(image)
    expected[4:, :-3] = image[:-4, 3:]
    np.testing.assert_array_equal(rotate_and_shift(image, settings, fixed(0, 1.0, -0.5)), expected)


def test_a_rotation_turns_about_the_centre():
    settings = AugmentationSettings(rotation=90, shift=0)
    for height, width in ((40, 40), (41, 41)):
        image = noise(height, width)
        np.testing.assert_array_equal(rotate_and_shift(image, settings, fixed(1.0, 0, 0)), np.rot90(image))
        np.testing.assert_array_equal(rotate_and_shift(image, settings, fixed(-1.0, 0, 0)), np.rot90(image, -1))


def test_rotation_and_shift_are_one_bilinear_look_up():
    image, settings = smooth(), AugmentationSettings(rotation=20, shift=0.1)
    result = rotate_and_shift(image, settings, fixed(0.5, 0.3, -0.7))
    expected = np.zeros(image.shape)
    cos, sin = np.cos(np.radians(10)), np.sin(np.radians(10))
    for y in range(40):
        for x in range(60):
            dy, dx = y - 19.5 - 0.3 * 4, x - 29.5 + 0.7 * 6
            source_y, source_x = cos * dy + sin * dx + 19.5, cos * dx - sin * dy + 29.5
            top, left = int(np.floor(source_y)), int(np.floor(source_x))
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= row < 40 and 0 <= column < 60:
                    weight = (1 - abs(source_y - row)) * (1 - abs(source_x - column))
                    expected[y, x] += weight * image[row, column]
    # OpenCV rounds positions to 1/32 of a pixel; at the black border that is up to 255 / 32 for each axis.
    difference = np.abs(result - expected)
    assert difference.max() <= 16
    assert (difference > 2).mean() < 0.05


def test_an_image_of_another_size_is_a_bad_image():
    with pytest.raises(BadImageError, match=r"20 x 20 pixels .* expected 40 x 60"):
        augmentation(geometric=1.0)(noise(20, 20), 0)


def test_an_image_too_long_to_rotate_is_a_bad_image_under_every_seed():
    settings = AugmentationSettings(**{**OFF, "geometric": 0.5})
    for seed in range(8):
        with pytest.raises(BadImageError, match=r"40000 x 1 pixels; rotation allows 32766"):
            FaceAugmentation(settings, Resize((8, 8)))(np.zeros((40_000, 1, 3), np.uint8), seed)
    longest = np.zeros((32_766, 1, 3), np.uint8)
    assert all(FaceAugmentation(settings, Resize((8, 8)))(longest, seed).shape == (8, 8, 3) for seed in range(8))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("crop=1.2", r"data\.augment\.crop: 1\.2: input should be less than or equal to 1"),
        ("erasing=-0.1", r"data\.augment\.erasing: -0\.1: input should be greater than or equal to 0"),
        ("shift=2", r"data\.augment\.shift"),
        ("brightness=-1", r"data\.augment\.brightness"),
        ("crop_area=[0.6, 0.2]", r"data\.augment\.crop_area: the lower limit 0\.6 comes first"),
        ("crop_aspect=[0, 1]", r"data\.augment\.crop_aspect"),
        ("low_resolution_scale=[0.5, 1.5]", r"data\.augment\.low_resolution_scale"),
        ("erasing_aspect=[2, 1]", r"data\.augment\.erasing_aspect: the lower limit 2 comes first"),
        ("blur=0.5", r"data\.augment\.blur: unknown key; allowed: brightness, contrast, crop"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(tmp_path, setting, message):
    path = tmp_path / "train.yaml"
    stages = "stages: [{name: plain, method: {name: classify}, epochs: 1}]"
    path.write_text(f"out: run\ndata: {{kind: record, train: train.rec}}\n{stages}\n")
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, TrainConfig, [f"data.augment.{setting}"])
    assert "\n" not in str(caught.value)


def test_augmented_images_are_not_cached():
    with pytest.raises(ValidationError, match="cache_on_device: augmented images are not cached; set it to false"):
        RecordData(kind="record", train="train.rec", augment={}, cache_on_device=True)


def open_record(face_rec, **settings: object):
    fraction = {"validation_fraction": 0.3, "test_fraction": 0.2}
    return RecordData(kind="record", train=face_rec, image_size=(16, 16), **fraction, **settings).open(0)


def test_only_training_images_are_augmented_and_the_record_is_opened_once(face_rec, monkeypatch):
    plain, opened = open_record(face_rec), []
    original = records.FaceRecord
    monkeypatch.setattr(records, "FaceRecord", lambda path: opened.append(path) or original(path))
    data = open_record(face_rec, augment=ALL)
    assert opened == [face_rec]
    assert data.train.dataset.labels is data.train_plain.dataset.labels
    assert data.fingerprint() == plain.fingerprint()
    assert plain.train is plain.train_plain
    splits = [
        (data.train_plain, plain.train),
        *((data.evaluation[name], plain.evaluation[name]) for name in plain.evaluation),
    ]
    assert len(splits) == 3
    for split, expected in splits:
        for index in split.members.tolist():
            assert_same(split.dataset[SampleRequest(index, 5)], expected.dataset[SampleRequest(index, 5)])
    for index in data.train.members.tolist():
        sample, before = (split.dataset[SampleRequest(index, 5)] for split in (data.train, data.train_plain))
        if isinstance(before, BadImage):
            assert sample == before
        else:
            assert sample[1:] == before[1:]
            assert not np.array_equal(sample.image_HW3, before.image_HW3)


def assert_same(sample, expected) -> None:
    assert sample[1:] == expected[1:]
    np.testing.assert_array_equal(sample[0], expected[0])


def pixels(batches) -> list[tuple]:
    return [(batch.seed_B.tolist(), batch.image_BHW3.tolist()) for batch in batches]


def test_images_depend_neither_on_workers_nor_on_ranks(face_rec):
    dataset = open_record(face_rec, augment=ALL).train.dataset
    sampler = InstanceSampler(dataset.labels, 8, seed=3)
    alone = pixels(Loader(dataset, sampler).batches(1))
    assert pixels(Loader(pickle.loads(pickle.dumps(dataset)), sampler).batches(1)) == alone
    loader = Loader(dataset, sampler, workers=1, start_method="fork")
    assert pixels(loader.batches(1)) == alone
    loader.close()
    ranks = [pixels(Loader(dataset, sampler, rank=rank, world=2).batches(1)) for rank in range(2)]
    joined = [tuple(left + right for left, right in zip(*both, strict=True)) for both in zip(*ranks, strict=True)]
    assert joined == alone


def test_samplers_of_two_draws_augment_one_image_differently(face_rec):
    data = open_record(face_rec, augment=ALL)
    seeds = []
    for draw in range(2):
        sampler = build_sampler(SamplerSpec("instance", draw=draw), data, batch=8, seed=0, epochs=1)
        index_T, seed_T = sampler.epoch_requests(0)
        seeds.append(dict(zip(index_T.tolist(), seed_T.tolist(), strict=True)))
    shared = [index for index in seeds[0].keys() & seeds[1].keys() if index not in (3, 19)]
    assert shared
    for index in shared:
        first, second = (data.train.dataset[SampleRequest(index, seed[index])].image_HW3 for seed in seeds)
        assert not np.array_equal(first, second)

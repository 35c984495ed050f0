"""AutoAugment, RandAugment and Cutout: functions of image and seed, equal to plain calls of torchvision."""

import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import v2

from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.data.batch import SampleRequest
from facelt.data.cifar import CifarData
from facelt.data.decode import BadImageError
from facelt.data.loader import Loader
from facelt.data.policies import PolicyAugmentation, PolicySettings, cut_out
from facelt.data.samplers import InstanceSampler
from facelt.data.transforms import ExpectSize, PadCropRotate
from facelt.errors import UserError
from tests.data.cifar_folder import write_cifar

MEAN = (0.5, 0.25, 0.75)
COLOUR = (128, 64, 191)  # 255 MEAN, rounded to even
ALL = {"policy": "randaugment", "cutout": 8}


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def augmentation(pad=4, rotation=0.0, flip=True, **settings):
    return PolicyAugmentation(
        PolicySettings(**settings), ExpectSize((32, 32)), PadCropRotate(pad, rotation), flip, MEAN
    )


def moved(pixels_HW3, seed):
    """Crop and flip by the bits of the seed, pixel by pixel."""
    down, right = (((seed >> shift & 0xFFFF) * 9 >> 16) - 4 for shift in (1, 17))
    result = np.zeros_like(pixels_HW3)
    for y in range(32):
        for x in range(32):
            if 0 <= y + down < 32 and 0 <= x + right < 32:
                result[y, 31 - x if seed & 1 else x] = pixels_HW3[y + down, x + right]
    return result


SEEDS = [0, 1, 2**40 + 77_777_777, 2**62 + 123_456_789_123]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"policy": "autoaugment"}, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128)),
        ({"policy": "randaugment"}, v2.RandAugment(fill=128)),
        (
            {"policy": "randaugment", "operations": 3, "magnitude": 5},
            v2.RandAugment(num_ops=3, magnitude=5, fill=128),
        ),
    ],
)
def test_a_policy_is_torchvisions_after_crop_and_flip(settings, plain, seed):
    before = torch.get_rng_state()
    changed = augmentation(**settings)(image(), seed)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.rand(2)  # the place of the square
        expected = plain(torch.from_numpy(moved(image(), seed)).permute(2, 0, 1)).permute(1, 2, 0)
    np.testing.assert_array_equal(changed, expected.numpy())
    np.testing.assert_array_equal(augmentation(**settings)(image(), seed), changed)


def test_a_policy_changes_images_by_their_seed():
    changed = [augmentation(pad=0, flip=False, policy="autoaugment")(image(), seed).tobytes() for seed in range(40)]
    assert len(set(changed)) > 20


@pytest.mark.parametrize("side", [1, 7, 16])
def test_cutout_fills_a_square_that_may_lie_partly_outside(side):
    for down, right in ((0.0, 0.0), (0.5, 0.5), (0.999, 0.2), (0.1, 0.999)):
        pixels = image()
        cut_out(pixels, side, (down, right), MEAN)
        top, left = int(32 * down) - side // 2, int(32 * right) - side // 2
        for y in range(32):
            for x in range(32):
                inside = top <= y < top + side and left <= x < left + side
                assert tuple(pixels[y, x]) == (COLOUR if inside else tuple(image()[y, x]))


def test_the_centres_of_cutout_are_spread_over_the_image():
    augment = augmentation(pad=0, flip=False, cutout=1)
    grey = np.full((32, 32, 3), 7, np.uint8)
    places = [np.argwhere((augment(grey, seed) != 7).any(2))[0] for seed in range(600)]
    rows, columns = np.array(places).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 31, 0, 31)
    assert abs(rows.mean() - 15.5) < 1.5
    assert abs(columns.mean() - 15.5) < 1.5


def test_the_square_of_cutout_has_one_place_with_and_without_a_policy():
    for seed in SEEDS:
        alone = augmentation(cutout=16)(image(), seed)
        square = (alone != moved(image(), seed)).any(2)
        assert square.any()
        both = augmentation(policy="autoaugment", cutout=16)(image(), seed)
        assert (both[square] == COLOUR).all()


def test_the_image_that_was_read_stays_as_it_is():
    pixels = image()
    augmentation(pad=0, flip=False, cutout=32)(pixels, 0)
    np.testing.assert_array_equal(pixels, image())


def test_an_image_of_another_size_is_a_bad_image():
    with pytest.raises(BadImageError, match=r"expected 32 x 32"):
        augmentation(cutout=4)(np.zeros((31, 32, 3), np.uint8), 0)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, 10, per_class=12, test_per_class=3)
    return {"kind": "cifar", "root": root, "classes": 10, "imbalance": 4, "cache_on_device": False}


def test_only_training_images_are_augmented(section):
    plain, data = (CifarData(**section, augment=augment).open(0) for augment in (None, ALL))
    assert data.fingerprint() == plain.fingerprint()
    assert data.train.dataset.labels is data.train_plain.dataset.labels
    # The workers have cropped and mirrored the images already.
    assert (data.preprocessing.flip, data.preprocessing.augment) == (False, None)
    splits = [(data.train_plain, plain.train), (data.evaluation["test"], plain.evaluation["test"])]
    for split, expected in splits:
        for index in split.members.tolist():
            sample, stored = (chosen.dataset[SampleRequest(index, 5)] for chosen in (split, expected))
            np.testing.assert_array_equal(sample.image_HW3, stored.image_HW3)
    for index in data.train.members.tolist():
        sample, before = (split.dataset[SampleRequest(index, 5)] for split in (data.train, data.train_plain))
        assert sample[1:] == before[1:]
        assert not np.array_equal(sample.image_HW3, before.image_HW3)


def pixels_of(batches):
    return [(batch.seed_B.tolist(), batch.image_BHW3.tolist()) for batch in batches]


def test_images_depend_neither_on_workers_nor_on_ranks(section):
    dataset = CifarData(**section, augment=ALL).open(0).train.dataset
    sampler = InstanceSampler(dataset.labels, 40, seed=3)
    alone = pixels_of(Loader(dataset, sampler).batches(1))
    assert pixels_of(Loader(pickle.loads(pickle.dumps(dataset)), sampler).batches(1)) == alone
    loader = Loader(dataset, sampler, workers=1, start_method="fork")
    assert pixels_of(loader.batches(1)) == alone
    loader.close()
    ranks = [pixels_of(Loader(dataset, sampler, rank=rank, world=2).batches(1)) for rank in range(2)]
    joined = [tuple(left + right for left, right in zip(*both, strict=True)) for both in zip(*ranks, strict=True)]
    assert joined == alone


def test_augmented_images_are_not_cached(section):
    with pytest.raises(ValidationError, match="cache_on_device: augmented images are not cached; set it to false"):
        CifarData(**{**section, "cache_on_device": True}, augment=ALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.augment={}"], r"augment: changes nothing; set policy or cutout, or remove the section"),
        (["data.augment.policy=trivial"], r"data\.augment\.policy: .*trivial"),
        (["data.augment.cutout=-1"], r"data\.augment\.cutout: -1"),
        (["data.augment.magnitude=31"], r"data\.augment\.magnitude: 31"),
        (["data.augment.crop=0.5"], r"data\.augment\.crop: unknown key"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(tmp_path, settings, message):
    path = tmp_path / "train.yaml"
    stages = "stages: [{name: plain, method: {name: classify}, epochs: 1}]"
    path.write_text(f"out: run\ndata: {{kind: cifar, root: x, cache_on_device: false}}\n{stages}\n")
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, TrainConfig, settings)
    assert "\n" not in str(caught.value)

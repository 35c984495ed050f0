"""CIFAR runs: training images, evaluation splits, and equal runs with cached and streamed images."""

import json

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional
from typer.testing import CliRunner

from facelt.cli.main import app
from facelt.config.train import TrainConfig
from facelt.data.batch import Batch, SampleRequest
from facelt.data.cifar import CifarData
from facelt.errors import UserError
from tests.data.cifar_folder import write_cifar

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Returns a folder of CIFAR-10 with 12 training and 3 test images per class, and its contents."""
    root = tmp_path_factory.mktemp("cifar")
    return root, write_cifar(root, 10, per_class=12, test_per_class=3)


@pytest.fixture
def section(cifar) -> dict:
    return {"kind": "cifar", "root": str(cifar[0]), "classes": 10, "imbalance": 4}


def test_the_splits_and_the_counts(cifar, section):
    _, splits = cifar
    data = CifarData.model_validate(section).open(seed=0)
    assert data.train_counts.tolist() == [int(12 * (1 / 4) ** (c / 9) + 1e-9) for c in range(10)]
    assert list(data.evaluation) == ["test"]
    assert data.evaluation["test"].labels.tolist() == splits["test"][1].tolist()
    assert data.train_plain is data.train
    whole = CifarData.model_validate({**section, "imbalance": 1}).open(seed=0)
    assert whole.train_counts.tolist() == [12] * 10
    assert whole.fingerprint() != data.fingerprint()


def test_training_images_are_moved_mirrored_and_normalised_and_others_only_normalised(cifar, section):
    _, splits = cifar
    image_BHW3 = torch.from_numpy(splits["train"][0][:6])
    # Bit 0 mirrors; the next 16 bits are the offset down and 16 more the offset right, in nine steps from -4.
    draws = [
        (down << 17 | up << 1 | flip, up, down, flip) for up, down, flip in ((0, 0, 0), (65535, 0, 1), (0, 65535, 0))
    ]
    draws += [(32768 << 17 | 32768 << 1 | flip, 32768, 32768, flip) for flip in (0, 1, 1)]
    seed_B = torch.tensor([draw[0] for draw in draws])
    batch = Batch(image_BHW3, torch.zeros(6), torch.arange(6), seed_B)
    preprocessing = CifarData.model_validate(section).open(seed=0).preprocessing
    trained, evaluated = preprocessing.for_training(batch), preprocessing.for_evaluation(batch)
    for index, (_, y, x, flip) in enumerate(draws):
        pixels_3HW = image_BHW3[index].permute(2, 0, 1)
        plain = functional.normalize(pixels_3HW / 255, MEAN, STD)
        torch.testing.assert_close(evaluated[index], plain, atol=1e-5, rtol=0)
        corner = (y * 9 // 65536, x * 9 // 65536)
        moved = functional.crop(functional.pad(pixels_3HW, [4] * 4), *corner, 32, 32)
        moved = functional.horizontal_flip(moved) if flip else moved
        torch.testing.assert_close(trained[index], functional.normalize(moved / 255, MEAN, STD), atol=1e-5, rtol=0)


def test_a_run_is_equal_with_cached_and_streamed_images(section, train, plain_stage, tmp_path, assert_same_weights):
    changes = {"stages": plain_stage(epochs=2, embedding="none"), "optim": {"lr": 0.05, "batch": 16}}
    cached = train(tmp_path / "kept", data={**section, "rotation": 15}, **changes)
    read = train(tmp_path / "read", data={**section, "rotation": 15, "cache_on_device": False}, **changes)
    still = train(tmp_path / "frozen", data={**section, "pad": 0}, **changes)
    weights = "plain/model.safetensors"
    assert_same_weights(cached / weights, read / weights)
    with pytest.raises(AssertionError):
        assert_same_weights(cached / weights, still / weights)
    done = CliRunner().invoke(app, ["evaluate", "--checkpoint", str(cached), "--split", "test", "--json"])
    assert done.exit_code == 0, done.exception
    assert sum(json.loads(done.stdout)["images"].values()) == 30


def test_a_resumed_run_on_augmented_images_equals_an_uninterrupted_one(
    section, train, plain_stage, tmp_path, interrupt, metrics, assert_same_weights
):
    augment = {"policy": "autoaugment", "cutout": 8}
    data = {**section, "cache_on_device": False, "augment": augment}
    changes = {"stages": plain_stage(epochs=2, embedding="none"), "optim": {"lr": 0.05, "batch": 16}, "data": data}
    whole = train(tmp_path / "whole", **changes)
    with pytest.raises(interrupt("classify", 3)):
        train(tmp_path / "run", **changes, checkpoint_every=2)
    folder = train(tmp_path / "run", resume=True, **changes, checkpoint_every=2)
    assert_same_weights(whole / "plain/model.safetensors", folder / "plain/model.safetensors")
    assert metrics(folder) == metrics(whole)


@pytest.fixture
def unknown(tmp_path):
    """Returns a folder of seven images of different sizes, some in subfolders, and their pixels in path order."""
    random, images = np.random.default_rng(5), []
    for number, path in enumerate(["a/1.png", "a/2.png", "b c/0.png", "x.png", "y.png", "z 1.png", "z.png"]):
        pixels = random.integers(0, 256, ((32, 32, 3), (64, 40, 3))[number % 2], dtype=np.uint8)
        (tmp_path / "unknown" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "unknown" / path), pixels[:, :, ::-1])
        images.append(pixels)
    return tmp_path / "unknown", images


def test_unknown_images_are_splits_and_the_first_of_all_are_for_tuning(cifar, section, unknown):
    folder, images = unknown
    data = CifarData.model_validate({**section, "open_set": str(folder), "tuning": 2}).open(seed=0)
    members = {name: split.members.tolist() for name, split in data.evaluation.items()}
    assert members == {"test": [*range(2, 30)], "test_tuning": [0, 1], "open": [*range(2, 7)], "open_tuning": [0, 1]}
    for name in ("open", "open_tuning"):
        split = data.evaluation[name]
        assert set(split.labels.tolist()) == {-1}
        for index in split.members.tolist():
            sample = split.dataset[SampleRequest(index, 0)]
            assert sample.image_HW3.shape == (32, 32, 3)
            # Images of CIFAR's size are unchanged; resized ones keep their mean colour.
            if images[index].shape == (32, 32, 3):
                assert np.array_equal(sample.image_HW3, images[index])
            else:
                colour = images[index].mean((0, 1))
                np.testing.assert_allclose(sample.image_HW3.mean((0, 1)), colour, atol=3)
    whole = CifarData.model_validate({**section, "open_set": str(folder), "tuning": 0}).open(seed=0)
    assert {name: len(split.members) for name, split in whole.evaluation.items()} == {"test": 30, "open": 7}
    assert whole.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("tuning", [7, 1000])
def test_tuning_must_leave_some(section, unknown, tuning):
    config = CifarData.model_validate({**section, "open_set": str(unknown[0]), "tuning": tuning})
    with pytest.raises(
        UserError, match=rf"^data\.tuning: {tuning} of 30 test images and 7 in .* leave none to test; lower it"
    ):
        config.open(seed=0)


def test_the_recipe_is_cifar_100_at_the_published_settings(root):
    from facelt.config.loading import load_config

    config = load_config(root / "configs/cifar100_lt/base.yaml", TrainConfig)
    data, (stage,) = config.data, config.stages
    assert (data.classes, data.imbalance, data.profile, data.pad, data.rotation, data.flip) == (
        100,
        100,
        "exponential",
        4,
        0,
        True,
    )
    assert (np.array(data.mean) == MEAN).all()
    assert (np.array(data.std) == STD).all()
    assert (config.optim.lr, config.optim.batch, config.optim.weight_decay, config.optim.momentum) == (
        0.1,
        128,
        2e-4,
        0.9,
    )
    assert (stage.epochs, stage.schedule.milestones, stage.schedule.gamma, stage.schedule.warmup_epochs) == (
        200,
        (0.8, 0.9),
        0.01,
        5,
    )

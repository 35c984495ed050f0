"""Training on augmented images: a resumed run equals an uninterrupted one; passes and validation see plain images."""

import numpy as np
import pytest
import torch

from facelt.data.batch import SampleRequest
from facelt.data.records import RecordData
from facelt.data.transforms import Preprocessing

AUGMENT = {"crop": 0.5, "low_resolution": 0.5, "photometric": 0.5, "geometric": 0.5, "erasing": 0.5}


@pytest.fixture
def augmented_data(recipe, tmp_path) -> dict:
    """The recipe's data section with augmentation."""
    return {**recipe(tmp_path)["data"], "augment": AUGMENT}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    finished_run, augmented_data, train, tmp_path, interrupt, metrics, assert_same_weights
):
    whole = train(tmp_path / "whole", data=augmented_data)
    with pytest.raises(interrupt("dynamic_meta", 3)):
        train(tmp_path / "run", data=augmented_data, checkpoint_every=2)
    folder = train(tmp_path / "run", resume=True, data=augmented_data, checkpoint_every=2)
    for stage in ("plain", "oltr"):
        assert_same_weights(whole / stage / "model.safetensors", folder / stage / "model.safetensors")
    assert metrics(folder) == metrics(whole)
    assert metrics(whole) != metrics(finished_run)


def test_the_memory_pass_and_validation_see_plain_images(augmented_data, train, tmp_path, monkeypatch):
    batches = {"for_training": [], "for_evaluation": []}
    for name, seen in batches.items():
        original = getattr(Preprocessing, name)
        record = lambda self, batch, seen=seen, original=original: seen.append(batch) or original(self, batch)  # noqa: E731
        monkeypatch.setattr(Preprocessing, name, record)
    train(tmp_path / "run", data=augmented_data)
    dataset = RecordData(**{**augmented_data, "augment": None}).open(0).train.dataset
    plain_NHW3 = torch.from_numpy(np.stack([dataset[SampleRequest(index, 0)].image_HW3 for index in range(42)]))
    evaluated, trained = (
        (torch.cat([batch.index_B for batch in seen]), torch.cat([batch.image_BHW3 for batch in seen]))
        for seen in (batches["for_evaluation"], batches["for_training"])
    )
    # The memory pass reads the training images, validation the others.
    assert set(evaluated[0].tolist()) == set(range(42))
    assert torch.equal(evaluated[1], plain_NHW3[evaluated[0]])
    # Of five changes, each with a probability of 1/2, one is made at least.
    changed_N = (trained[1] != plain_NHW3[trained[0]]).flatten(1).any(1)
    assert 0.9 < changed_N.float().mean() <= 1

"""Images cached on the device: runs are equal to streamed ones, bit by bit."""

from dataclasses import dataclass

import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.distributed.comm import rank
from facelt.errors import UserError
from facelt.methods.base import SamplerSpec
from facelt.training.loaders import build_train_loaders


@pytest.fixture
def cached_data(recipe, tmp_path) -> dict:
    """The recipe's data section with `cache_on_device`."""
    return {**recipe(tmp_path)["data"], "cache_on_device": True}


def test_a_run_equals_the_streamed_one_also_after_an_interruption(
    finished_run, cached_data, train, tmp_path, interrupt, metrics, assert_same_weights
):
    with pytest.raises(interrupt("dynamic_meta", 3)):
        train(tmp_path / "run", data=cached_data, checkpoint_every=2)
    folder = train(tmp_path / "run", resume=True, data=cached_data, checkpoint_every=2)
    for stage in ("plain", "oltr"):
        assert_same_weights(finished_run / stage / "model.safetensors", folder / stage / "model.safetensors")
    assert metrics(folder) == metrics(finished_run)


def test_too_many_images_stop_before_any_step(cached_data, train, tmp_path, monkeypatch):
    monkeypatch.setattr("facelt.data.device_cache.free_memory", lambda _: 1000)
    with pytest.raises(UserError, match=r"^data\.cache_on_device: 37 images of 32 x 32 pixels"):
        train(tmp_path / "run", data=cached_data)


def test_a_list_cannot_be_cached(recipe, tmp_path):
    data = {"kind": "list", "root": ".", "train": "list.txt", "cache_on_device": True}
    with pytest.raises(ValueError, match="cannot cache them; set it to false"):
        TrainConfig.model_validate(recipe(tmp_path, data=data))


@dataclass
class TwoStreams:
    """The part of a method that `build_train_loaders` uses."""

    def sampler_specs(self):
        return SamplerSpec("instance"), SamplerSpec("class_aware")


def batches(values: dict) -> list[tuple]:
    """Returns this rank's batches of two epochs, the first from its second step on."""
    config = TrainConfig.model_validate(values)
    data, (stage, *_) = config.data.open(config.seed), config.stages
    loaders = build_train_loaders(TwoStreams(), data, config, stage, torch.device("cpu"))
    batches_of_rank = [
        (rank(), batch.index_B.tolist(), batch.label_B.tolist(), batch.seed_B.tolist(), batch.image_BHW3.tolist())
        for epoch, start in ((0, 1), (1, 0))
        for loader in loaders
        for batch in loader.batches(epoch, start)
    ]
    for loader in loaders:
        loader.close()
    return batches_of_rank


def test_two_ranks_split_the_batches(recipe, cached_data, rank_pool, tmp_path):
    kept = rank_pool.run(batches, 2, recipe(tmp_path, data=cached_data))
    streamed = rank_pool.run(batches, 2, recipe(tmp_path))
    assert kept == streamed
    assert [batches_of_rank[0][0] for batches_of_rank in kept] == [0, 1]
    assert kept[0][0][1] != kept[1][0][1]

"""Gradient accumulation: micro-batches are the same sets of images on any number of ranks."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.data.batch import BadImage
from facelt.data.records import RecordDataset
from facelt.errors import UserError
from facelt.heads.memory import IdentityMemory
from facelt.training.loaders import micro_batch_sizes, micro_batch_slice
from facelt.training.run import run


def optim(accumulate: int, batch: int = 8) -> dict:
    return {"lr": 0.01, "batch": batch, "accumulate": accumulate}


def freeze_statistics(patch: pytest.MonkeyPatch) -> None:
    """Freezes batch-norm statistics: only then is a batch's gradient the sum of its images' gradients."""
    norm = nn.modules.batchnorm._BatchNorm
    patch.setattr(norm, "train", lambda self, mode=True: nn.Module.train(self, False))


def record_steps(patch: pytest.MonkeyPatch) -> list[tuple]:
    """Returns a list that receives (method, epoch, step, labels) of every micro-batch."""
    seen = []
    for name, kind in METHODS.items():

        def noted(self, batches, progress, original=kind.step, name=name):
            seen.append((name, progress.epoch, progress.step, batches[0].label_B.tolist()))
            return original(self, batches, progress)

        patch.setattr(kind, "step", noted)
    return seen


def assert_close(left_path: Path, right_path: Path, stage: str, atol: float) -> None:
    left, right = (load_file(folder / stage / "model.safetensors") for folder in (left_path, right_path))
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=atol, msg=f"{stage} {name}")


def test_micro_batches_give_the_gradient_of_the_whole_batch(train, plain_stage, tmp_path, metrics, monkeypatch):
    freeze_statistics(monkeypatch)
    seen = record_steps(monkeypatch)
    whole, *parts = (train(tmp_path / f"{k}", stages=plain_stage(epochs=1), optim=optim(k)) for k in (1, 2, 3))
    # Eight images are 8, 4 + 4, or 3 + 3 + 2.
    assert [len(labels) for *_, labels in seen] == [8] * 4 + [4, 4] * 4 + [3, 3, 2] * 4
    expected = [line["loss"] for line in metrics(whole) if "loss" in line]
    for folder in parts:
        assert_close(folder, whole, "plain", 1e-6)
        assert [line["loss"] for line in metrics(folder) if "loss" in line] == pytest.approx(expected, abs=1e-6)


def test_callbacks_run_for_each_micro_batch(train, recipe, finished_run, tmp_path, metrics, monkeypatch):
    sizes, original = [], IdentityMemory.update

    def noted(self, feature, label_b, is_finite):
        sizes.append(len(label_b))
        return original(self, feature, label_b, is_finite)

    monkeypatch.setattr(IdentityMemory, "update", noted)
    stage = {**recipe(tmp_path)["stages"][1], "init_from": str(finished_run / "plain"), "epochs": 1}
    folder = train(tmp_path / "run", stages=[stage], optim=optim(3))
    assert sizes == [3, 3, 2] * 4
    for line in (line for line in metrics(folder) if "loss" in line):
        assert line["loss"] == pytest.approx(line["cross_entropy"] + 0.01 * line["centroids_loss"], rel=1e-5)


def run_with_lost_image(values: dict) -> list[tuple]:
    """Runs the recipe on this rank with frozen statistics; returns its steps."""
    original = RecordDataset.__getitem__

    def lost(self, draw):
        name = self.image_name(draw[0])
        return BadImage(name, "lost") if name == "train.rec:5" else original(self, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordDataset, "__getitem__", lost)
        freeze_statistics(patch)
        seen = record_steps(patch)
        run(TrainConfig.model_validate(values))
    return seen


@pytest.fixture(scope="module")
def accumulating(recipe, tmp_path_factory):
    """accumulating(world) -> the recipe with a trainable memory, in its own folder."""
    folder = tmp_path_factory.mktemp("accumulation")

    def values(world: int) -> dict:
        made = recipe(folder / f"{world}", optim=optim(2, 18))
        made["data"]["max_bad_images"] = 1
        # Features of a network that has learnt little lie so close that reachability would enlarge what rounds.
        made["stages"][1]["method"] = {"name": "dynamic_meta", "centroid_update": "tracking", "min_distance": 0.1}
        return {**made, "stages": [{**stage, "epochs": 1} for stage in made["stages"]]}

    return values


@pytest.fixture(scope="module")
def alone(accumulating) -> list[tuple]:
    return run_with_lost_image(accumulating(1))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_accumulate_like_one_process(accumulating, alone, rank_pool, world):
    together = rank_pool.run(run_with_lost_image, world, accumulating(world))
    # All ranks make the same micro-batches; together each holds the images of the single process's.
    for rank_steps in together:
        assert [step[:3] for step in rank_steps] == [step[:3] for step in alone]
    for shares, whole in zip(zip(*together, strict=True), alone, strict=True):
        assert [label for *_, labels in shares for label in labels] == whole[3]
    assert {len(labels) for *_, labels in alone} == {8, 9}
    for stage in ("plain", "oltr"):
        assert_close(Path(accumulating(world)["out"]), Path(accumulating(1)["out"]), stage, 1e-5)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 4))
def test_every_image_is_in_one_micro_batch_whatever_the_ranks(size_W, parts):
    ends = [sum(size_W[: rank + 1]) for rank in range(len(size_W))]
    for part in range(parts):
        own = [
            list(range(end - size, end))[micro_batch_slice(size_W, rank, part, parts)]
            for rank, (size, end) in enumerate(zip(size_W, ends, strict=True))
        ]
        assert [image for images in own for image in images] == list(range(part, sum(size_W), parts))
        assert micro_batch_sizes([[size] for size in size_W], part, parts) == [[len(images)] for images in own]


def test_a_micro_batch_too_small_for_batch_norm_is_left_out(train, plain_stage, recipe, tmp_path, monkeypatch):
    """One of the first four images is lost, so the second micro-batch would have one image."""
    original, lost = RecordDataset.__getitem__, iter([True])

    def first_lost(self, draw):
        return BadImage(self.image_name(draw[0]), "lost") if next(lost, False) else original(self, draw)

    monkeypatch.setattr(RecordDataset, "__getitem__", first_lost)
    # It would read, and so lose, the image before training.
    monkeypatch.setattr(RecordDataset, "require_usable", lambda self, members: None)
    seen = record_steps(monkeypatch)
    data = {**recipe(tmp_path)["data"], "max_bad_images": 1}
    folder = train(tmp_path / "run", stages=plain_stage(epochs=1), optim=optim(2, 4), data=data)
    assert [len(labels) for *_, labels in seen] == [2] + [2, 2] * 8
    assert len(json.loads((folder / "plain/card.json").read_text())["bad_images"]) == 1


def test_too_many_micro_batches_for_the_ranks_are_refused(train, tmp_path, monkeypatch):
    monkeypatch.setattr("facelt.training.trainer.world_size", lambda: 2)
    with pytest.raises(UserError, match=r"batch: 8 is too small for 2 processes x optim.accumulate 3; each needs"):
        train(tmp_path / "run", optim=optim(3))

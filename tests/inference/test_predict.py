"""Outputs of a split beside those of one image after another, and with their columns on two ranks."""

import json

import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.module import Split, open_data
from facelt.errors import UserError
from facelt.inference.model import find_model, load_model, load_weights
from facelt.inference.predict import Reading, each_output, outputs
from facelt.training.run import build_initialized_method
from facelt.training.run_folder import RunFolder

CPU = torch.device("cpu")


def reading(batch: int = 5, allowed: int = 0) -> Reading:
    return Reading(batch, 0, CPU, BadImageTracker(allowed))


@pytest.fixture(scope="module", params=["plain", "oltr"])
def model(request, finished_run):
    return load_model(finished_run / request.param, CPU)


@pytest.fixture(scope="module")
def data(finished_run):
    config = load_model(finished_run, CPU).config
    return open_data(config.data, config.seed)


def test_outputs_are_those_of_each_image_alone(model, data):
    split, method = data.evaluation["validation"], model.method
    found = outputs(method, split, data.preprocessing, reading())
    assert found.label_N.tolist() == split.labels.tolist()
    assert found.index_N.tolist() == split.members.tolist()
    logits, reachability = [], []
    with torch.no_grad():
        for member in split.members.tolist():
            image = torch.from_numpy(split.dataset[(member, 0)].image_HW3).permute(2, 0, 1)[None] / 127.5 - 1
            logits.append(method.logits(image).local_BC[0])
            if model.card["stage"] == "oltr":
                centroid_CD = method.memory.centroid_CD[method.memory.filled_C]
                reachability.append(10 / torch.cdist(method.network(image).double(), centroid_CD.double()).min())
    assert found.logit_NC.dtype == torch.float32
    assert torch.allclose(found.logit_NC, torch.stack(logits), atol=1e-4)
    if reachability:
        assert torch.allclose(found.reachability_N, torch.stack(reachability).float(), rtol=1e-3)
    else:
        assert found.reachability_N is None


def test_the_method_is_left_in_its_mode_also_where_the_pass_breaks_off(model, data):
    model.method.train()
    outputs(model.method, data.evaluation["validation"], data.preprocessing, reading())
    assert model.method.training
    passing = each_output(model.method, data.evaluation["validation"], data.preprocessing, reading())
    next(passing)
    assert not model.method.training
    passing.close()
    assert model.method.training
    model.method.eval()


def test_a_split_without_an_image_has_no_outputs(model, data):
    split = data.evaluation["validation"]
    assert outputs(model.method, Split(split.dataset, split.members[:0]), data.preprocessing, reading()) is None


def test_bad_images_are_left_out_or_stop(model, data, monkeypatch):
    split = data.evaluation["validation"]
    whole, first = split.dataset.payload, int(split.members[0])
    monkeypatch.setattr(
        split.dataset, "payload", lambda index: b"nothing" if index == first else whole(index), raising=False
    )
    with pytest.raises(UserError, match=r"1 images cannot be used"):
        outputs(model.method, split, data.preprocessing, reading())
    found = outputs(model.method, split, data.preprocessing, reading(allowed=1))
    assert found.index_N.tolist() == split.members[1:].tolist()


def outputs_of_a_rank(folder):
    """What one rank of several gets from its columns of the run's last model."""
    card = json.loads((find_model(folder) / "card.json").read_text())
    config = TrainConfig.model_validate(card["config"])
    data = open_data(config.data, config.seed)
    method = build_initialized_method(config, config.stages[-1], data, RunFolder(folder)).eval()
    load_weights(find_model(folder) / "model.safetensors", method)
    return [
        None if value is None else value.numpy()
        for value in outputs(method, data.evaluation["validation"], data.preprocessing, reading())
    ]


def test_two_ranks_get_the_outputs_of_one(finished_run, data, rank_pool):
    alone = outputs(load_model(finished_run, CPU).method, data.evaluation["validation"], data.preprocessing, reading())
    for rank in rank_pool.run(outputs_of_a_rank, 2, finished_run):
        for mine, theirs in zip(alone, rank, strict=True):
            assert torch.allclose(mine, torch.from_numpy(theirs), rtol=1e-3, atol=1e-4)

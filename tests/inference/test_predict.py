"""Predictions for a split compared with those for single images, and on two ranks that share the classes."""

import json
import re

import numpy as np
import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.kind import Split
from facelt.errors import UserError
from facelt.inference.model import find_model_folder, load_model, load_weights
from facelt.inference.predict import EvalLoaderConfig, OpenSetPredictions, Predictions, Predictor, predict, predict_all
from facelt.inference.sources import open_image_source
from facelt.training.run import build_initialized_method
from facelt.training.run_folder import RunFolder

CPU = torch.device("cpu")


FIELDS = ("label", "index", "logits", "reachability", "prediction")


def predictor(method, data, allowed: int = 0) -> Predictor:
    return Predictor(method, data.preprocessing, EvalLoaderConfig(5, 0, CPU, BadImageTracker(allowed)))


def outputs(method, split, data, allowed: int = 0) -> Predictions:
    return predict_all(predictor(method, data, allowed), split, FIELDS)


@pytest.fixture(scope="module", params=["plain", "oltr"])
def model(request, finished_run):
    return load_model(finished_run / request.param, CPU)


@pytest.fixture(scope="module")
def data(finished_run):
    config = load_model(finished_run, CPU).config
    return config.data.open(config.seed)


def test_outputs_are_those_of_each_image_alone(model, data):
    split, method = data.evaluation["validation"], model.method
    result = outputs(method, split, data)
    assert result.label_N.tolist() == split.labels.tolist()
    assert result.index_N.tolist() == split.members.tolist()
    logits, reachability = [], []
    with torch.no_grad():
        for member in split.members.tolist():
            image = torch.from_numpy(split.dataset[(member, 0)].image_HW3).permute(2, 0, 1)[None] / 127.5 - 1
            logits.append(method.logits(image).local_BC[0])
            if model.card["stage"] == "oltr":
                centroid_CD = method.memory.centroid_CD[method.memory.filled_C]
                reachability.append(10 / torch.cdist(method.network(image).double(), centroid_CD.double()).min())
    assert result.logit_NC.dtype == torch.float32
    assert torch.allclose(result.logit_NC, torch.stack(logits), atol=1e-4)
    if reachability:
        assert torch.allclose(result.reachability_N, torch.stack(reachability).float(), rtol=1e-3)
    else:
        assert result.reachability_N is None


def test_the_method_is_left_in_its_mode_also_where_the_pass_breaks_off(model, data):
    model.method.train()
    outputs(model.method, data.evaluation["validation"], data)
    assert model.method.training
    passing = predict(predictor(model.method, data), data.evaluation["validation"], FIELDS)
    next(passing)
    assert not model.method.training
    passing.close()
    assert model.method.training
    model.method.eval()


def test_a_split_without_an_image_has_empty_fields(model, data):
    split = data.evaluation["validation"]
    fields = (*FIELDS, "features", *model.method.kinds, "embedding_reachability")
    result = predict_all(predictor(model.method, data), Split(split.dataset, split.members[:0]), fields)
    dim = model.method.dim
    assert [len(value) for value in (result.label_N, result.index_N, result.prediction_N)] == [0, 0, 0]
    assert (result.label_N.dtype, result.prediction_N.dtype) == (torch.int64, torch.int64)
    assert result.logit_NC.shape == (0, data.num_classes)
    assert result.feature_ND.shape == (0, dim)
    assert {kind: value.shape for kind, value in result.embeddings.items()} == dict.fromkeys(
        model.method.kinds, (0, dim)
    )


def test_only_requested_fields_are_computed(model, data, monkeypatch):
    split = data.evaluation["validation"]
    monkeypatch.setattr(model.method.network, "forward", lambda *_: pytest.fail("the network ran"))
    result = predict_all(predictor(model.method, data), split, ("index",))
    assert result.index_N.tolist() == split.members.tolist()
    assert result.label_N is result.logit_NC is result.inputs is None
    with pytest.raises(ValueError, match=r"unknown fields \['logit'\]"):
        predict_all(predictor(model.method, data), split, ("logit",))


def test_embeddings_are_averaged_with_the_mirror_image_unless_declined(model, data):
    split, method = data.evaluation["validation"], model.method
    with torch.no_grad():
        for flip in (True, False):
            fields = ("features", *method.kinds, "embedding_reachability")
            result = predict_all(predictor(method, data), split, fields, flip=flip)
            for row, member in enumerate(split.members.tolist()):
                image = torch.from_numpy(split.dataset[(member, 0)].image_HW3).permute(2, 0, 1)[None] / 127.5 - 1
                expected = method.embed(image) if flip else method.embed_features(method.features(image))
                for kind in method.kinds:
                    assert torch.allclose(result.embeddings[kind][row], expected.by_kind[kind][0], atol=1e-5)
                assert torch.allclose(result.feature_ND[row], method.features(image)[0], atol=1e-4)
                if expected.reachability_B is not None:
                    assert torch.allclose(result.embedding_reachability_N[row], expected.reachability_B[0], rtol=1e-3)


def test_bad_images_are_left_out_or_stop(model, data, monkeypatch):
    split = data.evaluation["validation"]
    whole, first = split.dataset.read_encoded, int(split.members[0])
    monkeypatch.setattr(
        split.dataset, "read_encoded", lambda index: b"nothing" if index == first else whole(index), raising=False
    )
    with pytest.raises(UserError, match=r"1 images cannot be used"):
        outputs(model.method, split, data)
    result = outputs(model.method, split, data, allowed=1)
    assert result.index_N.tolist() == split.members[1:].tolist()


def outputs_of_a_rank(folder):
    """Fields on one rank of several, with its shard of the classes of the run's last model."""
    card = json.loads((find_model_folder(folder) / "card.json").read_text())
    config = TrainConfig.model_validate(card["config"])
    data = config.data.open(config.seed)
    method = build_initialized_method(config, config.stages[-1], data, RunFolder(folder)).eval()
    load_weights(find_model_folder(folder) / "model.safetensors", method)
    result = outputs(method, data.evaluation["validation"], data)
    nothing = data.evaluation["validation"]
    empty = outputs(method, Split(nothing.dataset, nothing.members[:0]), data)
    assert empty.logit_NC.shape == (0, data.num_classes)
    return result.label_N, result.index_N, result.logit_NC, result.reachability_N


def test_two_ranks_get_the_outputs_of_one(finished_run, data, rank_pool):
    alone = outputs(load_model(finished_run, CPU).method, data.evaluation["validation"], data)
    for rank in rank_pool.run(outputs_of_a_rank, 2, finished_run):
        for mine, theirs in zip(
            (alone.label_N, alone.index_N, alone.logit_NC, alone.reachability_N), rank, strict=True
        ):
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)


def test_images_below_the_threshold_and_unknown_ones_are_rejected():
    score_N, unknown_N = np.array([0.2, 0.5, 0.9, 0.9]), np.array([False, False, False, True])
    columns = [
        np.arange(4),
        np.arange(10, 14),
        np.arange(4),
        score_N,
        np.array([3, 2, 1, 0]),
        score_N,
        score_N,
        unknown_N,
    ]
    predictions = OpenSetPredictions(*columns, np.arange(8).reshape(4, 2))
    assert predictions.reject_below(0.0).tolist() == [3, 2, 1, -1]
    # At the threshold an image is accepted.
    assert predictions.reject_below(0.5).tolist() == [-1, 2, 1, -1]
    part = predictions.subset(np.array([False, True, True, False]))
    assert (part.index_N.tolist(), part.reject_below(0.6).tolist()) == ([11, 12], [-1, 1])
    assert part.expert_prediction_NK.tolist() == [[2, 3], [4, 5]]


def test_predictions_are_those_of_the_plain_network(model, data):
    result = predict_all(Predictor.of(model, 5, 0), data.evaluation["validation"], ("label", "prediction"))
    assert result.label_N.tolist() == data.evaluation["validation"].labels.tolist()
    expected = []
    with torch.no_grad():
        for member in data.evaluation["validation"].members.tolist():
            sample = data.evaluation["validation"].dataset[(member, 0)]
            image = (torch.from_numpy(sample.image_HW3).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
            expected.append(int(model.method.logits(image).local_BC.argmax()))
    assert result.prediction_N.tolist() == expected


def test_a_split_without_a_usable_image_predicts_nothing(model, folder):
    source = open_image_source(folder, model.config)
    split = Split(source.dataset, source.members[-1:])
    result = predict_all(Predictor.of(model, 5, 0, BadImageTracker(1)), split, ("label", "prediction"))
    assert (len(result.label_N), len(result.prediction_N)) == (0, 0)


def test_no_other_module_reads_images_for_a_model(root):
    """Training alone builds loaders with samplers; `predict` is the only loop over images for inference."""
    calls = {path for path in (root / "facelt").rglob("*.py") if re.search(r"\bLoader\(", path.read_text())}
    names = {str(path.relative_to(root / "facelt")) for path in calls} - {"data/loader.py"}
    assert names == {"inference/predict.py", "training/loaders.py"}

"""Verification sets: embeddings of trained models, and accuracy at each validation, on one rank and on two."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.errors import UserError
from facelt.inference.model import load_model
from facelt.inference.predict import EvalLoaderConfig, Predictor
from facelt.inference.verification import NO_BAD_IMAGES, ValidationSets, embed_verification_set, open_verification_set
from facelt.methods.base import Method
from tests.training.rank_pool import RankPool

CPU = torch.device("cpu")


def predictor(method, config, batch: int) -> Predictor:
    loader = EvalLoaderConfig(batch, 0, CPU, BadImageTracker(0, NO_BAD_IMAGES))
    return Predictor(method, config.data.preprocessing(), loader)


def embedded(model, path, kind="direct", mirrored=True) -> np.ndarray:
    """Embeddings in the order of the file, [2P,D]."""
    pairs = open_verification_set(path, model.config)
    embedding_UD = embed_verification_set(predictor(model.method, model.config, 8), pairs, kind, flip=mirrored)
    assert embedding_UD.dtype == np.float32
    assert len(embedding_UD) == len(pairs.pairs.images) == len(set(pairs.pairs.images))
    return embedding_UD[np.stack([pairs.pairs.left_P, pairs.pairs.right_P], axis=1).reshape(-1)]


def plain_features(model, path) -> torch.Tensor:
    """Features of each image and its mirror image, [2P,2,D], one image at a time in float64."""
    rows = []
    for payload in pickle.loads(path.read_bytes())[0]:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].copy()
        pixels = ((torch.from_numpy(image).permute(2, 0, 1).double() - 127.5) / 127.5).float()
        with torch.no_grad():
            rows.append(model.method.network(torch.stack([pixels, pixels.flip(2)])).double())
    return torch.stack(rows)


def plain_accuracy(embedding_ND: torch.Tensor, same: list[bool]) -> float:
    """Accuracy of arcface_torch on 20 pairs: folds of two, with the best threshold on the other 18."""
    unit_ND = embedding_ND / embedding_ND.norm(dim=1, keepdim=True)
    distances = (unit_ND[0::2] - unit_ND[1::2]).square().sum(dim=1).tolist()
    accuracies = []
    for fold in range(0, len(same), 2):
        others = [pair for pair in range(len(same)) if pair not in (fold, fold + 1)]
        counts = [sum((distances[p] < t) == same[p] for p in others) for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[int(np.argmax(counts))]
        accuracies.append(np.mean([(distances[p] < threshold) == same[p] for p in (fold, fold + 1)]))
    return float(np.mean(accuracies))


@pytest.fixture(scope="module")
def model(finished_run):
    return load_model(finished_run, CPU)


def test_with_and_without_flip_are_the_plain_computations(model, tiny_pairs):
    feature_N2D = plain_features(model, tiny_pairs)
    # arcface_torch adds both before it normalises, here they are averaged: one direction.
    for mirrored, feature_ND in ((True, feature_N2D.sum(dim=1)), (False, feature_N2D[:, 0])):
        expected_ND = (feature_ND / feature_ND.norm(dim=1, keepdim=True)).numpy()
        assert np.abs(embedded(model, tiny_pairs, mirrored=mirrored) - expected_ND).max() < 1e-5
    assert np.abs(embedded(model, tiny_pairs) - embedded(model, tiny_pairs, mirrored=False)).max() > 1e-3


def test_every_kind_is_the_models_own(model, tiny_pairs):
    direct, meta, meta_unit = (embedded(model, tiny_pairs, kind) for kind in ("direct", "meta", "meta_unit"))
    assert (np.linalg.norm(meta, axis=1) < 0.9999).any()
    assert meta / np.linalg.norm(meta, axis=1)[:, None] == pytest.approx(meta_unit, abs=1e-5)
    assert np.abs(direct - meta_unit).max() > 1e-3


def test_a_kind_the_model_does_not_make_is_refused(finished_run, model):
    model.require_kind("meta")
    plain = load_model(finished_run / "plain", CPU)
    plain.require_kind("direct")
    with pytest.raises(UserError, match=r"/plain: stage plain makes no embedding of kind 'meta', only direct"):
        plain.require_kind("meta")


def test_the_shared_sets_pass_a_network_of_their_size(recipe, real_data, tmp_path):
    from facelt.inference.model import build_method

    values = recipe(tmp_path / "run")
    config = TrainConfig.model_validate(values | {"data": values["data"] | {"image_size": [112, 112]}})
    torch.manual_seed(0)
    method = build_method(config, config.stages[0], 3).train()
    for name, images in (("lfw600_bytes.bin", 1154), ("lfw40_ndarray.bin", 79)):
        pairs = open_verification_set(real_data / "verification" / name, config)
        assert embed_verification_set(predictor(method, config, 64), pairs, "direct").shape == (images, 16)
    assert method.training
    assert isinstance(method, Method)


def test_each_validation_of_a_training_measures_the_sets(recipe, train, metrics, tiny_pairs, tmp_path):
    with_sets = train(tmp_path / "with", validation={"sets": {"tiny": str(tiny_pairs), "again": str(tiny_pairs)}})
    without = train(tmp_path / "without")
    ends = [line for line in metrics(with_sets) if "verification_tiny" in line]
    assert [(line["stage"], line["epoch"]) for line in ends] == [(s, e) for s in ("plain", "oltr") for e in (1, 2)]
    assert all(line["verification_tiny"] == line["verification_again"] for line in ends)
    assert all("validation_accuracy" in line for line in ends)
    # Measuring changes nothing: the same training, but for the figures.
    stripped = [{key: line[key] for key in line if "verification" not in key} for line in metrics(with_sets)]
    assert stripped == metrics(without)
    # A model of the last epoch gives the figure of its line, by the plain computation.
    same = pickle.loads(tiny_pairs.read_bytes())[1]
    for stage in ("plain", "oltr"):
        card = json.loads((with_sets / stage / "card.json").read_text())
        (line,) = (end for end in ends if (end["stage"], end["epoch"]) == (stage, card["best"]["epoch"]))
        feature_N2D = plain_features(load_model(with_sets / stage, CPU), tiny_pairs)
        assert line["verification_tiny"] == plain_accuracy(feature_N2D.sum(dim=1), same)
        assert card["best"]["verification_tiny"] == line["verification_tiny"]


def test_sets_can_be_added_when_training_resumes(train, metrics, tiny_pairs, tmp_path, interrupt, finished_run):
    with pytest.raises(interrupt("dynamic_meta", 1)):
        train(tmp_path / "run")
    folder = train(tmp_path / "run", resume=True, validation={"sets": {"tiny": str(tiny_pairs)}})
    assert {line["stage"] for line in metrics(folder) if "verification_tiny" in line} == {"oltr"}
    for stage in ("plain", "oltr"):
        assert (folder / stage / "model.safetensors").read_bytes() == (
            finished_run / stage / "model.safetensors"
        ).read_bytes()


def test_sets_are_measured_without_validation_images(recipe, train, metrics, tiny_pairs, tmp_path, plain_stage):
    data = recipe(tmp_path)["data"] | {"validation_fraction": 0}
    folder = train(
        tmp_path / "run", data=data, stages=plain_stage(epochs=1), validation={"sets": {"tiny": str(tiny_pairs)}}
    )
    (line,) = (line for line in metrics(folder) if "verification_tiny" in line)
    assert not [key for key in line if key.startswith("validation")]
    assert json.loads((folder / "plain/card.json").read_text())["validation"] == {
        "verification_tiny": line["verification_tiny"]
    }


def test_a_diverged_network_verifies_no_pair(recipe, tiny_pairs, tmp_path, finished_run):
    config = TrainConfig.model_validate(recipe(tmp_path, validation={"sets": {"tiny": str(tiny_pairs)}}))
    method = load_model(finished_run, CPU).method
    with torch.no_grad():
        next(method.network.parameters()).fill_(torch.nan)
    # Half the pairs are of two people, and all are taken for that.
    assert ValidationSets(config, CPU)(method) == {"verification_tiny": 0.5}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"nothing", "not a verification set"),
        ((lambda images, same: (images[:-1], same)), "39 images for 20 pairs"),
        ((lambda images, same: (images[:18], same[:9])), "there are 9 pairs, fewer than the 10 folds"),
        ((lambda images, same: (images, [False] * 20)), "none of the 20 pairs is mated"),
        ((lambda images, same: ([*images[:-1], b"no image"], same)), r"tiny\.bin:39: not a JPEG"),
        ((lambda images, same: ([*images[:-1], images[3][:200]], same)), r"tiny\.bin:39: "),
    ],
)
def test_a_set_that_cannot_be_used_stops_before_any_work(train, tiny_pairs, tmp_path, payload, reason):
    path = tmp_path / "tiny.bin"
    made = payload if isinstance(payload, bytes) else pickle.dumps(payload(*pickle.loads(tiny_pairs.read_bytes())))
    path.write_bytes(made)
    with pytest.raises(UserError, match=rf"^validation\.sets\.tiny: .*{reason}"):
        train(tmp_path / "run", validation={"sets": {"tiny": str(path)}})
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_and_of_too_many_pixels_are_refused(recipe, train, tiny_pairs, tmp_path):
    big = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    images, same = pickle.loads(tiny_pairs.read_bytes())
    (tmp_path / "tiny.bin").write_bytes(pickle.dumps(([big, *images[1:]], same)))
    sets = {"validation": {"sets": {"tiny": str(tmp_path / "tiny.bin")}}}
    with pytest.raises(UserError, match=r"tiny\.bin:0: the image is 64 x 64 pixels .*expected 32 x 32"):
        train(tmp_path / "run", **sets)
    with pytest.raises(UserError, match=r"tiny\.bin:0: 64 x 64 pixels, above the limit of 2000"):
        train(tmp_path / "run", data=recipe(tmp_path)["data"] | {"max_pixels": 2000}, **sets)


def test_a_lists_paths_are_relative_to_its_folder_or_the_root(model, tiny_pairs, tmp_path):
    images, same = pickle.loads(tiny_pairs.read_bytes())
    (tmp_path / "faces").mkdir()
    for number, payload in enumerate(images):
        (tmp_path / "faces" / f"{number}.png").write_bytes(payload)
    lines = [f"faces/{2 * pair}.png faces/{2 * pair + 1}.png {int(is_same)}" for pair, is_same in enumerate(same)]
    (tmp_path / "tiny.txt").write_text("\n".join(lines))
    expected = embedded(model, tiny_pairs)
    assert np.abs(embedded(model, tmp_path / "tiny.txt") - expected).max() < 1e-6
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "tiny.txt").write_text("\n".join(lines))
    eight = predictor(model.method, model.config, 8)
    pairs = open_verification_set(tmp_path / "lists" / "tiny.txt", model.config, root=tmp_path)
    assert np.abs(embed_verification_set(eight, pairs, "direct") - expected).max() < 1e-6
    with pytest.raises(UserError, match=r"^faces/0\.png: cannot read .*lists/faces/0\.png.*; none of the 16 images"):
        open_verification_set(tmp_path / "lists" / "tiny.txt", model.config)


def measured_by_a_rank(values: dict, folder: str) -> tuple[dict, int]:
    """Accuracy on this rank, and the number of images that passed its network."""
    config = TrainConfig.model_validate(values)
    torch.manual_seed(0)
    method = load_model(folder, CPU).method
    seen = []
    method.network.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    return ValidationSets(config, CPU)(method), sum(seen)


def test_ranks_share_the_images_and_agree(recipe, tiny_pairs, tmp_path, finished_run, rank_pool: RankPool):
    values = recipe(tmp_path, validation={"sets": {"tiny": str(tiny_pairs)}}, optim={"lr": 0.1, "batch": 6})
    alone, images = measured_by_a_rank(values, finished_run / "plain")
    answers = rank_pool.run(measured_by_a_rank, 2, values, finished_run / "plain")
    assert [figures for figures, _ in answers] == [alone] * 2
    assert sum(count for _, count in answers) == images
    assert max(count for _, count in answers) < 0.6 * images

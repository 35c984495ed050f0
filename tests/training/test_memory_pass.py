"""The dataset pass that fills the memory, compared with a plain loop."""

import cv2
import numpy as np
import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.distributed.logits import GatheredFeatures
from facelt.training.logs import RunLog
from facelt.training.run import build_initialized_method
from facelt.training.run_folder import RunFolder
from facelt.training.trainer import Trainer
from recordio_tools.face_set import FaceRecord


@pytest.fixture(scope="module")
def oltr_at_its_start(recipe, finished_run, tmp_path_factory):
    """start(update) -> (method, data): the second stage before its first step."""

    def start(update: str):
        values = recipe(tmp_path_factory.mktemp("memory") / "run")
        stage = {**values["stages"][1], "init_from": str(finished_run / "plain")}
        stage["method"] = {"name": "dynamic_meta", "centroid_update": update}
        config = TrainConfig.model_validate({**values, "stages": [stage]})
        data, folder = config.data.open(config.seed), RunFolder.create(config, resume=False)
        torch.manual_seed(3)
        method = build_initialized_method(config, config.stages[0], data, folder)
        log = RunLog(folder.metrics, folder.tensorboard)
        trainer = Trainer(config, config.stages[0], method, data, folder, log, torch.device("cpu"))
        trainer._run_dataset_passes()
        log.close()
        return method, data

    return start


@pytest.mark.parametrize("update", ["released", "tracking"])
def test_centroids_are_the_means_of_the_training_features(oltr_at_its_start, tiny_faces, update):
    method, data = oltr_at_its_start(update)
    method.eval()
    features: dict[int, list[np.ndarray]] = {}
    with FaceRecord(tiny_faces) as record, torch.no_grad():
        for member in data.train.members.tolist():
            image = cv2.imdecode(np.frombuffer(record.read(int(record.image_keys[member])).payload, np.uint8), 1)
            pixels = (image[:, :, ::-1].astype(np.float64) / 255 - 0.5) / 0.5
            image_13HW = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]
            features.setdefault(int(record.labels[member]), []).append(method.network(image_13HW)[0].double().numpy())
    assert sorted(features) == [0, 1, 2, 3, 4]
    assert len(features[4]) == 1
    centroid_CD = method.memory.centroid_CD.detach().numpy()
    for label, class_features in features.items():
        expected = sum(class_features) / len(class_features)
        assert np.abs(centroid_CD[label] - expected).max() < 1e-5 * np.abs(expected).max()
    assert method.memory.filled_C.tolist() == [True, True, True, True, True, False]
    assert not centroid_CD[5].any()


def test_an_identity_with_one_image_or_none_gives_finite_figures(oltr_at_its_start, tiny_faces):
    method, data = oltr_at_its_start("released")
    method.eval()
    (index,) = np.flatnonzero(data.train.labels == 4)
    sample = data.train_plain.dataset[(int(data.train.members[index]), 0)]
    image = (torch.from_numpy(sample.image_HW3).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    feature = method.features(image).detach().requires_grad_()
    embedding = method.head.embed(GatheredFeatures.gather(feature))
    # Its own centroid is where it lies: the distance is the smallest allowed one, not 0.
    assert embedding.reachability_b.item() == pytest.approx(10 / 1e-3, rel=1e-3)
    embedding.vector.local_bD.sum().backward()
    assert torch.isfinite(feature.grad).all()
    # The empty identity's centroid is the origin, but a feature at the origin is not near it.
    _, identity = method.memory.nearest(GatheredFeatures.gather(torch.zeros(1, 16)))
    assert identity.item() != 5

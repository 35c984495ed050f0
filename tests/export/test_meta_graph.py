"""The `meta` graph compared with the model, at batch sizes it was not traced with.

N images, D feature, C identities.
"""

import numpy as np
import pytest
import torch

from facelt.export.onnx import export_onnx
from tests.export.plain import BATCHES, by_hand, run

PARTS = {
    "released": {},
    "paper, no selector": {"variant": "paper", "selector": False},
    "no memory, no reachability": {"memory": False, "selector": False, "reachability": False},
}


@pytest.mark.parametrize("case", PARTS)
def test_meta_is_the_models_at_every_batch_size(case, build_model, pixels, tmp_path):
    model = build_model({"name": "dynamic_meta", **PARTS[case]})
    path = tmp_path / "meta.onnx"
    export_onnx(model, path, "meta")
    for batch in BATCHES:
        embedding_ND, reachability_N = run(path, pixels(batch))
        with torch.no_grad():
            expected = model.method.embed(by_hand(model, pixels(batch)))
        assert reachability_N.shape == (batch,)
        np.testing.assert_allclose(embedding_ND, expected.by_kind["meta"], atol=1e-4)
        np.testing.assert_allclose(reachability_N, expected.reachability_B, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", [{}, {"reachability": False}], ids=["released", "no reachability"])
def test_meta_without_the_second_output_is_the_same_embedding(parts, build_model, pixels, tmp_path):
    """insightface's class takes a graph of one output."""
    model = build_model({"name": "dynamic_meta", **parts})
    export_onnx(model, tmp_path / "one.onnx", "meta", reachability=False)
    for batch in BATCHES:
        (embedding_ND,) = run(tmp_path / "one.onnx", pixels(batch))
        with torch.no_grad():
            expected_ND = model.method.embed(by_hand(model, pixels(batch))).by_kind["meta"]
        np.testing.assert_allclose(embedding_ND, expected_ND, atol=1e-4)


def test_the_nearest_identity_at_no_distance_has_the_largest_reachability(build_model, pixels, tmp_path):
    """The clamped distance: the image's own feature is a centroid."""
    model = build_model({"name": "dynamic_meta", "min_distance": 0.5})
    image_NHW3 = pixels(3)
    with torch.no_grad():
        inputs = by_hand(model, image_NHW3)
        feature_ND = (model.method.network(inputs) + model.method.network(inputs.flip(-1))) / 2
        model.method.memory.centroid_CD[0] = feature_ND[1]
    export_onnx(model, tmp_path / "meta.onnx", "meta")
    _, reachability_N = run(tmp_path / "meta.onnx", image_NHW3)
    assert reachability_N[1] == pytest.approx(10 / 0.5)
    centroid_CD = model.method.memory.centroid_CD[:-1].detach()
    distance_N = torch.cdist(feature_ND.double(), centroid_CD.double()).min(dim=1).values.clamp_min(0.5)
    np.testing.assert_allclose(reachability_N, 10 / distance_N, rtol=1e-4)

"""The `direct` graph compared with the model, at batch sizes it was not traced with.

N images, D feature.
"""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from facelt.export.onnx import export_onnx
from tests.export.plain import BATCHES, by_hand, run

OTHER_SCALE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RIDE = {"method": {"name": "ride"}, "branches": {"count": 2, "split": "none"}}
# What differs in the graph: a network with PReLU, attention and another normalisation, several branches.
MODELS = {
    "iresnet": {"method": {"name": "classify"}, "model": {"backbone": "iresnet18"}},
    "mobilefacenet": {"method": {"name": "classify"}, "model": {"backbone": "mobilefacenet", "width": 1}},
    "attention, other scale": {"method": {"name": "classify"}, "attention": True, "data": OTHER_SCALE},
    "experts": RIDE,
    "memory": {"method": {"name": "dynamic_meta"}, "attention": True},
}


def smallest_cosine(one_ND, other_ND) -> float:
    one_ND, other_ND = (np.asarray(rows, dtype=np.float64) for rows in (one_ND, other_ND))
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return ((one_ND * other_ND).sum(1) / lengths_N).min()


@pytest.mark.parametrize("case", MODELS)
def test_direct_is_the_models_at_every_batch_size(case, build_model, pixels, tmp_path):
    model = build_model(**MODELS[case])
    path = tmp_path / "new/direct.onnx"
    result = export_onnx(model, path)
    assert result.difference < 1e-5
    assert result.cosine > 0.9999
    # Face networks take their time, and their batches are like any other's.
    for batch in BATCHES[: 2 if case in ("iresnet", "mobilefacenet") else 3]:
        (embedding_ND,) = run(path, pixels(batch))
        with torch.no_grad():
            expected_ND = model.method.embed(by_hand(model, pixels(batch))).by_kind["direct"]
        assert embedding_ND.shape == expected_ND.shape
        assert smallest_cosine(embedding_ND, expected_ND) > 0.9999
        np.testing.assert_allclose(embedding_ND, expected_ND, atol=1e-5)


def test_without_the_mirror_image_it_is_the_plain_feature_as_recorded(build_model, pixels, tmp_path):
    model = build_model({"name": "classify"}, data=OTHER_SCALE)
    export_onnx(model, tmp_path / "plain.onnx", flip=False)
    with torch.no_grad():
        feature_ND = model.method.network(by_hand(model, pixels(7)))
        averaged_ND = model.method.embed(by_hand(model, pixels(7))).by_kind["direct"]
    (plain_ND,) = run(tmp_path / "plain.onnx", pixels(7))
    np.testing.assert_allclose(plain_ND, feature_ND / feature_ND.norm(dim=1, keepdim=True), atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "plain.onnx"), providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["facelt.card"])
    assert (card["schema"], card["kind"], card["mirror_averaged"]) == ("facelt.onnx/1", "direct", False)
    assert (card["model_sha256"], card["stage"], card["network"]["dim"]) == ("0" * 64, "only", 16)
    assert smallest_cosine(plain_ND, averaged_ND) < 0.9999

"""The file answers as the model, at batch sizes it was not traced with.

N images, D feature, C identities.
"""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from facelt.engine.exporting.onnx_file import export_onnx, insightface_takes

BATCHES = (1, 7, 64)
OTHER_SCALE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RIDE = {"method": {"name": "ride"}, "branches": {"count": 2, "split": "none"}}
# What differs in the graph: a network with PReLU, attention and another normalisation, several branches.
MODELS = {
    "iresnet": {"method": {"name": "classify"}, "model": {"backbone": "iresnet18"}},
    "attention, other scale": {"method": {"name": "classify"}, "attention": True, "data": OTHER_SCALE},
    "experts": RIDE,
    "memory": {"method": {"name": "dynamic_meta"}, "attention": True},
}
PARTS = {
    "released": {},
    "paper": {"convention": "paper"},
    "no selector": {"selector": False},
    "no memory": {"memory": False, "selector": False},
    "no reachability": {"reachability": False},
}


def run(path, image_NHW3) -> list[np.ndarray]:
    """The file's outputs, for pixels normalised in numpy as face tools do it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data_N3HW = ((image_NHW3.numpy().astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
    return session.run(None, {"data": data_N3HW})


def by_hand(model, image_NHW3) -> torch.Tensor:
    """Input of the model's own normalisation, in float64 until the end."""
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (model.config.data.mean, model.config.data.std))
    return ((image_NHW3.double() / 255 - mean) / std).permute(0, 3, 1, 2).float()


def smallest_cosine(one_ND, other_ND) -> float:
    one_ND, other_ND = (np.asarray(rows, dtype=np.float64) for rows in (one_ND, other_ND))
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return ((one_ND * other_ND).sum(1) / lengths_N).min()


@pytest.mark.parametrize("case", MODELS)
def test_direct_is_the_models_at_every_batch_size(case, build_model, pixels, tmp_path):
    model = build_model(**MODELS[case])
    path = tmp_path / "new/direct.onnx"
    found = export_onnx(model, path)
    assert found.difference < 1e-5
    assert found.cosine > 0.9999
    # An IResNet takes its time, and its batches are like any other's.
    for batch in BATCHES[: 2 if case == "iresnet" else 3]:
        (embedding_ND,) = run(path, pixels(batch))
        with torch.no_grad():
            expected_ND = model.method.embed(by_hand(model, pixels(batch))).by_kind["direct"]
        assert embedding_ND.shape == expected_ND.shape
        assert smallest_cosine(embedding_ND, expected_ND) > 0.9999
        np.testing.assert_allclose(embedding_ND, expected_ND, atol=1e-5)


def test_without_the_mirror_image_it_is_the_plain_feature(build_model, pixels, tmp_path):
    model = build_model({"name": "classify"}, data=OTHER_SCALE)
    export_onnx(model, tmp_path / "plain.onnx", mirrored=False)
    export_onnx(model, tmp_path / "mirrored.onnx")
    with torch.no_grad():
        feature_ND = model.method.network(by_hand(model, pixels(7)))
    (plain_ND,), (mirrored_ND,) = (run(tmp_path / f"{name}.onnx", pixels(7)) for name in ("plain", "mirrored"))
    np.testing.assert_allclose(plain_ND, feature_ND / feature_ND.norm(dim=1, keepdim=True), atol=1e-5)
    assert smallest_cosine(plain_ND, mirrored_ND) < 0.9999


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


@pytest.mark.parametrize(("kind", "outputs"), [("direct", ["embedding"]), ("meta", ["embedding", "reachability"])])
def test_the_graph_is_what_others_expect(kind, outputs, build_model, tmp_path):
    model = build_model({"name": "dynamic_meta"}, classes=70_000, attention=True)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, kind)
    proto = onnx.load(path)
    (data,) = proto.graph.input
    assert data.name == "data"
    assert [dim.dim_param or dim.dim_value for dim in data.type.tensor_type.shape.dim] == ["N", 3, 32, 32]
    assert [output.name for output in proto.graph.output] == outputs
    first = proto.graph.node[:8]
    assert not {node.op_type for node in first} & {"Sub", "Mul"}
    assert not any(node.name.startswith(("Sub", "Mul", "_minus", "_mul")) for node in first)
    # One file, with each big matrix of the memory once, and without the classifier.
    weights = sum(value.nbytes for value in model.method.network.state_dict().values())
    memory = 2 * 70_000 * 16 * 4 + 2 * 70_000 * 4 if kind == "meta" else 0
    assert path.stat().st_size == pytest.approx(weights + memory, abs=60_000)
    assert b".py" not in path.read_bytes(), "it says where the source lay"
    assert not list(tmp_path.glob("*.data"))


def test_the_file_says_what_it_is(build_model, tmp_path):
    model = build_model({"name": "classify"})
    export_onnx(model, tmp_path / "model.onnx", mirrored=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["facelt.card"])
    assert (card["schema"], card["kind"], card["mirror_averaged"]) == ("facelt.onnx/1", "direct", False)
    assert (card["model_sha256"], card["stage"], card["network"]["dim"]) == ("0" * 64, "only", 16)


def test_nothing_of_the_model_is_changed(build_model, tmp_path):
    model = build_model({"name": "dynamic_meta"}, attention=True)
    before = {name: value.clone() for name, value in model.method.state_dict().items()}
    random = torch.get_rng_state()
    export_onnx(model, tmp_path / "model.onnx", "meta")
    assert not model.method.training
    assert torch.equal(torch.get_rng_state(), random)
    after = model.method.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_which_sizes_insightface_takes():
    sizes = [(112, 112), (128, 128), (224, 224), (96, 96), (100, 100), (120, 120), (112, 128), (192, 192)]
    assert [size for size in sizes if insightface_takes(size)] == [(112, 112), (128, 128), (224, 224)]

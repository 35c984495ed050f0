"""Contents of an ONNX file; exporting does not change the model."""

import onnx
import pytest
import torch

from facelt.export.onnx import export_onnx, is_insightface_compatible


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
    assert b".py" not in path.read_bytes(), "it contains the path of a source file"
    assert not list(tmp_path.glob("*.data"))


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
    assert [size for size in sizes if is_insightface_compatible(size)] == [(112, 112), (128, 128), (224, 224)]

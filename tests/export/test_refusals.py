"""Refused exports: no file is written, and an existing one is not changed."""

import warnings

import numpy as np
import onnx
import pytest
import torch

from facelt.errors import UserError
from facelt.export import onnx as onnx_module
from facelt.export.onnx import export_onnx


def refused(model, path, message: str, *arguments) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export_onnx(model, path, *arguments)
    assert "\n" not in str(caught.value)
    assert not [other for other in path.parent.iterdir() if other != path]


def test_a_graph_that_answers_otherwise_is_not_put_in_place(build_model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier one")
    squashed = onnx_module.MetaGraph.forward
    wrong = {"embedding": (1.001, 1), "reachability": (1, 1.001)}
    for name, factors in wrong.items():
        monkeypatch.setattr(
            onnx_module.MetaGraph,
            "forward",
            lambda self, data, factors=factors: tuple(
                value * factor for value, factor in zip(squashed(self, data), factors, strict=True)
            ),
        )
        refused(
            build_model({"name": "dynamic_meta"}),
            path,
            "differs from the model at a batch of 1: by [1-9].*e-0[34]",
            "meta",
        )
        assert path.read_bytes() == b"an earlier one", name


@pytest.mark.parametrize("value", [torch.nan, 0.0])
def test_a_model_whose_embeddings_are_no_directions_is_refused_without_a_warning(value, build_model, tmp_path):
    model = build_model({"name": "classify"})
    with torch.no_grad():
        for parameter in model.method.network.embedding.parameters():
            parameter.fill_(value)
    model.method.network.embedding.features.running_mean.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        refused(model, tmp_path / "model.onnx", "the model's direct embeddings are not finite or have norm 0")


def test_a_kind_that_the_model_does_not_make_is_refused(build_model, tmp_path):
    refused(
        build_model({"name": "classify"}),
        tmp_path / "model.onnx",
        "stage only makes no embedding of kind 'meta', only direct",
        "meta",
    )


def test_what_one_file_cannot_hold_is_refused_before_any_work(build_model, tmp_path, monkeypatch):
    monkeypatch.setattr("facelt.export.onnx._MAX_BYTES", 10_000)
    refused(build_model({"name": "classify"}), tmp_path / "model.onnx", "ONNX file holds 2 GB")


def test_an_operator_without_a_translation_is_a_one_line_error(build_model, tmp_path):
    model = build_model({"name": "classify"})
    model.method.network.attention = torch.nn.Module()
    model.method.network.attention.forward = lambda map_BChw: torch.linalg.qr(map_BChw).R + map_BChw
    refused(model, tmp_path / "model.onnx", "this network cannot be written as ONNX")


def test_a_file_that_the_checker_refuses_is_not_put_in_place(build_model, tmp_path, monkeypatch):
    def damaged(proto, path):
        proto.graph.node[3].input[0] = "nowhere"
        path.write_bytes(proto.SerializeToString())

    monkeypatch.setattr(onnx, "save", damaged)
    refused(build_model({"name": "classify"}), tmp_path / "model.onnx", "this network cannot be written as ONNX")


def test_outputs_are_compared_by_values_shapes_and_names():
    expected = {"embedding": np.eye(3), "reachability": np.array([1.0, 2, 4000])}
    assert onnx_module.compare_outputs(expected, expected) == onnx_module.ParityReport(0, 1)
    other = {**expected, "reachability": np.array([1.0, 2, 4004])}
    assert onnx_module.compare_outputs(other, expected).difference == pytest.approx(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(onnx_module.compare_outputs({**expected, "embedding": np.zeros((3, 3))}, expected).cosine)
    turned = {**expected, "embedding": np.array([[1, 0, 0], [0, 1, 0], [0, 0.6, 0.8]])}
    assert onnx_module.compare_outputs(turned, expected).cosine == pytest.approx(0.8)
    for wrong in ({"embedding": np.eye(3)}, {**expected, "embedding": np.eye(3)[:2]}):
        assert np.isnan(onnx_module.compare_outputs(wrong, expected).difference)

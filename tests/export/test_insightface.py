"""Graphs loaded by insightface as recognition models: it returns the model's embedding.

insightface needs a separate environment, since its opencv-python replaces opencv-python-headless: `make
test-insightface` makes one and runs these tests. FACELT_INSIGHTFACE_PYTHON names its interpreter; without it they are
skipped.

N images, D feature.
"""

import json
import os
import subprocess

import numpy as np
import pytest
import torch

from facelt.data.transforms import normalise_images
from facelt.export.onnx import export_onnx

BATCHES = (1, 7, 64)
# Given: the graph, a file of BGR images by batch, where to put the embeddings.
PROGRAM = """
import json, sys
import insightface, numpy as np
graph, images, out = sys.argv[1:]
model = insightface.model_zoo.get_model(graph, providers=["CPUExecutionProvider"])
found = {}
if model is not None and type(model).__name__ == "ArcFaceONNX":
    with np.load(images) as batches:
        found = {name: model.get_feat(list(batches[name])) for name in batches}
    mean, std = model.input_mean, model.input_std
else:
    mean = std = None
np.savez(out, **found)
print(json.dumps([insightface.__version__, type(model).__name__, mean, std]))
"""


@pytest.fixture(scope="module")
def insightface_python() -> str:
    python = os.environ.get("FACELT_INSIGHTFACE_PYTHON")
    if not python:
        pytest.skip("insightface needs a separate environment: run make test-insightface")
    return python


@pytest.fixture
def run_insightface(insightface_python, tmp_path):
    """run_insightface(graph, images by batch size) -> (attributes of its class, embeddings by batch size)."""

    def run(graph, image_by_batch):
        images, out = tmp_path / "images.npz", tmp_path / "embeddings.npz"
        # OpenCV's order of channels.
        np.savez(images, **{str(batch): image[..., ::-1] for batch, image in image_by_batch.items()})
        command = [insightface_python, "-c", PROGRAM, str(graph), str(images), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        with np.load(out) as arrays:
            return json.loads(done.stdout.splitlines()[-1]), {int(name): arrays[name] for name in arrays}

    return run


@pytest.mark.parametrize(
    "stage",
    [
        {"method": {"name": "classify"}, "model": {"backbone": "iresnet18"}},
        {"method": {"name": "classify"}, "model": {"backbone": "mobilefacenet"}},
        {"method": {"name": "dynamic_meta"}, "attention": True},
        {"method": {"name": "classify"}, "data": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}},
        {"method": {"name": "dynamic_meta"}, "kind": "meta"},
    ],
    ids=["iresnet", "mobilefacenet", "memory", "other scale", "meta"],
)
def test_get_feat_gives_the_embedding(stage, build_model, pixels, run_insightface, tmp_path):
    kind = stage.get("kind", "direct")
    settings = {name: value for name, value in stage.items() if name != "kind"}
    model = build_model(**{**settings, "data": {**stage.get("data", {}), "image_size": [112, 112]}})
    export_onnx(model, tmp_path / "model.onnx", kind, reachability=False)
    images = {batch: pixels(batch, side=112) for batch in BATCHES}
    words, embeddings = run_insightface(
        tmp_path / "model.onnx", {batch: image.numpy() for batch, image in images.items()}
    )
    assert words[1:] == ["ArcFaceONNX", 127.5, 127.5]
    assert tuple(map(int, words[0].split(".")[:2])) >= (2, 1)
    for batch, image_NHW3 in images.items():
        with torch.no_grad():
            image_N3HW = normalise_images(image_NHW3, model.config.data.mean, model.config.data.std)
            expected_ND = model.method.embed(image_N3HW).by_kind[kind].numpy()
        norm_N = np.linalg.norm(embeddings[batch], axis=1) * np.linalg.norm(expected_ND, axis=1)
        cosine_N = (embeddings[batch] * expected_ND).sum(1) / norm_N
        assert cosine_N.shape == (batch,)
        assert cosine_N.min() > 0.9999


def test_what_is_noted_as_not_taken_is_not_taken(build_model, run_insightface, tmp_path):
    export_onnx(build_model({"name": "classify"}), tmp_path / "model.onnx")
    words, embeddings = run_insightface(tmp_path / "model.onnx", {})
    assert words[1] == "NoneType"
    assert not embeddings

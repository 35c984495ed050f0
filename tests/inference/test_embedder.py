"""Embedding in memory: arrays, files and folders give the values of a store, and what cannot be used is named."""

import cv2
import numpy as np
import pytest

import facelt
from facelt.data.decode import decode_image
from facelt.errors import UserError
from recordio_tools.face_set import FaceRecord


@pytest.fixture(scope="module")
def model(finished_run):
    return facelt.load(str(finished_run))


@pytest.fixture(scope="module")
def images(tiny_faces):
    """Six images, uint8 [6,32,32,3] RGB."""
    with FaceRecord(tiny_faces) as record:
        return np.stack([decode_image(record.read(key).payload, 1 << 20) for key in record.image_keys.tolist()[::7]])


def test_arrays_files_and_records_give_the_same_embeddings(model, images, tiny_faces, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in (3, 1, 5, 0, 2, 4)]
    for path, image_HW3 in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image_HW3[:, :, ::-1])
    of_arrays = model.embed(images, batch=4)
    assert list(of_arrays) == [*model.kinds, "reachability"] == ["direct", "meta", "meta_unit", "reachability"]
    assert of_arrays["direct"].dtype == np.float32
    of_record = model.embed(tiny_faces)
    # In the order of the list.
    for others in (model.embed(paths), model.embed(list(map(str, paths)))):
        for kind, value in of_arrays.items():
            np.testing.assert_allclose(others[kind], value, rtol=1e-4, atol=1e-5)
    for kind, value in of_arrays.items():
        np.testing.assert_allclose(of_record[kind][::7], value, rtol=1e-4, atol=1e-5)


def test_a_stage_without_a_memory_makes_direct_only(finished_run, images):
    model = facelt.load(finished_run / "plain")
    assert list(model.embed(images[:1])) == ["direct"]


def test_no_images_give_no_rows(model):
    assert model.embed(np.empty((0, 32, 32, 3), np.uint8))["direct"].shape == (0, model.model.method.dim)
    assert model.embed([])["meta"].shape == (0, model.model.method.dim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images / 255, r"images: an array float64 \[6, 32, 32, 3\]; expected uint8"),
        (lambda images: images[0], r"images: an array uint8 \[32, 32, 3\]"),
        (lambda images: images[:, :16], "image 0: the image is 16 x 32 pixels"),
        (lambda images: list(images), "found a ndarray in a list"),
        (lambda images: ["absent.png"], "absent.png: cannot read"),
        (lambda images: "absent", "absent: no such file or folder"),
    ],
)
def test_images_that_cannot_be_used_are_named(model, images, change, message):
    with pytest.raises(UserError, match=message):
        model.embed(change(images))


def test_a_folder_without_a_model_and_an_unknown_device_are_named(finished_run, tmp_path):
    with pytest.raises(UserError, match="neither a run nor a stage's folder"):
        facelt.load(tmp_path)
    with pytest.raises(UserError, match="gpu"):
        facelt.load(finished_run, "gpu")

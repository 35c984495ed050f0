"""Images of another size than the network's, resized with `data.resize: true` wherever they enter."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import facelt
from facelt.config.train import TrainConfig
from facelt.data.pairs import read_pairs
from facelt.data.transforms import Resize
from facelt.store.store import EmbeddingStore
from facelt.training.run import run

SIZE = (24, 20)


@pytest.fixture(scope="module")
def resizing(recipe, tiny_pairs, tmp_path_factory) -> Path:
    """A run of 24 x 20 pixels on images of 32 x 32, with a verification set."""
    values = recipe(tmp_path_factory.mktemp("sizes") / "run", validation={"sets": {"tiny": str(tiny_pairs)}})
    values["data"] |= {"image_size": list(SIZE), "resize": True}
    values["stages"] = [{**values["stages"][0], "epochs": 1}]
    return run(TrainConfig.model_validate(values))


@pytest.fixture(scope="module")
def pictures(tiny_pairs, tmp_path_factory) -> Path:
    """A folder `faces` of two people with five images each, a list of them and a list of pairs."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [f"{person}/{number}.png" for person in "ab" for number in range(5)]
    for path, payload in zip(paths, read_pairs(tiny_pairs).images, strict=False):
        (folder / "faces" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "faces" / path).write_bytes(payload)
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    pairs = [(left, right, int(left[0] == right[0])) for left in paths for right in paths if left < right]
    (folder / "pairs.txt").write_text("".join(f"{left} {right} {same}\n" for left, right, same in pairs))
    return folder


def stored(path: Path) -> np.ndarray:
    return np.asarray(EmbeddingStore.open(path).embedding("direct"))


def resized(pictures: Path) -> np.ndarray:
    files = sorted((pictures / "faces").rglob("*.png"))
    return np.stack([Resize(SIZE)(cv2.imread(str(path))[..., ::-1].copy(), 0) for path in files])


def test_every_source_of_images_is_resized(resizing, pictures, tiny_faces, tiny_pairs, cli, tmp_path):
    model = facelt.load(resizing)
    assert model.image_size == SIZE
    expected_ND = model.embed(resized(pictures))["direct"]
    faces = pictures / "faces"
    sources = {
        "folder": (faces,),
        "list": (pictures / "list.txt", "--root", faces),
        "image": (faces / "a/0.png",),
        "record": (tiny_faces,),
    }
    for name, words in sources.items():
        code, _, error = cli(
            "embed", "--checkpoint", resizing, "--images", *words, "--out", tmp_path / name, "--workers", 0
        )
        assert code == 0, error
    for name in ("folder", "list"):
        np.testing.assert_allclose(stored(tmp_path / name), expected_ND, atol=2e-3)
    np.testing.assert_allclose(stored(tmp_path / "image"), expected_ND[:1], atol=2e-3)
    assert len(stored(tmp_path / "record")) == 42
    # An array that is read-only, and one whose channels are in reverse.
    pixels = np.stack([cv2.imread(str(path)) for path in sorted(faces.rglob("*.png"))])
    np.testing.assert_allclose(model.embed(pixels[..., ::-1])["direct"], expected_ND, atol=1e-5)
    pixels = np.ascontiguousarray(pixels[..., ::-1])
    pixels.flags.writeable = False
    np.testing.assert_allclose(model.embed(pixels)["direct"], expected_ND, atol=1e-5)

    for words in (
        ("verify", "--checkpoint", resizing, "--set", tiny_pairs),
        ("verify", "--checkpoint", resizing, "--set", pictures / "pairs.txt", "--root", faces),
        ("evaluate", "--checkpoint", resizing, "--open-images", faces, "--workers", 0),
        ("gallery", "create", tmp_path / "gallery", "--checkpoint", resizing),
        ("gallery", "enroll", tmp_path / "gallery", faces, "--checkpoint", resizing),
        ("gallery", "identify", tmp_path / "gallery", faces / "b/1.png", "--checkpoint", resizing, "--threshold", 0),
    ):
        code, _, error = cli(*words)
        assert code == 0, error

"""Unusable images during training: named, counted once, limited by the configuration."""

import json

import cv2
import numpy as np
import pytest

from facelt.errors import UserError
from recordio_tools.writer import FaceRecordWriter

COUNTS = (12, 10, 8)
DAMAGED = {3: b"no image", 14: b"\xff\xd8\xff\xe0 cut short", 25: None}  # 25 has another size


@pytest.fixture(scope="module")
def damaged_faces(tmp_path_factory):
    """A .rec of 30 images; keys 3, 14 and 25 cannot be used."""
    path = tmp_path_factory.mktemp("damaged") / "faces.rec"
    random = np.random.default_rng(0)
    with FaceRecordWriter(path, image_size=(32, 32)) as writer:
        for key, label in enumerate(np.repeat(np.arange(len(COUNTS)), COUNTS).tolist(), start=1):
            size = 20 if key == 25 else 32
            payload = cv2.imencode(".png", random.integers(0, 256, (size, size, 3), dtype=np.uint8))[1].tobytes()
            writer.write(label, DAMAGED.get(key) or payload)
    return path


@pytest.fixture
def damaged(damaged_faces, recipe, plain_stage):
    """damaged(limit, **changes) -> changes to the recipe."""

    def changes(limit: int, **others):
        data = {**recipe(damaged_faces)["data"], "train": str(damaged_faces), "max_bad_images": limit}
        return {"data": {**data, "validation_fraction": 0.0}, "stages": plain_stage(epochs=2), **others}

    return changes


def test_none_is_allowed_by_default(train, damaged, tmp_path):
    with pytest.raises(UserError, match=r"images cannot be used, data\.max_bad_images allows 0: faces\.rec:\d+: "):
        train(tmp_path / "run", **damaged(0))


def test_one_more_than_allowed_stops(train, damaged, tmp_path):
    with pytest.raises(UserError, match="3 images cannot be used") as caught:
        train(tmp_path / "run", **damaged(2))
    assert all(f"faces.rec:{key}: " in str(caught.value) for key in DAMAGED)


def test_allowed_images_are_skipped_and_listed(train, damaged, tmp_path, capsys):
    folder = train(tmp_path / "run", **damaged(3))
    card = json.loads((folder / "plain/card.json").read_text())
    assert card["bad_images"].keys() == {f"faces.rec:{key}" for key in DAMAGED}
    assert "20 x 20" in card["bad_images"]["faces.rec:25"]
    output = capsys.readouterr().err
    # Once each, though two epochs met them.
    assert all(output.count(f"left out faces.rec:{key}: ") == 1 for key in DAMAGED)


def test_the_count_survives_an_interruption(train, damaged, tmp_path, interrupt, saved):
    stages = damaged(3)["stages"]
    with pytest.raises(interrupt("classify", 5)):
        train(tmp_path / "run", **damaged(3, stages=stages))
    assert saved(tmp_path / "run/plain")[0]["bad_images"]
    folder = train(tmp_path / "run", resume=True, **damaged(3, stages=stages))
    card = json.loads((folder / "plain/card.json").read_text())
    assert card["bad_images"].keys() == {f"faces.rec:{key}" for key in DAMAGED}

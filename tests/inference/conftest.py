"""Fixtures of small training runs and of photographs, shared with tests/training and tests/alignment."""

import pytest

from recordio_tools.face_set import FaceRecord
from tests.alignment.conftest import drawn, photos
from tests.training.fixtures import *  # noqa: F403

__all__ = ["drawn", "photos"]


@pytest.fixture
def folder(tiny_faces, tmp_path):
    """Six images of the record as files, two folders of three; the last one is damaged."""
    with FaceRecord(tiny_faces) as record:
        for number, key in enumerate((1, 2, 3, 15, 16, 17)):
            path = tmp_path / f"images/{'ab'[number // 3]}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(record.read(key).payload))
    (tmp_path / "images/b/5.png").write_bytes(b"nothing")
    return tmp_path / "images"

"""Fixtures of the record tests: small record files."""

from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest

from recordio_tools.writer import FaceRecordWriter

COUNTS = (4, 1, 3)  # images of each identity


def encoded(number: int, size: tuple[int, int] = (16, 16), suffix: str = ".jpg") -> bytes:
    """Encodes an image that is unique to this number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.fixture(autouse=True)
def _caches_next_to_the_files(monkeypatch) -> None:
    monkeypatch.delenv("FACELT_CACHE", raising=False)


@pytest.fixture(scope="session")
def encode():
    """encode(number, size, suffix) -> bytes of an encoded image."""
    return encoded


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A face set of eight images (keys 1..8) of three identities (keys 9..11) and record 0."""
    folder = tmp_path / "faces"
    numbers = count()
    with FaceRecordWriter(folder / "train.rec", (16, 16)) as writer:
        writer.write_all((label, encoded(next(numbers))) for label, images in enumerate(COUNTS) for _ in range(images))
    return folder / "train.rec"

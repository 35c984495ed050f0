"""Fixtures of the data tests: encoded images and a .rec of faces."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from recordio_tools.writer import FaceRecordWriter


def _encode(height: int, width: int, seed: int = 0, suffix: str = ".png") -> bytes:
    """Returns a smooth random image, so that JPEG loses little and all images differ."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR))[1].tobytes()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(height, width, seed=0, suffix='.png') -> bytes."""
    return _encode


@pytest.fixture
def face_rec(tmp_path: Path) -> Path:
    """24 images, 16 x 16, of 5 identities (9, 7, 5, 2, 1 images); keys 1..24. Key 4 is no image, key 20 is 16 x 12."""
    path = tmp_path / "train.rec"
    with FaceRecordWriter(path, image_size=(16, 16)) as writer:
        for key, label in enumerate(np.repeat(np.arange(5), (9, 7, 5, 2, 1)), start=1):
            payload = b"no image" if key == 4 else _encode(16, 12 if key == 20 else 16, seed=key)
            writer.write(int(label), payload)
    return path

"""Fixtures of the alignment tests: a detector of drawn faces, a real one, and photographs of three people."""

from pathlib import Path

import pytest

from facelt.alignment.detectors import DETECTORS
from tests.alignment.drawing import DrawnFaces, draw, encode, turned


@pytest.fixture
def drawn(monkeypatch) -> str:
    """Command-line options of the drawn detector."""
    monkeypatch.setitem(DETECTORS, "drawn", DrawnFaces)
    return "drawn:squares"


@pytest.fixture(scope="session")
def yunet(real_data) -> str:
    return f"yunet:{real_data / 'models/yunet_n_dynamic.onnx'}"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photographs of three people: two of Ann, one with a second face; one of Bob without a face; a truncated file."""
    first, second = turned(10, 0.7, (60, 70)), turned(-20, 0.4, (150, 60))
    files = {
        "Ann/1.png": encode(draw(first)),
        "Ann/2.png": encode(draw(second, first)),
        "Bob/1.png": encode(draw()),
        "Cid/1.png": encode(draw(first))[:900],
        "Cid/2.png": encode(draw(second)),
    }
    for name, payload in files.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
    return tmp_path / "photos"

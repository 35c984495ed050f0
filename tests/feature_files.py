"""Writer of MegaFace feature files for tests."""

from pathlib import Path

import numpy as np


def write_feature(path: Path, feature_D: np.ndarray) -> None:
    """Writes one feature: OpenCV's header of a float column, then the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.array([len(feature_D), 1, 4, 5], "<i4").tobytes() + np.asarray(feature_D, "<f4").tobytes())

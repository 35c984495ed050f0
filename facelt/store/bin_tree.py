"""MegaFace's feature files: `<image path>_<algorithm>.bin` below a root, one vector each. N images, D feature.

A file is four little-endian int32 (rows, 1, 4, 5: OpenCV's header of a float column) and then rows float32.
"""

import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.store.image_lists import check_inside
from facelt.whole_files import replacing

HEADER = np.dtype("<i4")
VALUES = np.dtype("<f4")
HEADER_BYTES = 4 * HEADER.itemsize
MAX_DIMENSION = 1 << 20


def feature_path(root: Path, image: str, algorithm: str) -> Path:
    """Where the feature of `image` lies. Raises UserError on a path or algorithm that leads elsewhere."""
    check_inside(image, root)
    if not algorithm or "/" in algorithm or "\\" in algorithm or "\0" in algorithm:
        raise UserError(f"algorithm: {algorithm!r} is no suffix of a file name")
    return root / f"{image}_{algorithm}.bin"


def write_feature(path: Path, feature_D: np.ndarray) -> None:
    """Write one feature, whole or not at all. Raises UserError where it is not finite or cannot be written."""
    values_D = np.ascontiguousarray(feature_D, dtype=VALUES)
    if values_D.ndim != 1 or not len(values_D) or not np.isfinite(values_D).all():
        raise UserError(f"{path}: a feature is a vector of finite values")
    with replacing(path) as temporary:
        temporary.write_bytes(np.array([len(values_D), 1, 4, 5], dtype=HEADER).tobytes() + values_D.tobytes())


def read_feature(path: Path, dimension: int | None = None) -> np.ndarray:
    """One feature, float32 [D]. Raises UserError naming the file that is missing, short, malformed or not finite."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) < HEADER_BYTES:
        raise UserError(f"{path}: is {len(content)} bytes, shorter than a feature file's header")
    rows, *rest = np.frombuffer(content, dtype=HEADER, count=4).tolist()
    if rest != [1, 4, 5] or not 0 < rows <= MAX_DIMENSION:
        raise UserError(f"{path}: the header is {[rows, *rest]}, a feature file begins with its length, 1, 4, 5")
    if len(content) != HEADER_BYTES + rows * VALUES.itemsize:
        raise UserError(f"{path}: holds {len(content) - HEADER_BYTES} bytes of values, its header says {4 * rows}")
    if dimension is not None and rows != dimension:
        raise UserError(f"{path}: holds {rows} values, the others {dimension}")
    feature_D = np.frombuffer(content, dtype=VALUES, offset=HEADER_BYTES)
    if not np.isfinite(feature_D).all():
        raise UserError(f"{path}: holds a value that is not finite")
    return feature_D


class TreeRows:
    """The features of some images as rows, read when sliced, so that a tree of any size can be searched.

    The files' presence is checked at once and all that are missing are counted; their content as it is read. Raises
    UserError naming the file, also where a link leads out of the root.
    """

    def __init__(self, root: Path, algorithm: str, images: Sequence[str]) -> None:
        self._root = root
        self._paths = [feature_path(root, image, algorithm) for image in images]
        missing = [path for path in self._paths if size_below(path, root) is None]
        if missing:
            shown = ", ".join(str(path.relative_to(root)) for path in missing[:3])
            raise UserError(f"{root}: lacks {len(missing)} of {len(images)} features, such as {shown}")
        dimension = len(read_feature(self._paths[0])) if self._paths else 0
        self.shape = (len(self._paths), dimension)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows [n,D] float32."""
        paths = self._paths[rows]
        value_ND = np.empty((len(paths), self.shape[1]), dtype=np.float32)
        for row, path in enumerate(paths):
            value_ND[row] = read_feature(path, self.shape[1])
        return value_ND


def size_below(path: Path, root: Path) -> int | None:
    """The size of a file below `root`, None where there is none. Raises UserError where a link leads out of it."""
    try:
        status = path.lstat()
    except OSError:
        return None
    real_root = _real_folder(root)
    is_link = stat.S_ISLNK(status.st_mode)
    real = os.path.realpath(path) if is_link else f"{_real_folder(path.parent)}/{path.name}"
    if os.path.commonpath([real, real_root]) != real_root:
        raise UserError(f"{path}: leads out of {real_root}")
    if is_link:
        return Path(real).stat().st_size if Path(real).is_file() else None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@lru_cache(maxsize=4096)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)

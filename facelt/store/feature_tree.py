"""MegaFace feature trees: feature files `<image path>_<algorithm>.bin` under a root, image lists and noise lists.

A feature file is four little-endian int32 (D, 1, 4, 5: OpenCV's header of a float column) followed by D float32. Lists
are those of MegaFace's development kit or plain text; every path is relative to the root. N images, D feature.
"""

import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from facelt.errors import UserError
from facelt.store.arrays import refuse_special_file
from facelt.store.image_names import first_repeated
from recordio_tools.bounded_io import read_json, read_regular_file, read_utf8

_MAX_LIST_BYTES = 1 << 30


def read_features_list(path: Path) -> list[str]:
    """Reads the image paths of a features list, a JSON object `{"path": [...], "id": [...]}`; `id` is optional.

    Raises UserError naming the file, and the entry that is repeated or leaves the root.
    """
    try:
        content = read_json(path, _MAX_LIST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON features list ({error})") from error
    paths = content.get("path") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not set(map(type, paths)) <= {str}:
        raise UserError(f'{path}: must hold an object with "path", a list of image paths')
    _check_paths(paths, path)
    return paths


def read_image_list(path: Path) -> list[str]:
    """Reads the images of a features list, or of a text file with one path per line and `#` comments.

    Raises UserError as `read_features_list` does, and on an empty list.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        paths = read_features_list(path)
    else:
        paths = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        _check_paths(paths, path)
    if not paths:
        raise UserError(f"{path}: lists no images")
    return paths


def read_noise_names(path: Path) -> list[str]:
    """Reads the image names of a noise list, unchanged.

    Lines starting with `#` are comments; in lines with tabs the name is the second field. Raises UserError naming the
    file.
    """
    fields = (line.split("\t") for line in _text(path).splitlines() if line.strip() and not line.startswith("#"))
    return [parts[1].strip() if len(parts) > 1 else parts[0].strip() for parts in fields]


def _check_paths(paths: list[str], path: Path) -> None:
    # All entries are checked as one string; only if that fails, each is checked, to name the one at fault.
    joined = "/".join(("", *paths, ""))
    if any(forbidden in joined for forbidden in ("//", "/./", "/../", "\\", "\0")):
        for entry in paths:
            refuse_path_outside(entry, path)
    if (repeated := first_repeated(paths)) is not None:
        raise UserError(f"{path}: {repeated!r} is listed more than once")


def refuse_path_outside(entry: str, where: Path) -> None:
    """Raises UserError unless `entry` is a relative path that stays under its root."""
    parts = entry.split("/")
    if entry.startswith("/") or "\\" in entry or "\0" in entry or {"", ".", ".."} & set(parts):
        raise UserError(f"{where}: {entry!r} is not a relative path under the folder of the images")


def probe_identity(entry: str, where: Path) -> str:
    """Returns the identity of a listed image: the name of its folder. Raises UserError if it has none."""
    identity = PurePosixPath(entry).parent.name
    if not identity:
        raise UserError(f"{where}: {entry!r} is not in a folder; the name of the folder is the identity")
    return identity


def _text(path: Path) -> str:
    try:
        return read_utf8(path, _MAX_LIST_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from error


_HEADER_DTYPE = np.dtype("<i4")
_VALUE_DTYPE = np.dtype("<f4")
_HEADER_BYTES = 4 * _HEADER_DTYPE.itemsize
_MAX_DIMENSION = 1 << 20


def feature_path(root: Path, image: str, algorithm: str) -> Path:
    """Returns the path of the feature of `image`. Raises UserError on an image or algorithm that leaves the root."""
    refuse_path_outside(image, root)
    if not algorithm or "/" in algorithm or "\\" in algorithm or "\0" in algorithm:
        raise UserError(f"algorithm: {algorithm!r} is not a valid file name suffix")
    return root / f"{image}_{algorithm}.bin"


def read_feature(path: Path, dimension: int | None = None) -> np.ndarray:
    """Reads one feature, float32 [D].

    Raises UserError if the file is missing, not a regular one, truncated, malformed, too large or not finite.
    """
    try:
        content = read_regular_file(path, _HEADER_BYTES + _VALUE_DTYPE.itemsize * _MAX_DIMENSION)
    except OSError as error:
        refuse_special_file(path)
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) < _HEADER_BYTES:
        raise UserError(f"{path}: has {len(content)} bytes, fewer than the header of a feature file")
    rows, *rest = np.frombuffer(content, dtype=_HEADER_DTYPE, count=4).tolist()
    if rest != [1, 4, 5] or not 0 < rows <= _MAX_DIMENSION:
        raise UserError(f"{path}: the header is {[rows, *rest]}, expected the dimension, 1, 4, 5")
    if len(content) != _HEADER_BYTES + rows * _VALUE_DTYPE.itemsize:
        raise UserError(f"{path}: holds {len(content) - _HEADER_BYTES} bytes of values, the header says {4 * rows}")
    if dimension is not None and rows != dimension:
        raise UserError(f"{path}: holds {rows} values, the other features {dimension}")
    feature_D = np.frombuffer(content, dtype=_VALUE_DTYPE, offset=_HEADER_BYTES)
    if not np.isfinite(feature_D).all():
        raise UserError(f"{path}: holds a value that is not finite")
    return feature_D


class FeatureTree:
    """Features of a list of images as rows [N,D], read when sliced, so trees of any size can be searched.

    Missing files are counted on construction; contents are validated when read. Raises UserError naming the file, also
    if a link leaves the root.
    """

    def __init__(self, root: Path, algorithm: str, images: Sequence[str]) -> None:
        self._root = root
        self._paths = [feature_path(root, image, algorithm) for image in images]
        missing = [path for path in self._paths if size_inside_root(path, root) is None]
        if missing:
            shown = ", ".join(str(path.relative_to(root)) for path in missing[:3])
            raise UserError(f"{root}: {len(missing)} of {len(images)} features are missing, such as {shown}")
        dimension = len(read_feature(self._paths[0])) if self._paths else 0
        self.shape = (len(self._paths), dimension)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns rows [n,D] float32, by a slice or by an array of positions."""
        paths = self._paths[rows] if isinstance(rows, slice) else [self._paths[row] for row in rows.tolist()]
        value_ND = np.empty((len(paths), self.shape[1]), dtype=np.float32)
        for row, path in enumerate(paths):
            value_ND[row] = read_feature(path, self.shape[1])
        return value_ND


def feature_dimension(size: int) -> int:
    """Returns the number of values in a feature file of `size` bytes."""
    return (size - _HEADER_BYTES) // _VALUE_DTYPE.itemsize


def size_inside_root(path: Path, root: Path) -> int | None:
    """Returns the size of a file under `root`, None if there is none. Raises UserError if a link leaves the root."""
    try:
        status = path.lstat()
    except OSError:
        return None
    real_root = _real_folder(root)
    is_link = stat.S_ISLNK(status.st_mode)
    real = os.path.realpath(path) if is_link else f"{_real_folder(path.parent)}/{path.name}"
    if os.path.commonpath([real, real_root]) != real_root:
        raise UserError(f"{path}: links to a file outside {real_root}")
    if is_link:
        return Path(real).stat().st_size if Path(real).is_file() else None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@lru_cache(maxsize=4096)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)

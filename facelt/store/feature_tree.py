"""Lists of images as MegaFace's development kit writes them, and as plain text; noise lists. Every path is relative.

MegaFace's feature files: `<image path>_<algorithm>.bin` below a root, one vector each. N images, D feature.

A file is four little-endian int32 (rows, 1, 4, 5: OpenCV's header of a float column) and then rows float32.
"""

import json
import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from facelt.errors import UserError
from recordio_tools.atomic_io import atomic_replace


def read_features_list(path: Path) -> list[str]:
    """The image paths of a features list, a JSON object `{"path": [...], "id": [...]}`; `id` is not needed.

    Raises UserError naming the file, and the entry that is repeated or leads outside its root.
    """
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not a JSON features list ({error})") from error
    paths = content.get("path") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not all(isinstance(entry, str) for entry in paths):
        raise UserError(f'{path}: must hold an object with "path", a list of image paths')
    _check_paths(paths, path)
    return paths


def read_image_list(path: Path) -> list[str]:
    """The images of a features list, or of a text file with a path a line; `#` begins a comment.

    Raises UserError as `read_features_list` does, or where nothing is listed.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        paths = read_features_list(path)
    else:
        paths = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        _check_paths(paths, path)
    if not paths:
        raise UserError(f"{path}: lists no image")
    return paths


def read_noise_names(path: Path) -> list[str]:
    """The images that a noise list names, as it names them.

    Lines that begin with `#` are comments; of a line with tabs the second field counts. Raises UserError naming the
    file.
    """
    fields = (line.split("\t") for line in _text(path).splitlines() if line.strip() and not line.startswith("#"))
    return [parts[1].strip() if len(parts) > 1 else parts[0].strip() for parts in fields]


def _check_paths(paths: list[str], path: Path) -> None:
    # A million entries are checked as one path; only where that is odd each is looked at, to name it.
    joined = "/".join(("", *paths, ""))
    if any(odd in joined for odd in ("//", "/./", "/../", "\\", "\0")):
        for entry in paths:
            check_inside(entry, path)
    if len(set(paths)) != len(paths):
        seen: set[str] = set()
        twice = next(entry for entry in paths if entry in seen or seen.add(entry))
        raise UserError(f"{path}: {twice!r} is listed more than once")


def check_inside(entry: str, where: Path) -> None:
    """Raise UserError unless `entry` is a relative path that stays below its root."""
    parts = entry.split("/")
    if entry.startswith("/") or "\\" in entry or "\0" in entry or {"", ".", ".."} & set(parts):
        raise UserError(f"{where}: {entry!r} is no plain path below the images' folder")


def probe_identity(entry: str, where: Path) -> str:
    """The identity of a listed image: the folder it lies in. Raises UserError where there is none."""
    identity = PurePosixPath(entry).parent.name
    if not identity:
        raise UserError(f"{where}: {entry!r} lies in no folder; the folder's name is the identity")
    return identity


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error


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
    with atomic_replace(path) as temporary:
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

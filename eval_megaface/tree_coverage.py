"""The coverage of a tree of .bin files. N images, D feature."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval_megaface.coverage import Coverage, inspected
from facelt.errors import UserError
from facelt.store.bin_tree import HEADER_BYTES, VALUES, feature_path, read_feature, size_below


def inspect_tree(root: Path, algorithm: str, kind: str, images: Sequence[str]) -> Coverage:
    """Which of `images` have a feature file that can be used: each is read once, nothing is kept.

    The dimension is that of most files, by their sizes. Raises UserError where a name or a link leads out of the root.
    """
    paths = {image: feature_path(root, image, algorithm) for image in images}
    sizes = {image: size for image, path in paths.items() if (size := size_below(path, root)) is not None}
    common = Counter(sizes.values()).most_common(1)
    dimension = max(1, (common[0][0] - HEADER_BYTES) // VALUES.itemsize) if common else 1
    names = list(sizes)
    files = _Files([paths[image] for image in names], names, dimension)
    return inspected(root, kind, images, names, files, np.arange(len(names)), files.damaged)


class _Files:
    """Features by position; for a file that cannot be read NaN, and the reason in `damaged`."""

    def __init__(self, paths: list[Path], names: list[str], dimension: int) -> None:
        self._paths, self._names, self._dimension = paths, names, dimension
        self.damaged: dict[str, str] = {}

    def __getitem__(self, row_N: np.ndarray) -> np.ndarray:
        value_ND = np.full((len(row_N), self._dimension), np.nan, dtype=np.float32)
        for place, row in enumerate(row_N.tolist()):
            try:
                value_ND[place] = read_feature(self._paths[row], self._dimension)
            except UserError as error:
                self.damaged[self._names[row]] = str(error).removeprefix(f"{self._paths[row]}: ")
        return value_ND

"""Images named by a text file (`path label` a line) or found in a folder.

Shapes: N images of the dataset.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelt.data.dataset import EncodedImageDataset
from facelt.data.decode import UndecodableImage
from facelt.data.list_layouts import LAYOUTS, find_layout
from facelt.data.transforms import ImageTransform
from facelt.errors import UserError
from recordio_tools.image_header import DEFAULT_MAX_PIXELS
from recordio_tools.lists import IMAGE_SUFFIXES, read_labelled_list, read_path_list


class ImageFileDataset(EncodedImageDataset):
    """Images in files below `root`, named by their relative paths; a file that cannot be read is a bad image.

    `layout` names the rule of `LAYOUTS` that turns a name into the place to open.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: np.ndarray,
        num_classes: int,
        transform: ImageTransform,
        max_pixels: int,
        layout: str = "as listed",
    ) -> None:
        super().__init__(labels, num_classes, transform, max_pixels)
        self.root = Path(root)
        self.paths = paths
        self.layout = layout

    def image_name(self, index: int) -> str:
        return self.paths[index]

    def read_encoded(self, index: int) -> bytes:
        place = LAYOUTS[self.layout](self.paths[index])
        if place is None:
            raise UndecodableImage(f"has no place in the layout {self.layout} that the other files of the list follow")
        try:
            return (self.root / place).read_bytes()
        except OSError as error:
            raise UndecodableImage(f"cannot read {self.root / place}: {error.strerror}") from error


class ListDataset(ImageFileDataset):
    """Images of a list: relative path, one space, label on each line; -1 marks the open set.

    `num_classes` None takes the largest label + 1. Where the files are not at the listed places the layout is chosen
    once, here, by looking for a few of them. Links inside `root` are followed: image trees are
    commonly assembled from them. Whether every file exists is left to the reading.

    Raises UserError as recordio_tools.lists does, and where none of the files is there.
    """

    labelled = True

    def __init__(
        self,
        list_path: Path,
        root: Path,
        *,
        transform: ImageTransform,
        num_classes: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if self.labelled:
            paths, labels = read_labelled_list(list_path, num_classes)
        else:
            paths = read_path_list(list_path)
            labels = np.full(len(paths), -1, dtype=np.int64)
        layout = find_layout(Path(root), paths)
        if layout is None:
            raise UserError(
                f"{list_path}, line 1: no file {Path(root) / paths[0]}, nor any other of the list in a known layout; "
                "check the root folder"
            )
        found = int(labels.max()) + 1
        super().__init__(
            root, paths, labels, found if num_classes is None else num_classes, transform, max_pixels, layout
        )


class UnlabelledListDataset(ListDataset):
    """Images of a list without labels, one relative path a line: for embedding."""

    labelled = False


class ImageFolderDataset(ImageFileDataset):
    """Every image file below `root` in the order of its relative path, which is its name.

    The first folder of a path is the identity: labels count the folders with images in the order of `identities`. An
    image that lies in `root` itself has label -1, so a flat folder is a set without labels; so has every image of the
    `open_set`. Linked folders are not entered.

    Raises UserError: no such folder, or no image in it.
    """

    def __init__(
        self,
        root: Path,
        *,
        transform: ImageTransform,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        open_set: bool = False,
    ) -> None:
        if not Path(root).is_dir():
            raise UserError(f"{root}: no such folder of images")
        paths = sorted(
            Path(folder, name).relative_to(root).as_posix()
            for folder, _, names in os.walk(root)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        )
        if not paths:
            raise UserError(f"{root}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)})")
        first = [path.partition("/")[0] if "/" in path and not open_set else "" for path in paths]
        self.identities, labels = np.unique(first, return_inverse=True)
        if self.identities[0] == "":
            self.identities, labels = self.identities[1:], labels - 1
        super().__init__(root, paths, labels.astype(np.int64), len(self.identities), transform, max_pixels)

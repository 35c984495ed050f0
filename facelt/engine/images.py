"""Images to embed: a .rec, a list or a folder, each with keys, identities and what is known of them.

N images.
"""

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from facelt.config import DataConfig, ListData, TrainConfig
from facelt.data.image_dataset import ImageDataset
from facelt.data.image_list import is_labelled
from facelt.data.list_dataset import IMAGE_SUFFIXES, FileDataset, FolderDataset, ListDataset, PathListDataset
from facelt.data.record_dataset import RecordDataset
from facelt.data.transforms import CentreCrop, ExpectSize, ImageTransform
from facelt.errors import UserError


@dataclass(frozen=True)
class ImageSource:
    """A dataset, which of its images count, and a key, an identity and attributes [N] for each of those.

    `preparation` says what is done to the stored images before they are this dataset's.
    """

    dataset: ImageDataset
    members: np.ndarray
    keys: list[str]
    identities: list[str]
    attributes: dict[str, list[str]]
    preparation: dict[str, Any] = field(default_factory=dict)

    def without(self, bad: set[str]) -> "ImageSource":
        """The same without the images of these names."""
        kept = [place for place, index in enumerate(self.members) if self.dataset.names(index) not in bad]
        return replace(
            self,
            members=self.members[kept],
            keys=[self.keys[place] for place in kept],
            identities=[self.identities[place] for place in kept],
            attributes={name: [column[place] for place in kept] for name, column in self.attributes.items()},
        )


def transform_of(data: DataConfig) -> ImageTransform:
    """What is done to images that a trained model is asked about."""
    return CentreCrop(data.crop, data.resize) if isinstance(data, ListData) else ExpectSize(data.image_size)


def open_images(
    path: Path, config: TrainConfig, *, root: Path | None = None, manifest: Path | None = None
) -> ImageSource:
    """What `path` holds, prepared as the model's configuration says: a .rec, a folder, a list of paths, or one image.

    The identity of a record is its name in `identities.csv` beside the file, or its label; of a path its label, where
    the list has labels, or its last folder. Raises UserError.
    """
    data, transform = config.data, transform_of(config.data)
    if manifest is not None and path.suffix != ".rec":
        raise UserError(f"--manifest {manifest}: selects records of a .rec, and {path} is none")
    if path.suffix == ".rec":
        return _from_record(path, transform, manifest, data.max_pixels)
    if path.is_dir():
        return _from_paths(FolderDataset(path, transform=transform, max_pixels=data.max_pixels))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a .rec, a folder, a list of paths, or an image")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _from_paths(FileDataset(path.parent, [path.name], np.array([-1]), 0, transform, data.max_pixels))
    if root is None:
        raise UserError(f"{path}: a list needs --root, the folder its paths lie in")
    kind = ListDataset if is_labelled(path) else PathListDataset
    return _from_paths(kind(path, root, transform=transform, max_pixels=data.max_pixels))


def _from_record(path: Path, transform: ImageTransform, manifest: Path | None, max_pixels: int) -> ImageSource:
    dataset = RecordDataset(path, manifest=manifest, transform=transform, max_pixels=max_pixels)
    # identities.csv names the labels of the file itself, so a manifest's new labels do not go with it.
    named = read_identities(path.with_name("identities.csv")) if manifest is None else {}
    labels = [str(label) for label in dataset.labels.tolist()]
    columns = sorted({column for row in named.values() for column in row} - {"label", "name", "images"})
    return ImageSource(
        dataset,
        np.arange(len(dataset)),
        [str(key) for key in dataset.keys.tolist()],
        [named.get(label, {}).get("name", label) for label in labels],
        {column: [named.get(label, {}).get(column, "") for label in labels] for column in columns},
    )


def _from_paths(dataset: FileDataset) -> ImageSource:
    paths = list(dataset.paths)
    labelled = isinstance(dataset, ListDataset) and not isinstance(dataset, PathListDataset)
    identities = (
        [str(label) for label in dataset.labels.tolist()] if labelled else [Path(path).parent.name for path in paths]
    )
    return ImageSource(dataset, np.arange(len(dataset)), paths, identities, {})


def read_identities(path: Path) -> dict[str, dict[str, str]]:
    """Rows of identities.csv by label; none where the file is absent."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if rows and not {"label", "name"} <= rows[0].keys():
        raise UserError(f"{path}: needs the columns label and name")
    return {row["label"]: {key: value or "" for key, value in row.items() if key} for row in rows}

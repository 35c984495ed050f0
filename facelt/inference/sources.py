"""Images to embed: a .rec, a list or a folder, each with keys, identities and what is known of them.

N images.

Photographs to embed: aligned on the way, nothing is left of them but the store.

Shapes: N faces, 52 five points (x, y), H height, W width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facelt.alignment.align import similarity, warp
from facelt.alignment.detectors import open_detector
from facelt.alignment.photographs import Photograph, read_photograph
from facelt.alignment.run import QUALITY, Failure, Terms, no_face, quality_row, survey
from facelt.config.train import TrainConfig
from facelt.data.dataset import ImageDataset
from facelt.data.image_files import ImageFileDataset, ImageFolderDataset, ListDataset, UnlabelledListDataset
from facelt.data.records import RecordDataset
from facelt.data.transforms import ExpectSize, ImageTransform
from facelt.errors import UserError
from recordio_tools.face_set import IDENTITIES_FILE, read_identities
from recordio_tools.lists import IMAGE_SUFFIXES, has_labels
from recordio_tools.progress import ProgressFn, no_progress, track


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


def open_image_source(
    path: Path, config: TrainConfig, *, root: Path | None = None, manifest: Path | None = None
) -> ImageSource:
    """What `path` holds, prepared as the model's configuration says: a .rec, a folder, a list of paths, or one image.

    The identity of a record is its name in `identities.csv` beside the file, or its label; of a path its label, where
    the list has labels, or its last folder. Raises UserError.
    """
    data, transform = config.data, config.data.eval_transform()
    if manifest is not None and path.suffix != ".rec":
        raise UserError(f"--manifest {manifest}: selects records of a .rec, and {path} is none")
    if path.suffix == ".rec":
        return _from_record(path, transform, manifest, data.max_pixels)
    if path.is_dir():
        return _from_paths(ImageFolderDataset(path, transform=transform, max_pixels=data.max_pixels))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a .rec, a folder, a list of paths, or an image")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _from_paths(ImageFileDataset(path.parent, [path.name], np.array([-1]), 0, transform, data.max_pixels))
    if root is None:
        raise UserError(f"{path}: a list needs --root, the folder its paths lie in")
    kind = ListDataset if has_labels(path) else UnlabelledListDataset
    return _from_paths(kind(path, root, transform=transform, max_pixels=data.max_pixels))


def _from_record(path: Path, transform: ImageTransform, manifest: Path | None, max_pixels: int) -> ImageSource:
    dataset = RecordDataset(path, manifest=manifest, transform=transform, max_pixels=max_pixels)
    # identities.csv names the labels of the file itself, so a manifest's new labels do not go with it.
    table = path.with_name(IDENTITIES_FILE)
    named = read_identities(table) if manifest is None and table.is_file() else {}
    labels = dataset.labels.tolist()
    columns = sorted({column for row in named.values() for column in row} - {"label", "name", "images"})
    return ImageSource(
        dataset,
        np.arange(len(dataset)),
        [str(key) for key in dataset.keys.tolist()],
        [named[label]["name"] if label in named else str(label) for label in labels],
        {column: [named.get(label, {}).get(column, "") for label in labels] for column in columns},
    )


def _from_paths(dataset: ImageFileDataset) -> ImageSource:
    paths = list(dataset.paths)
    if dataset.is_labelled:
        identities = [str(label) for label in dataset.labels.tolist()]
    else:
        identities = [Path(path).parent.name for path in paths]
    return ImageSource(dataset, np.arange(len(dataset)), paths, identities, {})


class AlignedFaceDataset(ImageDataset):
    """Faces whose landmarks are known, cut out of their photographs whenever they are asked for.

    So a photograph is decoded once more than to find its faces, at most 7 hundredths of the time YuNet takes for that
    (12 million pixels); to keep the faces would take 38 KB of memory or disk for each.
    """

    def __init__(self, names: list[str], places: list[Path], landmark_N52: np.ndarray, side: int, max_pixels: int):
        super().__init__(np.full(len(names), -1), 0, ExpectSize((side, side)))
        self._names, self._places, self._landmark_N52 = names, places, landmark_N52
        self._side, self._max_pixels = side, max_pixels
        self._last: tuple[Path, np.ndarray] | None = None

    def image_name(self, index: int) -> str:
        return self._names[index]

    def read_image(self, index: int) -> np.ndarray:
        place = self._places[index]
        # The faces of a photograph follow one another.
        if self._last is None or self._last[0] != place:
            self._last = place, read_photograph(place, self._max_pixels)
        return warp(self._last[1], similarity(self._landmark_N52[index], self._side), self._side)


def open_photograph_source(
    photographs: Sequence[Photograph],
    terms: Terms,
    image_size: tuple[int, int],
    workers: int,
    progress: ProgressFn = no_progress,
) -> tuple[ImageSource, list[Failure]]:
    """The faces of the photographs, of the size a model expects, and those photographs that gave none.

    A face's key is its photograph's name, with `#` and its number where all faces are taken. Everything is looked at
    once, here. Raises UserError: a photograph that is listed twice, no face at all, a model of images that
    are no squares, or what `survey` raises.
    """
    height, width = image_size
    if height != width:
        raise UserError(f"--align: the model's images are {height} x {width} pixels, and aligned faces are squares")
    name, times = Counter(photograph.name for photograph in photographs).most_common(1)[0]
    if times > 1:
        raise UserError(f"the photograph {name} is listed {times} times; name each once")
    failed, shows, keys, landmarks, rows = [], [], [], [], []
    for item in track(survey(photographs, terms, workers), "aligning", len(photographs), progress):
        if isinstance(item, Failure):
            failed.append(item)
            continue
        # Their pixels are let go: the photographs of a large set would not fit in memory as faces either.
        for face in item.faces:
            shows.append(item.photograph)
            keys.append(item.photograph.name + (f"#{face.number}" if terms.every else ""))
            landmarks.append(face.face.landmark_52)
            rows.append([item.photograph.name, *map(str, quality_row(face))])
    if not keys:
        raise no_face(failed)
    places = [photograph.place for photograph in shows]
    alignment = {"detector": open_detector(terms.detector, terms.min_score).name, "template": "arcface"}
    return ImageSource(
        AlignedFaceDataset(keys, places, np.stack(landmarks), height, terms.max_pixels),
        np.arange(len(keys)),
        keys,
        [photograph.identity for photograph in shows],
        dict(zip(("source", *QUALITY), map(list, zip(*rows, strict=True)), strict=True)),
        {"alignment": alignment},
    ), failed

"""Image sources to embed: a record file, a list, a folder, one image, or photographs that are aligned on the way.

N images, 52 five points (x, y).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facelt.alignment.align import similarity_transform, warp_face
from facelt.alignment.detect import DetectionFailure, DetectionOptions, detect_all
from facelt.alignment.detectors import open_detector
from facelt.alignment.photographs import Photograph, read_photograph
from facelt.alignment.run import QUALITY_COLUMNS, no_face_error, quality_row
from facelt.config.train import TrainConfig
from facelt.data.dataset import ImageDataset
from facelt.data.image_files import ImageFileDataset, ImageFolderDataset, ListDataset, UnlabelledListDataset
from facelt.data.records import RecordDataset
from facelt.data.transforms import ExpectSize, ImageTransform, Resize
from facelt.errors import UserError
from recordio_tools.face_set import IDENTITIES_FILE, read_identities
from recordio_tools.lists import IMAGE_SUFFIXES, has_labels
from recordio_tools.progress import ProgressFn, no_progress, track


@dataclass(frozen=True)
class ImageSource:
    """A dataset, the indices of the images to embed, and their keys, identities and attributes, [N] each.

    `preprocessing` describes what was done to the images before they reach the dataset, for a store's metadata.
    """

    dataset: ImageDataset
    members: np.ndarray
    keys: list[str]
    identities: list[str]
    attributes: dict[str, list[str]]
    preprocessing: dict[str, Any] = field(default_factory=dict)


def open_image_source(
    path: Path, config: TrainConfig, *, root: Path | None = None, manifest: Path | None = None
) -> ImageSource:
    """Opens a .rec, a folder, a list of paths, or one image, with the transform of the model's configuration.

    The identity of a record is its label's name in the `identities.csv` of the same folder, or else its label; the
    identity of a path is its label if the list has labels, or else its last folder. Raises UserError, also if none of a
    few images can be used.
    """
    source = _open_source(path, config, root, manifest)
    source.dataset.require_usable(source.members)
    return source


def _open_source(path: Path, config: TrainConfig, root: Path | None, manifest: Path | None) -> ImageSource:
    data, transform = config.data, config.data.eval_transform()
    if manifest is not None and path.suffix != ".rec":
        raise UserError(f"--manifest {manifest}: only applies to .rec files, not {path}")
    if path.suffix == ".rec":
        return _from_record(path, transform, manifest, data.max_pixels)
    if path.is_dir():
        return _from_paths(ImageFolderDataset(path, transform=transform, max_pixels=data.max_pixels))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a .rec, a folder, a list of paths, or an image")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _from_paths(ImageFileDataset(path.parent, [path.name], np.array([-1]), 0, transform, data.max_pixels))
    if root is None:
        raise UserError(f"{path}: a list needs --root, the folder of its paths")
    kind = ListDataset if has_labels(path) else UnlabelledListDataset
    return _from_paths(kind(path, root, transform=transform, max_pixels=data.max_pixels))


class ArrayDataset(ImageDataset):
    """Images in memory, uint8 [N,H,W,3] RGB, without labels."""

    def __init__(self, image_NHW3: np.ndarray, transform: ImageTransform) -> None:
        super().__init__(np.full(len(image_NHW3), -1), 0, transform)
        self._image_NHW3 = image_NHW3

    def image_name(self, index: int) -> str:
        return f"image {index}"

    def read_image(self, index: int) -> np.ndarray:
        # A view may be read-only or reversed, which torch does not take.
        return self._image_NHW3[index].copy()


def open_images(images: np.ndarray | str | Path | Sequence[str | Path], config: TrainConfig) -> ImageSource:
    """Opens an array uint8 [N,H,W,3], RGB, a list of image files, or what `open_image_source` opens. Raises UserError.

    The keys are the positions in an array, and the paths of files.
    """
    if isinstance(images, str | Path):
        return open_image_source(Path(images), config)
    data, transform = config.data, config.data.eval_transform()
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(
                f"images: an array {images.dtype} {list(images.shape)}; expected uint8 [N,H,W,3], RGB from 0 to 255"
            )
        keys = [str(index) for index in range(len(images))]
        return ImageSource(ArrayDataset(images, transform), np.arange(len(images)), keys, [""] * len(images), {})
    paths = list(images)
    if unfit := [path for path in paths if not isinstance(path, str | Path)]:
        raise UserError(
            f"images: expected an array uint8 [N,H,W,3] or a list of files, found a {type(unfit[0]).__name__} in a list"
        )
    names = [str(path) for path in paths]
    return _from_paths(ImageFileDataset(Path(), names, np.full(len(names), -1), 0, transform, data.max_pixels))


def _from_record(path: Path, transform: ImageTransform, manifest: Path | None, max_pixels: int) -> ImageSource:
    dataset = RecordDataset(path, manifest=manifest, transform=transform, max_pixels=max_pixels)
    # identities.csv names the labels of the record file, not the new labels of a manifest.
    table = path.with_name(IDENTITIES_FILE)
    rows = read_identities(table) if manifest is None and table.is_file() else {}
    labels = dataset.labels.tolist()
    columns = sorted({column for row in rows.values() for column in row} - {"label", "name", "images"})
    return ImageSource(
        dataset,
        np.arange(len(dataset)),
        [str(key) for key in dataset.keys.tolist()],
        [rows[label]["name"] if label in rows else str(label) for label in labels],
        {column: [rows.get(label, {}).get(column, "") for label in labels] for column in columns},
    )


def _from_paths(dataset: ImageFileDataset) -> ImageSource:
    paths = list(dataset.paths)
    if dataset.is_labelled:
        identities = [str(label) for label in dataset.labels.tolist()]
    else:
        identities = [Path(path).parent.name for path in paths]
    return ImageSource(dataset, np.arange(len(dataset)), paths, identities, {})


class AlignedFaceDataset(ImageDataset):
    """Faces that are cropped from their photographs by known landmarks when read.

    A photograph is thus decoded once more than for detection, which adds at most 7 % of YuNet's time at 12 megapixels;
    keeping the crops would take 38 KB of memory or disk for each face.
    """

    def __init__(self, names: list[str], paths: list[Path], landmark_N52: np.ndarray, side: int, max_pixels: int):
        super().__init__(np.full(len(names), -1), 0, ExpectSize((side, side)))
        self._names, self._paths, self._landmark_N52 = names, paths, landmark_N52
        self._side, self._max_pixels = side, max_pixels
        self._last: tuple[Path, np.ndarray] | None = None

    def image_name(self, index: int) -> str:
        return self._names[index]

    def read_image(self, index: int) -> np.ndarray:
        path = self._paths[index]
        # Faces of one photograph are adjacent.
        if self._last is None or self._last[0] != path:
            self._last = path, read_photograph(path, self._max_pixels)
        return warp_face(self._last[1], similarity_transform(self._landmark_N52[index], self._side), self._side)


def open_landmark_source(root: Path, names: list[str], landmark_N52: np.ndarray, config: TrainConfig) -> ImageSource:
    """Opens photographs below `root` whose faces are cropped at listed landmarks, at the model's image size.

    Raises UserError for a model whose images are not square, and if none of a few photographs can be used.
    """
    side = _square_side(config.data.image_size, "landmarks")
    paths = [root / name for name in names]
    dataset = AlignedFaceDataset(names, paths, landmark_N52, side, config.data.max_pixels)
    dataset.require_usable(np.arange(len(names)))
    alignment = {"detector": "listed landmarks", "template": "arcface"}
    return ImageSource(dataset, np.arange(len(names)), names, [""] * len(names), {}, {"alignment": alignment})


def open_file_source(
    root: Path, paths: list[str], identities: list[str], config: TrainConfig, *, resize: bool
) -> ImageSource:
    """Opens image files below `root` at the model's image size; images of another size are resized only on request.

    Raises UserError if none of a few images can be used.
    """
    size = config.data.image_size
    transform = Resize(size) if resize else ExpectSize(size, "; align the images, or resize them with --resize")
    dataset = ImageFileDataset(root, paths, np.full(len(paths), -1), 0, transform, config.data.max_pixels)
    dataset.require_usable(np.arange(len(paths)))
    preprocessing = {"resized": True} if resize else {}
    return ImageSource(dataset, np.arange(len(paths)), paths, identities, {}, preprocessing)


def _square_side(image_size: tuple[int, int], option: str) -> int:
    height, width = image_size
    if height != width:
        raise UserError(f"{option}: the model's images are {height} x {width} pixels, but aligned faces are square")
    return height


def open_photograph_source(
    photographs: Sequence[Photograph],
    options: DetectionOptions,
    image_size: tuple[int, int],
    workers: int,
    progress: ProgressFn = no_progress,
) -> tuple[ImageSource, list[DetectionFailure]]:
    """Detects the faces of photographs; returns them, at a model's image size, and the photographs without any.

    The key of a face is its photograph's name, followed by `#` and its number if all faces are kept. Raises UserError
    for a photograph that is listed twice, no face at all, a model whose images are not square, and as `detect_all`
    does.
    """
    side = _square_side(image_size, "--align")
    name, times = Counter(photograph.name for photograph in photographs).most_common(1)[0]
    if times > 1:
        raise UserError(f"the photograph {name} is listed {times} times; list each once")
    failed, sources, keys, landmarks, rows = [], [], [], [], []
    for item in track(detect_all(photographs, options, workers), "aligning", len(photographs), progress):
        if isinstance(item, DetectionFailure):
            failed.append(item)
            continue
        # The pixels are dropped: even the crops of a large set would not fit in memory.
        for face in item.faces:
            sources.append(item.photograph)
            keys.append(item.photograph.name + (f"#{face.number}" if options.all_faces else ""))
            landmarks.append(face.face.landmark_52)
            rows.append([item.photograph.name, *map(str, quality_row(face))])
    if not keys:
        raise no_face_error(failed)
    paths = [photograph.path for photograph in sources]
    alignment = {"detector": open_detector(options.detector, options.min_score).name, "template": "arcface"}
    return ImageSource(
        AlignedFaceDataset(keys, paths, np.stack(landmarks), side, options.max_pixels),
        np.arange(len(keys)),
        keys,
        [photograph.identity for photograph in sources],
        dict(zip(("source", *QUALITY_COLUMNS), map(list, zip(*rows, strict=True)), strict=True)),
        {"alignment": alignment},
    ), failed

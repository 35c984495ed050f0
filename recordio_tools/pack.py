"""Packing image files into a face set in InsightFace's layout, and unpacking; encoded bytes are copied unchanged."""

from pathlib import Path

import numpy as np

from recordio_tools.atomic_io import atomic_folder
from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import IDENTITIES_FILE, FaceRecord, write_identities
from recordio_tools.image_header import EXTENSIONS, decode, image_format, image_size
from recordio_tools.lists import ListedImage, read_folders, read_lst
from recordio_tools.progress import ProgressFn, no_progress, track
from recordio_tools.writer import FaceRecordWriter

_JPEG_QUALITY = 95


def pack_images(
    source: Path,
    out: Path,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: ProgressFn = no_progress,
    overwrite: bool = False,
) -> dict:
    """Packs one folder per identity, or a .lst, into out/train.rec, .idx and property; `out` is written atomically.

    Raises RecordIOError naming the first file that cannot be packed, and UserError if `out` is not empty (without
    `overwrite`) or holds the source.
    """
    sources = [source] if root is None else [source, root]
    with atomic_folder(out, overwrite, sources) as folder:
        if source.is_dir():
            images, names = read_folders(source)
        else:
            images, names = sorted(read_lst(source, root), key=lambda image: image.label), None
        image_size = _write_record(images, folder / "train.rec", size, progress)
        counts = np.bincount([image.label for image in images])
        if names is not None:
            rows = [
                {"label": label, "name": name, "gender": "unknown", "images": count}
                for label, (name, count) in enumerate(zip(names, counts.tolist(), strict=True))
            ]
            write_identities(folder / IDENTITIES_FILE, rows)
    return {"images": len(images), "identities": int(np.count_nonzero(counts)), "image_size": list(image_size)}


def _write_record(
    images: list[ListedImage], path: Path, size: tuple[int, int] | None, progress: ProgressFn
) -> tuple[int, int]:
    """Writes images in order of their labels; returns their size. Raises RecordIOError at one of another size."""
    expected = size
    with FaceRecordWriter(path, size or (0, 0)) as writer:
        for image_path, label in track(images, "packing", len(images), progress):
            payload, image_hw = _load(image_path, size)
            expected = expected or image_hw
            if image_hw != expected:
                sizes = f"{image_hw[0]} x {image_hw[1]} pixels, others {expected[0]} x {expected[1]}"
                raise RecordIOError(f"{image_path}: {sizes}; resize all with --size HEIGHTxWIDTH")
            writer.image_size = expected
            writer.write(label, payload)
    return expected


def _load(path: Path, size: tuple[int, int] | None) -> tuple[bytes, tuple[int, int]]:
    regular_file_exists(path)
    try:
        payload = path.read_bytes()
        image_hw = image_size(payload)
        if size is None or image_hw == size:
            return payload, image_hw
        image = decode(payload)
    except OSError as error:
        raise RecordIOError(f"{path}: cannot be read ({error.strerror})") from None
    except RecordIOError as error:
        raise RecordIOError(f"{path}: {error}") from None
    import cv2

    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes(), size


def unpack_images(
    source: Path,
    out: Path,
    progress: ProgressFn = no_progress,
    overwrite: bool = False,
    cache: Path | None = None,
) -> dict:
    """Writes every image to out/LABEL/KEY.EXT, and out/images.lst (index, label, path), which `pack` reads.

    Returns counts. Raises UserError if `out` is not empty (without `overwrite`) or holds the source, or a record is
    damaged; `out` is then unchanged.
    """
    with atomic_folder(out, overwrite, [source]) as folder:
        with FaceRecord(source, cache=cache) as faces:
            lines = _write_images(faces, folder, progress)
            summary = {"images": len(faces), "identities": int(np.count_nonzero(faces.counts))}
        (folder / "images.lst").write_text("".join(lines), "utf-8")
    return summary


def _write_images(faces: FaceRecord, folder: Path, progress: ProgressFn) -> list[str]:
    lines = []
    for label in np.flatnonzero(faces.counts).tolist():
        (folder / f"{label:07d}").mkdir(parents=True)
    pairs = zip(faces.image_keys.tolist(), faces.labels.tolist(), strict=True)
    for key, label in track(pairs, "unpacking", len(faces), progress):
        payload = faces.read(key).payload
        name = f"{label:07d}/{key:08d}{EXTENSIONS.get(image_format(payload), '.bin')}"
        (folder / name).write_bytes(payload)
        lines.append(f"{key}\t{label}\t{name}\n")
    return lines

"""InsightFace's face sets: a .rec with `property`, labels of images, and the table identities.csv.

The layout: images under keys 1..N, then one record per identity with no image and the range of its images' keys as two
labels, then record 0 with the range of the identities' keys. All labels are float32. A file `property` next to the .rec
holds identities, height, width. Since float32 counts exactly only to 2^24, the index decides which records exist;
record 0 and the identities' records may be absent. N images, C identities, R records.

identities.csv next to a face set has the columns label, name, gender, images, and possibly others.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recordio_tools.atomic_io import write_text
from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.cache import cache_path, file_stamp, load_or_compute
from recordio_tools.errors import RecordIOError
from recordio_tools.format import (
    FRAME_STRUCT,
    HEADER_STRUCT,
    MAX_EXACT_FLOAT32,
    Record,
    gather_headers,
    is_beyond_int64,
)
from recordio_tools.progress import ProgressFn, no_progress
from recordio_tools.reader import RecordReader

IDENTITIES_FILE = "identities.csv"


def read_property(path: Path) -> tuple[int, int, int]:
    """Reads identities, height and width from a `property` file; raises RecordIOError if its first line differs."""
    try:
        fields = path.read_text("utf-8").splitlines()[0].split(",")
        identities, height, width = (int(field) for field in fields)
    except (OSError, UnicodeDecodeError, ValueError, IndexError):
        raise RecordIOError(f"{path}: the first line must be identities,height,width, such as 85742,112,112") from None
    if not 0 <= identities <= MAX_EXACT_FLOAT32 or height <= 0 or width <= 0:
        raise RecordIOError(f"{path}: {identities},{height},{width} is out of range")
    return identities, height, width


class FaceRecord:
    """Images and labels of a .rec, read without decoding an image.

    image_keys: int64 [N] in file order; labels: int64 [N]; counts: int64 [C], images of each identity, may be 0;
    num_identities: C from `property`, else from the identity records and the labels; image_size: (height, width) from
    `property`, or None; label_source: "ranges" or "headers".

    Labels come from the identity records if their ranges are exact, otherwise from one pass over the headers, cached
    in the folder `cache` (see `cache_path`). Raises RecordIOError naming record and label if a label is not a whole
    number from 0 to C - 1.
    """

    def __init__(
        self,
        path: str | Path,
        index_path: str | Path | None = None,
        progress: ProgressFn = no_progress,
        cache: Path | None = None,
    ) -> None:
        self.reader = RecordReader(path, index_path, cache=cache)
        try:
            self._load(progress, cache)
        except BaseException:
            self.reader.close()
            raise

    def _load(self, progress: ProgressFn, cache: Path | None) -> None:
        reader = self.reader
        property_path = reader.path.with_name("property")
        declared = read_property(property_path) if regular_file_exists(property_path) else None
        self.image_size = declared[1:] if declared else None
        header_only_R = _header_only_mask(reader)
        self.image_keys = reader.keys[~header_only_R]
        self.identity_keys = reader.keys[header_only_R & (reader.keys != 0)]
        labels = self._labels_from_ranges()
        self.label_source = "headers" if labels is None else "ranges"
        if labels is None:
            keys, labels = load_or_compute(
                cache_path(reader.path, "labels", cache),
                file_stamp(reader.path, reader.index_path),
                2,
                lambda: np.stack([self.image_keys, self._labels_from_headers(progress)]),
            )
            if not np.array_equal(keys, self.image_keys):  # a forged cache
                labels = self._labels_from_headers(progress)
        self.labels = labels
        highest = int(labels.max(initial=-1))
        self.num_identities = declared[0] if declared else max(len(self.identity_keys), highest + 1)
        if highest >= self.num_identities:
            record = int(self.image_keys[labels == highest][0])
            raise RecordIOError(
                f"{reader.path}: record {record} has label {highest}, "
                f"but {property_path} declares {self.num_identities} identities"
            )
        self.counts = np.bincount(labels, minlength=self.num_identities).astype(np.int64, copy=False)

    def _headers(self, keys: np.ndarray, progress: ProgressFn = no_progress):
        offsets = np.asarray(self.reader.offsets)[np.isin(self.reader.keys, keys)]
        try:
            return gather_headers(self.reader.view, offsets, self.reader.label_width, progress)
        except RecordIOError as error:
            raise RecordIOError(f"{self.reader.path}: {error}") from None

    def _labels_from_headers(self, progress: ProgressFn) -> np.ndarray:
        return self._checked_labels(self.image_keys, self._headers(self.image_keys, progress).label_N)

    def _checked_labels(self, keys: np.ndarray, label_N: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            wrong = ~((label_N >= 0) & (label_N == np.floor(label_N)) & (label_N < MAX_EXACT_FLOAT32))
        if wrong.any():
            raise RecordIOError(
                f"{self.reader.path}: record {keys[wrong][0]} has label {label_N[wrong][0]:g}, which is not an identity"
            )
        return label_N.astype(np.int64)

    def _labels_from_ranges(self) -> np.ndarray | None:
        """Labels [N] from the ranges of the identity records, or None if these are not reliable.

        Reliable ranges end below 2^24, cover all images without gap or overlap, and the first and last image of each
        range have the same label, which need not be the position of the identity record.
        """
        if not len(self.identity_keys) or not len(self.image_keys):
            return None
        headers = self._headers(self.identity_keys)
        start_C, end_C = headers.label_N, headers.second_label_N
        if not (np.isfinite(start_C) & np.isfinite(end_C) & (end_C < MAX_EXACT_FLOAT32) & (start_C <= end_C)).all():
            return None
        used_C = start_C < end_C
        order = np.argsort(start_C[used_C])
        start, end = start_C[used_C][order].astype(np.int64), end_C[used_C][order].astype(np.int64)
        first, last = int(self.image_keys[0]), int(self.image_keys[-1])
        in_sequence = bool((np.diff(self.image_keys) == 1).all())
        if (
            not in_sequence
            or not len(start)
            or start[0] != first
            or end[-1] != last + 1
            or (start[1:] != end[:-1]).any()
        ):
            return None
        first_labels = self._checked_labels(start, self._headers(start).label_N)
        last_labels = self._checked_labels(end - 1, self._headers(end - 1).label_N)
        return np.repeat(first_labels, end - start) if np.array_equal(first_labels, last_labels) else None

    def read(self, key: int) -> Record:
        """Returns header and payload of one record; see RecordReader.read."""
        return self.reader.read(key)

    def __len__(self) -> int:
        return len(self.image_keys)

    @property
    def path(self) -> Path:
        """The .rec file."""
        return self.reader.path

    def close(self) -> None:
        """Closes the file."""
        self.reader.close()

    def __enter__(self) -> "FaceRecord":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header_only_mask(reader: RecordReader) -> np.ndarray:
    """Mask, bool [R], of the records that hold two labels and no image.

    Only the records whose distance to the next offset fits are read.
    """
    length = HEADER_STRUCT.size + 2 * reader.label_width
    extent_R = np.diff(reader.offsets, append=len(reader.view))
    is_bare_R = extent_R == FRAME_STRUCT.size + length
    if is_bare_R.any():
        try:
            headers = gather_headers(reader.view, reader.offsets[is_bare_R], reader.label_width)
        except RecordIOError as error:
            raise RecordIOError(f"{reader.path}: {error}") from None
        is_bare_R[is_bare_R] = (headers.flag_N == 2) & (headers.length_N == length)
    return is_bare_R


def read_identities(path: Path) -> dict[int, dict[str, str]]:
    """Returns the rows of an identities.csv by label, all columns included.

    Raises RecordIOError naming the file and the line: no columns `label` and `name`, a row with too many or too few
    fields, a label that is no whole number or is repeated.
    """
    rows: dict[int, dict[str, str]] = {}
    regular_file_exists(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if not {"label", "name"} <= set(reader.fieldnames or ()):
                header = reader.fieldnames or ()
                raise RecordIOError(
                    f"{path}: needs the columns label and name; its header is {', '.join(header)!r} between commas"
                )
            for row in reader:
                label = (row["label"] or "").strip()
                is_label = label.isdecimal() and not is_beyond_int64(label)
                if None in row or None in row.values() or not is_label or int(label) in rows:
                    raise RecordIOError(
                        f"{path}: line {reader.line_num} lacks a field, has one too many, or repeats its label"
                    )
                rows[int(label)] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordIOError(f"{path}: cannot be read ({error})") from None
    return rows


def write_identities(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes an identities.csv; the columns are those of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())

"""Writers of .rec files with their .idx, and of face sets in InsightFace's layout."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np

from recordio_tools.atomic_io import atomic_replace, sync, write_text
from recordio_tools.errors import RecordIOError
from recordio_tools.format import MAX_EXACT_FLOAT32, IRHeader, encode_header, encode_record


class RecordWriter:
    """Writes `path` and its .idx as MXNet's indexed writer does, byte for byte.

    A context manager: both files appear when the block succeeds; after an error the old ones are unchanged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index_path = self.path.with_suffix(".idx")
        if self.index_path == self.path:
            raise RecordIOError(f"{self.path}: the record file's name must not end in .idx")
        self._keys: set[int] = set()
        self._offset = 0
        with ExitStack() as stack:
            temporary_index = stack.enter_context(atomic_replace(self.index_path))
            temporary = stack.enter_context(atomic_replace(self.path))
            self._index = stack.enter_context(temporary_index.open("wb"))
            self._stream = stack.enter_context(temporary.open("wb"))
            self._files = stack.pop_all()

    def write(self, key: int, header: IRHeader, payload: bytes | memoryview) -> None:
        """Appends one record. The flag of the header is set from its label: 0 for a number, the length of a vector.

        Raises RecordIOError for a key below 0 or used before, and for a record too long for the format.
        """
        key = int(key)
        if key < 0 or key in self._keys:
            raise RecordIOError(f"{self.path}: key {key} is {'below 0' if key < 0 else 'written twice'}")
        frames = encode_record(encode_header(header.label, int(header.id), int(header.id2)) + bytes(payload))
        self._keys.add(key)
        self._index.write(b"%d\t%d\n" % (key, self._offset))
        self._stream.write(frames)
        self._offset += len(frames)

    def write_labels(self, key: int, labels: Sequence[float] | np.ndarray) -> None:
        """Appends a record that holds a vector of labels and no payload; its id is its key."""
        self.write(key, IRHeader(0, np.asarray(labels, dtype="<f4"), key, 0), b"")

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._files:
            if error is not None:
                raise error
            sync(self._stream)
            sync(self._index)
            # A .rec without an .idx is readable, with the wrong one it is not: remove the old index first.
            self.index_path.unlink(missing_ok=True)


class FaceRecordWriter:
    """Writes images 1..N grouped by label, then one record per identity, then record 0, and the file `property`.

    `image_size` is (height, width). Labels must be in ascending order; labels left out, and those after the last up to
    `num_identities`, become identities without images. A context manager: all files appear when the block succeeds.
    """

    def __init__(self, path: str | Path, image_size: tuple[int, int], num_identities: int | None = None) -> None:
        self.image_size = image_size
        self._num_identities = num_identities
        self._starts: list[int] = []  # the first key of each identity so far
        self._next_key = 1
        self._writer = RecordWriter(path)
        self.path = self._writer.path

    def write(self, label: int, payload: bytes | memoryview) -> int:
        """Appends one encoded image and returns its key. Raises RecordIOError for a label out of order or range."""
        limit = MAX_EXACT_FLOAT32 if self._num_identities is None else self._num_identities
        if not 0 <= label < limit:
            raise RecordIOError(f"{self.path}: label {label} is outside 0..{limit - 1}")
        if label < len(self._starts) - 1:
            raise RecordIOError(f"{self.path}: label {label} comes after label {len(self._starts) - 1}: group by label")
        key = self._next_key
        self._starts.extend([key] * (label + 1 - len(self._starts)))
        self._writer.write(key, IRHeader(0, float(label), key, 0), payload)
        self._next_key += 1
        return key

    def write_all(self, images: Iterable[tuple[int, bytes | memoryview]]) -> None:
        """Appends (label, encoded image) pairs in order."""
        for label, payload in images:
            self.write(label, payload)

    def __enter__(self) -> "FaceRecordWriter":
        self._writer.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._writer:
            if error is not None:
                raise error
            self._write_identities()
        count = len(self._starts) if self._num_identities is None else self._num_identities
        write_text(self.path.with_name("property"), f"{count},{self.image_size[0]},{self.image_size[1]}\n")

    def _write_identities(self) -> None:
        first = self._next_key
        empty = 0 if self._num_identities is None else self._num_identities - len(self._starts)
        bounds = [*self._starts, *[first] * (empty + 1)]
        for identity, (start, end) in enumerate(pairwise(bounds)):
            self._writer.write_labels(first + identity, (start, end))
        self._writer.write_labels(0, (first, first + len(bounds) - 1))

"""Writing a face set in InsightFace's layout."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from recordio_tools.errors import RecordIOError
from recordio_tools.files import write_text
from recordio_tools.header import EXACT_FLOAT32, IRHeader
from recordio_tools.writer import RecordWriter


class FaceRecordWriter:
    """Writes images 1..N grouped by label, then one record per identity, then record 0, and the file `property`.

    `image_size` is (height, width). Labels must come in ascending order; a label that is left out becomes an identity
    without images, as do those after the last up to `num_identities`. A context manager: all files appear at its end.
    """

    def __init__(self, path: str | Path, image_size: tuple[int, int], num_identities: int | None = None) -> None:
        self.image_size = image_size
        self._num_identities = num_identities
        self._starts: list[int] = []  # the first key of each identity so far
        self._next_key = 1
        self._writer = RecordWriter(path)
        self.path = self._writer.path

    def write(self, label: int, payload: bytes | memoryview) -> int:
        """Append one encoded image and return its key. Raises RecordIOError for a label out of order or range."""
        limit = EXACT_FLOAT32 if self._num_identities is None else self._num_identities
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
        """Append (label, encoded image) pairs in order."""
        for label, payload in images:
            self.write(label, payload)

    def __enter__(self) -> "FaceRecordWriter":
        self._writer.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._writer.__exit__(kind, error, trace)
            return
        try:
            self._write_identities()
        except BaseException as failure:
            self._writer.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._writer.__exit__(None, None, None)
        count = len(self._starts) if self._num_identities is None else self._num_identities
        write_text(self.path.with_name("property"), f"{count},{self.image_size[0]},{self.image_size[1]}\n")

    def _write_identities(self) -> None:
        first = self._next_key
        empty = 0 if self._num_identities is None else self._num_identities - len(self._starts)
        bounds = [*self._starts, *[first] * (empty + 1)]
        for identity, (start, end) in enumerate(pairwise(bounds)):
            self._writer.write_labels(first + identity, (start, end))
        self._writer.write_labels(0, (first, first + len(bounds) - 1))

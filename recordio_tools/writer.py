"""Writing a .rec and its .idx: both are whole, or neither is there."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.files import flush, sync_folder, temporary_beside
from recordio_tools.framing import encode
from recordio_tools.header import IRHeader, pack_header


class RecordWriter:
    """Writes `path` and the .idx beside it, as MXNet's indexed writer does, byte for byte.

    A context manager: the files appear when the block ends well. An error inside it leaves what was there before.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index_path = self.path.with_suffix(".idx")
        if self.index_path == self.path:
            raise RecordIOError(f"{self.path}: the record file's name must not end in .idx")
        self._keys: set[int] = set()
        self._offset = 0
        self._partial, self._partial_index = temporary_beside(self.path), temporary_beside(self.index_path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._partial.open("xb")
            self._index = self._partial_index.open("xb")
        except OSError as error:
            raise RecordIOError(f"{self.path}: cannot be written ({error.strerror})") from None

    def write(self, key: int, header: IRHeader, payload: bytes | memoryview) -> None:
        """Append one record. The header's flag follows from its label: 0 for a number, the length of a vector.

        Raises RecordIOError for a key below 0 or used before, and for a record too long for the format.
        """
        key = int(key)
        if key < 0 or key in self._keys:
            raise RecordIOError(f"{self.path}: key {key} is {'below 0' if key < 0 else 'written twice'}")
        frames = encode(pack_header(header.label, int(header.id), int(header.id2)) + bytes(payload))
        self._keys.add(key)
        self._index.write(b"%d\t%d\n" % (key, self._offset))
        self._stream.write(frames)
        self._offset += len(frames)

    def write_labels(self, key: int, labels: Sequence[float] | np.ndarray) -> None:
        """Append a record that holds a vector of labels and no payload; its id is its key."""
        self.write(key, IRHeader(0, np.asarray(labels, dtype="<f4"), key, 0), b"")

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            for stream, partial in ((self._stream, self._partial), (self._index, self._partial_index)):
                stream.close()
                partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        for stream in (self._stream, self._index):
            flush(stream)
            stream.close()
        # Without its .idx a .rec is still readable; with a wrong one it is not. So the old index goes first.
        self.index_path.unlink(missing_ok=True)
        self._partial.replace(self.path)
        self._partial_index.replace(self.index_path)
        sync_folder(self.path.parent)

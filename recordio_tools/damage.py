"""What verification finds and reports."""

from array import array
from typing import NamedTuple

import numpy as np

from recordio_tools.header import Record


class Damage(NamedTuple):
    """What is wrong with one record; the key is None where neither index nor header tells it."""

    key: int | None
    offset: int
    reason: str


class Report(NamedTuple):
    """The outcome: records met, images among them, and all damage in the order of the file."""

    path: str
    records: int
    images: int
    damages: list[Damage]


class RecordTable:
    """Keys, offsets, ids, first two labels and kind of the R readable records, in plain arrays."""

    def __init__(self) -> None:
        self._columns = {name: array(code) for name, code in zip(self.NAMES, "qqQddb", strict=True)}

    NAMES = ("key", "offset", "id", "label", "second_label", "bare")
    DTYPES = ("i8", "i8", "u8", "f8", "f8", "i1")

    def add(self, key: int | None, offset: int, record: Record) -> None:
        """Append one record; a key of None is kept as -1."""
        labels = np.ravel(record.header.label)
        second = labels[1] if len(labels) > 1 else 0.0
        bare = record.header.flag == 2 and not len(record.payload)
        row = (-1 if key is None else key, offset, record.header.id, labels[0], second, bare)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns by name, [R] each."""
        columns = zip(self._columns.items(), self.DTYPES, strict=True)
        return {name: np.array(column, dtype=dtype) for (name, column), dtype in columns}

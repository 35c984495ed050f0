"""The RecordIO format of InsightFace and MXNet: reading, writing, sampling, packing and verification without MXNet.

Names are imported when they are first used, so that a module of the package without numpy loads none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recordio_tools.errors import RecordIOError
    from recordio_tools.face_set import FaceRecord
    from recordio_tools.format import IRHeader, Record
    from recordio_tools.long_tail import Selection, sample_exponential, sample_pareto, sample_proportional
    from recordio_tools.reader import RecordReader
    from recordio_tools.writer import FaceRecordWriter, RecordWriter

__all__ = [
    "FaceRecord",
    "FaceRecordWriter",
    "IRHeader",
    "Record",
    "RecordIOError",
    "RecordReader",
    "RecordWriter",
    "Selection",
    "sample_exponential",
    "sample_pareto",
    "sample_proportional",
]

_MODULES = {
    "FaceRecord": "face_set",
    "FaceRecordWriter": "writer",
    "IRHeader": "format",
    "Record": "format",
    "RecordIOError": "errors",
    "RecordReader": "reader",
    "RecordWriter": "writer",
    "Selection": "long_tail",
    "sample_exponential": "long_tail",
    "sample_pareto": "long_tail",
    "sample_proportional": "long_tail",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'recordio_tools' has no attribute {name!r}")
    return getattr(import_module(f"recordio_tools.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

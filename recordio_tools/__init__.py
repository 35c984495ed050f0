"""The RecordIO format of InsightFace and MXNet: reading, writing, sampling, packing and verification without MXNet."""

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

"""The InsightFace/MXNet RecordIO format without MXNet: read, write, sample, pack and verify."""

from recordio_tools.errors import RecordIOError
from recordio_tools.face_layout import FaceRecord
from recordio_tools.face_writer import FaceRecordWriter
from recordio_tools.header import IRHeader, Record
from recordio_tools.long_tail import Selection, sample_exponential, sample_pareto, sample_proportional
from recordio_tools.reader import RecordReader
from recordio_tools.writer import RecordWriter

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

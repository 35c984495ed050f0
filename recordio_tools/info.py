"""What a .rec holds, in figures."""

from pathlib import Path

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.face_layout import FaceRecord
from recordio_tools.header_scan import Progress
from recordio_tools.image import image_format, image_size
from recordio_tools.selection_files import describe_counts


def info(path: Path, progress: Progress | None = None) -> dict:
    """Records, images, identities, spread and layout of a file. Raises RecordIOError for a file that cannot be read."""
    with FaceRecord(path, progress=progress) as faces:
        reader = faces.reader
        summary = {
            "file": str(path),
            "bytes": len(reader.view),
            "records": len(reader),
            **describe_counts(faces.counts),
            "declared_size": list(faces.image_size) if faces.image_size else None,
            "record_0": "absent" if 0 not in reader else "image" if 0 in faces.image_keys else "identity range",
            "identity_records": len(faces.identity_keys),
            "index": "idx" if reader.index_path.is_file() else "made by a scan",
            "labels_from": faces.label_source,
            "label_width": reader.label_width,
        }
        if len(faces):
            summary["first_image"] = _describe_image(faces.read(int(faces.image_keys[0])).payload)
            summary["mean_record_bytes"] = round(float(np.mean(np.diff(reader.offsets, append=len(reader.view)))), 1)
        return summary


def _describe_image(payload: memoryview) -> str:
    try:
        height, width = image_size(payload)
    except RecordIOError as error:
        return str(error)
    return f"{image_format(payload)}, {height} x {width}, {len(payload)} bytes"

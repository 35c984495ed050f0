"""What a selection leaves on the disk: manifest, statistics, drawing and, where wanted, the images themselves."""

import json
from pathlib import Path

import numpy as np

from recordio_tools.distribution_plot import distribution_svg
from recordio_tools.errors import RecordIOError
from recordio_tools.face_layout import FaceRecord
from recordio_tools.face_writer import FaceRecordWriter
from recordio_tools.files import atomic, write_text
from recordio_tools.header_scan import Progress
from recordio_tools.identity_table import NAME, IdentityTable
from recordio_tools.image import image_size
from recordio_tools.long_tail import Selection

EVERY = 1024  # images between two reports of progress


def write_selection(source: FaceRecord, selection: Selection, out: Path, profile: dict) -> dict:
    """Write manifest.csv, statistics.json and distribution.svg into `out`, each whole or not at all; returns the
    statistics. `profile` says how the selection was made (name, seed and parameters)."""
    out.mkdir(parents=True, exist_ok=True)
    counts = np.bincount(selection.new_labels)
    statistics = {
        "format": 1,
        "profile": profile,
        "source": {"file": source.path.name, **describe_counts(source.counts)},
        "selection": describe_counts(counts),
        "histogram": np.stack(np.unique(counts, return_counts=True), axis=1).tolist(),
    }
    with atomic(out / "manifest.csv") as stream:
        stream.write(b"key,label,new_label\n")
        np.savetxt(stream, np.stack(selection, axis=1), fmt="%d", delimiter=",")
    title = f"{source.path.name}: {len(selection.keys):,} of {len(source):,} images ({profile['name']})"
    drawing = {
        f"source, {np.count_nonzero(source.counts):,} identities": source.counts,
        f"selection, {len(counts):,} identities": counts,
    }
    write_text(out / "distribution.svg", distribution_svg(title, drawing))
    write_text(out / "statistics.json", json.dumps(statistics, indent=2) + "\n")
    return statistics


def describe_counts(counts: np.ndarray) -> dict:
    """Totals and spread of images per identity; identities without images are counted apart."""
    used = counts[counts > 0]
    totals = {"images": int(counts.sum()), "identities": len(used), "empty_identities": len(counts) - len(used)}
    if not len(used):
        return totals
    spread = {"median": float(np.median(used)), "mean": float(used.mean())}
    return {**totals, "images_per_identity": {"min": int(used.min()), **spread, "max": int(used.max())}}


def pack_selection(source: FaceRecord, selection: Selection, out: Path, progress: Progress | None = None) -> Path:
    """Copy the selected images, still encoded, into out/train.rec with new labels, in InsightFace's layout; where
    identities.csv lies beside the source, out gets the kept rows. Raises RecordIOError where out holds the source
    itself.
    """
    target = out / "train.rec"
    if target.exists() and target.samefile(source.path):
        raise RecordIOError(f"{target}: this is the source itself; choose another folder for --out")
    table_path = source.path.with_name(NAME)
    kept, counts = np.unique(selection.labels, return_counts=True)
    table = IdentityTable(table_path).relabelled(kept, counts) if table_path.is_file() else None
    size = source.image_size or image_size(source.read(int(selection.keys[0])).payload)
    with FaceRecordWriter(target, size) as writer:
        pairs = zip(selection.keys.tolist(), selection.new_labels.tolist(), strict=True)
        for done, (key, label) in enumerate(pairs, start=1):
            writer.write(label, source.read(key).payload)
            if progress and (done % EVERY == 0 or done == len(selection.keys)):
                progress(done, len(selection.keys))
    if table is not None:
        write_text(out / NAME, table)
    return target

"""Files of a long-tailed selection: manifest, statistics, distribution plot and the packed images."""

import json
from pathlib import Path

import numpy as np

from recordio_tools.atomic_io import atomic_replace, write_text
from recordio_tools.bounded_io import regular_file_exists
from recordio_tools.errors import RecordIOError, sanitize
from recordio_tools.face_set import IDENTITIES_FILE, FaceRecord, read_identities, write_identities
from recordio_tools.image_header import image_size
from recordio_tools.long_tail import Selection
from recordio_tools.progress import ProgressFn, no_progress, track
from recordio_tools.writer import FaceRecordWriter

_PLOT_POINTS = 300  # of each line, evenly spaced on the log axis


def write_selection(source: FaceRecord, selection: Selection, out: Path, profile: dict) -> dict:
    """Writes manifest.csv, statistics.json and, if matplotlib is installed, distribution.svg; returns the statistics.

    `profile` holds the name, seed and parameters that the selection was made with.
    """
    counts = np.bincount(selection.new_labels)
    statistics = {
        "format": 1,
        "profile": profile,
        "source": {"file": source.path.name, **describe_counts(source.counts)},
        "selection": describe_counts(counts),
        "histogram": np.stack(np.unique(counts, return_counts=True), axis=1).tolist(),
    }
    with atomic_replace(out / "manifest.csv") as temporary, temporary.open("wb") as stream:
        stream.write(b"key,label,new_label\n")
        np.savetxt(stream, np.stack(selection, axis=1), fmt="%d", delimiter=",")
    title = f"{sanitize(source.path.name)}: {len(selection.keys):,} of {len(source):,} images ({profile['name']})"
    lines = {
        f"source, {np.count_nonzero(source.counts):,} identities": source.counts,
        f"selection, {len(counts):,} identities": counts,
    }
    _plot_distribution(out / "distribution.svg", title, lines)
    write_text(out / "statistics.json", json.dumps(statistics, indent=2) + "\n")
    return statistics


def describe_counts(counts: np.ndarray) -> dict:
    """Returns totals and spread of images per identity, `counts` [C]; identities without images count separately."""
    used = counts[counts > 0]
    totals = {"images": int(counts.sum()), "identities": len(used), "empty_identities": len(counts) - len(used)}
    if not len(used):
        return totals
    spread = {"median": float(np.median(used)), "mean": float(used.mean())}
    return {**totals, "images_per_identity": {"min": int(used.min()), **spread, "max": int(used.max())}}


def _plot_distribution(path: Path, title: str, counts_by_name: dict[str, np.ndarray]) -> None:
    """Draws images per identity by rank, both axes logarithmic; counts are int64 [C], 0 is left out."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    # Text from file names must not be read as formulas; the salt makes equal plots equal files.
    settings = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "recordio_tools"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        for name, counts in counts_by_name.items():
            counts = np.sort(counts[counts > 0])[::-1]
            ranks = np.unique(np.geomspace(1, len(counts), _PLOT_POINTS).round().astype(int))
            axes.loglog(ranks, counts[ranks - 1], label=name)
        axes.set(title=title, xlabel="identity, by rank", ylabel="images per identity")
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_replace(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def pack_selection(source: FaceRecord, selection: Selection, out: Path, progress: ProgressFn = no_progress) -> Path:
    """Copies the selected encoded images with new labels into out/train.rec, in InsightFace's layout; returns its path.

    Rows of an identities.csv next to the source are copied too.
    """
    target = out / "train.rec"
    table = source.path.with_name(IDENTITIES_FILE)
    identities = _relabelled_identities(table, selection.labels) if regular_file_exists(table) else []
    size = source.image_size or image_size(source.read(int(selection.keys[0])).payload)
    with FaceRecordWriter(target, size) as writer:
        pairs = zip(selection.keys.tolist(), selection.new_labels.tolist(), strict=True)
        for key, label in track(pairs, "packing", len(selection.keys), progress):
            writer.write(label, source.read(key).payload)
    if identities:
        write_identities(out / IDENTITIES_FILE, identities)
    return target


def _relabelled_identities(path: Path, labels: np.ndarray) -> list[dict[str, object]]:
    """The rows of the labels [K] in the table, renumbered from 0, with the number of images kept."""
    rows = read_identities(path)
    relabelled = []
    for new_label, (label, count) in enumerate(zip(*np.unique(labels, return_counts=True), strict=True)):
        if int(label) not in rows:
            raise RecordIOError(f"{path}: no row has label {label}")
        row = {**rows[int(label)], "label": new_label}
        relabelled.append({**row, "images": count} if "images" in row else row)
    return relabelled

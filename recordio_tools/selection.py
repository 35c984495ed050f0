"""A drawing of images per identity, largest first, both axes logarithmic, as SVG without any library.

What a selection leaves on the disk: manifest, statistics, drawing and, where wanted, the images themselves.
"""

import json
import math
from html import escape
from pathlib import Path

import numpy as np

from recordio_tools.atomic_io import atomic_replace, write_text
from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import IDENTITIES_FILE, FaceRecord, read_identities, write_identities
from recordio_tools.image_header import image_size
from recordio_tools.long_tail import Selection
from recordio_tools.progress import ProgressFn, no_progress, track
from recordio_tools.writer import FaceRecordWriter

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 60
COLOURS = ("#8a8f98", "#0b62a4", "#b3541e")
POINTS = 300  # of each line, spread evenly over the logarithm of the rank


def distribution_svg(title: str, counts_by_name: dict[str, np.ndarray]) -> str:
    """SVG text; each entry is a name and int64 [C], images of each identity (empty ones are left out)."""
    lines = {name: np.sort(counts[counts > 0])[::-1] for name, counts in counts_by_name.items()}
    decades_x = _decades(max(len(counts) for counts in lines.values()))
    decades_y = _decades(max(int(counts[0]) for counts in lines.values()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="13" fill="#22262b"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_grid(decades_x, decades_y),
    ]
    for row, (name, counts) in enumerate(lines.items()):
        colour = COLOURS[row % len(COLOURS)]
        parts.append(_line(counts, decades_x, decades_y, colour))
        y = TOP + 18 + 20 * row
        parts.append(f'<path d="M{WIDTH - 270} {y - 4}h24" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{WIDTH - 240}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _decades(largest: int) -> int:
    return max(1, math.ceil(math.log10(largest)))


def _x(rank: float, decades: int) -> float:
    return LEFT + math.log10(rank) / decades * (WIDTH - LEFT - RIGHT)


def _y(count: float, decades: int) -> float:
    return HEIGHT - BOTTOM - math.log10(count) / decades * (HEIGHT - TOP - BOTTOM)


def _grid(decades_x: int, decades_y: int) -> list[str]:
    parts = []
    for exponent in range(decades_x + 1):
        x = _x(10**exponent, decades_x)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#d9dce1"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{10**exponent:,}</text>')
    for exponent in range(decades_y + 1):
        y = _y(10**exponent, decades_y)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#d9dce1"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**exponent:,}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 16}" text-anchor="middle">identity, by rank (log)</text>')
    turn = f'transform="rotate(-90 18 {middle_y})"'
    parts.append(f'<text x="18" y="{middle_y}" text-anchor="middle" {turn}>images per identity (log)</text>')
    return parts


def _line(counts: np.ndarray, decades_x: int, decades_y: int, colour: str) -> str:
    ranks = np.unique(np.geomspace(1, len(counts), POINTS).round().astype(int))
    points = " ".join(f"{_x(rank, decades_x):.1f},{_y(counts[rank - 1], decades_y):.1f}" for rank in ranks.tolist())
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


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
    with atomic_replace(out / "manifest.csv") as temporary, temporary.open("wb") as stream:
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


def pack_selection(source: FaceRecord, selection: Selection, out: Path, progress: ProgressFn = no_progress) -> Path:
    """Copy the selected images, still encoded, into out/train.rec with new labels, in InsightFace's layout; where
    identities.csv lies beside the source, out gets the kept rows. Raises RecordIOError where out holds the source
    itself.
    """
    target = out / "train.rec"
    if target.exists() and target.samefile(source.path):
        raise RecordIOError(f"{target}: this is the source itself; choose another folder for --out")
    table = source.path.with_name(IDENTITIES_FILE)
    identities = _relabelled_identities(table, selection.labels) if table.is_file() else []
    size = source.image_size or image_size(source.read(int(selection.keys[0])).payload)
    with FaceRecordWriter(target, size) as writer:
        pairs = zip(selection.keys.tolist(), selection.new_labels.tolist(), strict=True)
        for key, label in track(pairs, "packing", len(selection.keys), progress):
            writer.write(label, source.read(key).payload)
    if identities:
        write_identities(out / IDENTITIES_FILE, identities)
    return target


def _relabelled_identities(path: Path, labels: np.ndarray) -> list[dict[str, object]]:
    """The rows of the labels [K] in the table, numbered from 0 and with the images that are kept."""
    rows = read_identities(path)
    relabelled = []
    for new_label, (label, count) in enumerate(zip(*np.unique(labels, return_counts=True), strict=True)):
        if int(label) not in rows:
            raise RecordIOError(f"{path}: no row has label {label}")
        row = {**rows[int(label)], "label": new_label}
        relabelled.append({**row, "images": count} if "images" in row else row)
    return relabelled

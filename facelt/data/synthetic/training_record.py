"""A training set of synthetic faces as a record file in InsightFace's layout."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.data.synthetic.album import identity_name, render_album
from facelt.data.synthetic.difficulty import DEMO, Difficulty
from facelt.data.synthetic.identity import draw_identity
from facelt.data.synthetic.streams import Purpose, stream
from facelt.data.synthetic.whole_number import whole_number
from facelt.errors import UserError
from facelt.whole_files import fresh_folder
from recordio_tools.errors import RecordIOError
from recordio_tools.face_writer import FaceRecordWriter


@dataclass(frozen=True)
class TrainingSummary:
    """What was written: the record file, counts, and the identities used up to and without `next_identity`."""

    record: Path
    identities: int
    images: int
    first_identity: int
    next_identity: int


def head_heavy_counts(identities: int, *, mean: float, largest: int, seed: int, smallest: int = 1) -> np.ndarray:
    """Images of each identity, int64 [identities]: few with many, many with few, in a seeded order.

    The identity at share u of the ranks, 0 the head, has smallest + (largest - smallest) * (1 - u)^p images, rounded,
    with p chosen so that the mean over all ranks is `mean`. Raises UserError unless smallest < mean < largest.
    """
    whole_number("identities", identities, 1)
    whole_number("smallest", smallest, 1)
    whole_number("largest", largest, smallest + 1)
    if not smallest < mean < largest:
        raise UserError(
            f"synthetic faces: the mean image count must lie between {smallest} and {largest}, not {mean!r}"
        )
    power = (largest - smallest) / (mean - smallest) - 1.0
    left = 1.0 - (np.arange(identities) + 0.5) / identities
    counts = np.rint(smallest + (largest - smallest) * left**power).astype(np.int64)
    return stream(seed, Purpose.COUNTS, identities).permutation(counts)


def write_training_record(
    folder: Path,
    *,
    identities: int,
    images_per_identity: Sequence[int] | float = 20.0,
    largest: int = 120,
    seed: int,
    first_identity: int = 0,
    difficulty: Difficulty = DEMO,
    size: int = 112,
    workers: int | None = None,
) -> TrainingSummary:
    """Write `train.rec`, `train.idx`, `property` and `identities.csv` to `folder`, whole or not at all.

    `images_per_identity` is one count for each identity, or the mean of `head_heavy_counts` with its `largest`.
    Label l is identity `first_identity` + l. Raises UserError for an argument out of range or a folder in use.
    """
    whole_number("identities", identities, 1)
    first = whole_number("first_identity", first_identity, 0)
    if np.ndim(images_per_identity) == 0:
        counts = head_heavy_counts(identities, mean=images_per_identity, largest=largest, seed=seed)
    else:
        counts = [whole_number("each of images_per_identity", count, 1) for count in images_per_identity]
        if len(counts) != identities:
            raise UserError(
                f"synthetic faces: images_per_identity names {len(counts)} counts for {identities} identities"
            )
    labels = np.repeat(np.arange(identities), counts).tolist()
    pictures = [(first + label, image) for label, count in enumerate(counts) for image in range(count)]
    folder = Path(folder)
    with fresh_folder(folder) as target:
        files = render_album(pictures, seed=seed, difficulty=difficulty, size=size, workers=workers)
        try:
            with FaceRecordWriter(target / "train.rec", (size, size), identities) as writer:
                writer.write_all(zip(labels, files, strict=True))
        except RecordIOError as error:
            raise UserError(f"{folder}: {error}") from error
        _write_identities(target / "identities.csv", seed, first, counts)
    return TrainingSummary(folder / "train.rec", identities, len(pictures), first, first + identities)


def _write_identities(path: Path, seed: int, first: int, counts: Sequence[int]) -> None:
    """label, name, gender, images: one row an identity."""
    with path.open("w", encoding="utf-8", newline="") as stream_:
        rows = csv.writer(stream_, lineterminator="\n")
        rows.writerow(("label", "name", "gender", "images"))
        for label, count in enumerate(counts):
            who = draw_identity(seed, first + label)
            rows.writerow((label, identity_name(first + label), who.gender, int(count)))

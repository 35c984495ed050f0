"""The check of counts that both writers share.

A MegaFace-layout test suite of synthetic faces: probes, distractors, lists, noise lists and the gender tables.

A training set of synthetic faces as a record file in InsightFace's layout.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.synthetic.identity import DEMO, Difficulty, Purpose, draw_identity, stream
from facelt.synthetic.render import Picture, identity_name, render_album
from recordio_tools.atomic_io import atomic_folder
from recordio_tools.face_set import IDENTITIES_FILE, write_identities
from recordio_tools.writer import FaceRecordWriter


def whole_number(name: str, value: int, smallest: int, largest: int = 10_000_000) -> int:
    """`value` as an int; UserError where it is no whole number in the range."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not smallest <= value <= largest:
        raise UserError(f"synthetic faces: {name} must be a whole number in {smallest}..{largest}, not {value!r}")
    return int(value)


_TABLE_HEADER = "name\timage_id\tface_id\turl\tbbox\tsha256"
_README = """Synthetic test suite in MegaFace's layout, made by facelt.synthetic.

All faces here are synthetic drawings. Nobody is shown; likeness to a person is chance. `facescrub` and `megaface` in
the file names are the layout's words only: no picture of either set is in here. The tables of actors and actresses hold
the drawings' own attribute, which moves the means of hair length, jaw width, brow thickness, beard and lip colour; it
says nothing about people.

seed {seed}; identities {first}..{last}
{probes} probe identities with {images} images each, {mislabelled} of which show somebody else (facescrub_noises.txt)
{distractors} distractors, {leaked} of which show a probe identity (megaface_noises.txt)
"""


@dataclass(frozen=True)
class SuiteSummary:
    """What was written: counts, and the identities used, `first_identity` up to and without `next_identity`."""

    folder: Path
    probe_names: tuple[str, ...]
    probes: int
    distractors: int
    first_identity: int
    next_identity: int


@dataclass(frozen=True)
class _Entry:
    """One file of the suite: where it goes, what it shows and whether a noise list names it."""

    path: str
    picture: Picture
    noisy: bool


def write_suite(
    folder: Path,
    *,
    probe_identities: int,
    images_per_probe: int,
    distractors: int,
    sizes: Sequence[int],
    seed: int,
    first_identity: int,
    mislabelled: int = 3,
    leaked: int = 5,
    difficulty: Difficulty = DEMO,
    size: int = 112,
    workers: int | None = None,
) -> SuiteSummary:
    """Write the suite to `folder`, whole or not at all; half the probe identities are of either gender.

    Identities are numbered from `first_identity` on: those below stay free for the training set. `sizes` are the
    gallery lists' sizes, each the first so many distractors; planted noise counts among the distractors.
    Raises UserError for an argument out of range or a folder that is in use.
    """
    sizes = _check(probe_identities, images_per_probe, distractors, sizes, mislabelled, leaked)
    first = whole_number("first_identity", first_identity, 0)
    people, next_identity = _probe_people(seed, first, probe_identities)
    probes = _probe_entries(people, images_per_probe, mislabelled, next_identity)
    next_identity += mislabelled
    others = _distractor_entries(people, images_per_probe, distractors, leaked, next_identity, seed)
    next_identity += distractors - leaked
    genders = {identity_name(person): draw_identity(seed, person).gender for person in people}
    with atomic_folder(Path(folder)) as target:
        placed = [("facescrub_images", entry) for entry in probes] + [("megaface_images", entry) for entry in others]
        pictures = [entry.picture for _, entry in placed]
        digests = {}
        files = render_album(pictures, seed=seed, difficulty=difficulty, size=size, workers=workers)
        for (root, entry), data in zip(placed, files, strict=True):
            path = target / root / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            digests[entry.path] = hashlib.sha256(data).hexdigest()
        _write_lists(target, probes, others, sizes)
        _write_tables(target, probes, genders, digests, size)
        text = _README.format(
            seed=seed, first=first, last=next_identity - 1, probes=len(people), images=images_per_probe,
            mislabelled=mislabelled, distractors=distractors, leaked=leaked,
        )  # fmt: skip
        (target / "README.txt").write_text(text, encoding="utf-8")
    return SuiteSummary(Path(folder), tuple(genders), len(probes), len(others), first, next_identity)


def _check(
    people: int, images: int, distractors: int, sizes: Sequence[int], mislabelled: int, leaked: int
) -> tuple[int, ...]:
    whole_number("probe_identities", people, 2)
    whole_number("images_per_probe", images, 2)
    whole_number("distractors", distractors, 1)
    whole_number("mislabelled (one a probe identity at most)", mislabelled, 0, people)
    whole_number("leaked (not every distractor)", leaked, 0, distractors - 1)
    if not len(sizes):
        raise UserError("synthetic faces: sizes must name at least one gallery size")
    return tuple(sorted({whole_number("each of sizes", value, 1, distractors) for value in sizes}))


def _probe_people(seed: int, first: int, count: int) -> tuple[list[int], int]:
    """The first identities from `first` on that fill both genders' halves, and the first index past them."""
    free = {"female": count // 2, "male": count - count // 2}
    people, index = [], first
    while len(people) < count:
        gender = draw_identity(seed, index).gender
        if free[gender]:
            free[gender] -= 1
            people.append(index)
        index += 1
    return people, index


def _probe_entries(people: list[int], images: int, mislabelled: int, stranger: int) -> list[_Entry]:
    """Probe files `<name>/<name>_<i>.jpg`; the last of the first `mislabelled` identities shows a stranger."""
    entries = []
    for number, person in enumerate(people):
        name = identity_name(person)
        for image in range(images):
            noisy = number < mislabelled and image == images - 1
            shown = (stranger + number, 0) if noisy else (person, image)
            entries.append(_Entry(f"{name}/{name}_{image + 1}.jpg", shown, noisy))
    return entries


def _distractor_entries(people: list[int], images: int, count: int, leaked: int, first: int, seed: int) -> list[_Entry]:
    """Distractor files in MegaFace's folders; `leaked` of them, at seeded places, show another image of a probe."""
    places = stream(seed, Purpose.SUITE, first).permutation(count)[:leaked]
    shown = {int(place): (people[number % len(people)], images + number) for number, place in enumerate(places)}
    entries, fresh = [], first
    for place in range(count):
        path = f"{place % 100:03d}/{place:08d}@N{place % 10:02d}/{place:09d}_0.jpg"
        if place in shown:
            entries.append(_Entry(path, shown[place], True))
        else:
            entries.append(_Entry(path, (fresh, 0), False))
            fresh += 1
    return entries


def _write_lists(target: Path, probes: list[_Entry], others: list[_Entry], sizes: tuple[int, ...]) -> None:
    """Path lists, MegaFace's JSON lists for each gallery size, and the two noise lists."""
    probe_paths, other_paths = [entry.path for entry in probes], [entry.path for entry in others]
    (target / "facescrub_lst").write_text("".join(f"{path}\n" for path in probe_paths))
    (target / "megaface_lst").write_text("".join(f"{path}\n" for path in other_paths))
    names = [path.split("/")[0] for path in probe_paths]
    (target / "facescrub_features_list.json").write_text(json.dumps({"path": probe_paths, "id": names}))
    for size in sizes:
        (target / f"megaface_features_list.json_{size}_1").write_text(json.dumps({"path": other_paths[:size]}))
    noisy = [entry.path.split("/")[-1] for entry in probes if entry.noisy]
    _write_noise(target / "facescrub_noises.txt", "mislabelled probe images (synthetic)", noisy)
    noisy = [entry.path for entry in others if entry.noisy]
    _write_noise(target / "megaface_noises.txt", "distractors that show a probe identity (synthetic)", noisy)


def _write_noise(path: Path, title: str, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in [f"# {title}", *lines]))


def _write_tables(
    target: Path, probes: list[_Entry], genders: dict[str, str], digests: dict[str, str], size: int
) -> None:
    """FaceScrub's tables of actors and actresses: six tab-separated columns, one row an image."""
    for gender, table in (("male", "facescrub_actors.txt"), ("female", "facescrub_actresses.txt")):
        rows = [_TABLE_HEADER]
        for number, entry in enumerate(probes):
            name = entry.path.split("/")[0]
            if genders[name] == gender:
                person = name.replace("_", " ")
                rows.append(f"{person}\t{number}\t{number}\t-\t0,0,{size},{size}\t{digests[entry.path]}")
        (target / table).write_text("".join(f"{row}\n" for row in rows))


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
    with atomic_folder(folder) as target:
        files = render_album(pictures, seed=seed, difficulty=difficulty, size=size, workers=workers)
        with FaceRecordWriter(target / "train.rec", (size, size), identities) as writer:
            writer.write_all(zip(labels, files, strict=True))
        rows = [
            {
                "label": label,
                "name": identity_name(first + label),
                "gender": draw_identity(seed, first + label).gender,
                "images": int(count),
            }
            for label, count in enumerate(counts)
        ]
        write_identities(target / IDENTITIES_FILE, rows)
    return TrainingSummary(folder / "train.rec", identities, len(pictures), first, first + identities)

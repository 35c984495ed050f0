"""Synthetic data sets: a test suite in MegaFace's layout, and a training record in InsightFace's layout."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.synthetic.identity import DEMO, Difficulty, StreamId, draw_identity, random_stream
from facelt.synthetic.render import ImageId, identity_name, render_jpegs
from recordio_tools.atomic_io import atomic_folder
from recordio_tools.face_set import IDENTITIES_FILE, write_identities
from recordio_tools.writer import FaceRecordWriter


def _check_whole_number(name: str, value: int, smallest: int, largest: int = 10_000_000) -> int:
    """Returns `value` as an int; raises UserError unless it is a whole number in the range."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not smallest <= value <= largest:
        raise UserError(f"synthetic faces: {name} must be a whole number in {smallest}..{largest}, not {value!r}")
    return int(value)


_TABLE_HEADER = "name\timage_id\tface_id\turl\tbbox\tsha256"
_README = """Synthetic test suite in MegaFace's layout, made by facelt.synthetic.

All faces here are synthetic drawings. They show no real person; any likeness is coincidental. `facescrub` and
`megaface` in file names belong to the layout; no picture of either set is included. The tables of actors and actresses
hold an attribute of the drawings, which shifts the means of hair length, jaw width, brow thickness, beard and lip
colour; it says nothing about people.

seed {seed}; identities {first}..{last}
{probes} probe identities with {images} images each, {mislabelled} of which show another person (facescrub_noises.txt)
{distractors} distractors, {leaked} of which show a probe identity (megaface_noises.txt)
"""


@dataclass(frozen=True)
class SuiteSummary:
    """Counts of a written suite; its identities are `first_identity` to `next_identity` - 1."""

    folder: Path
    probe_names: tuple[str, ...]
    probes: int
    distractors: int
    first_identity: int
    next_identity: int


@dataclass(frozen=True)
class _Entry:
    """One file of the suite: its path, the picture it shows, and True if a noise list names it."""

    path: str
    picture: ImageId
    is_noise: bool


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
    """Writes the suite to `folder`, atomically; half of the probe identities are of either gender.

    Identities are numbered from `first_identity`; those below it are left to the training set. `sizes` are the sizes of
    the gallery lists, each a prefix of the distractors, which include the planted noise. Raises UserError for an
    argument out of range or a folder that is not empty.
    """
    sizes = _check(probe_identities, images_per_probe, distractors, sizes, mislabelled, leaked)
    first = _check_whole_number("first_identity", first_identity, 0)
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
        files = render_jpegs(pictures, seed=seed, difficulty=difficulty, size=size, workers=workers)
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
    _check_whole_number("probe_identities", people, 2)
    _check_whole_number("images_per_probe", images, 2)
    _check_whole_number("distractors", distractors, 1)
    _check_whole_number("mislabelled (one a probe identity at most)", mislabelled, 0, people)
    _check_whole_number("leaked (not every distractor)", leaked, 0, distractors - 1)
    if not len(sizes):
        raise UserError("synthetic faces: sizes must name at least one gallery size")
    return tuple(sorted({_check_whole_number("each of sizes", value, 1, distractors) for value in sizes}))


def _probe_people(seed: int, first: int, count: int) -> tuple[list[int], int]:
    """The first identities from `first` that make up half of each gender, and the index after them."""
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
    """Probe files `<name>/<name>_<i>.jpg`; the last image of the first `mislabelled` identities shows a stranger."""
    entries = []
    for number, person in enumerate(people):
        name = identity_name(person)
        for image in range(images):
            is_noise = number < mislabelled and image == images - 1
            picture = (stranger + number, 0) if is_noise else (person, image)
            entries.append(_Entry(f"{name}/{name}_{image + 1}.jpg", picture, is_noise))
    return entries


def _distractor_entries(people: list[int], images: int, count: int, leaked: int, first: int, seed: int) -> list[_Entry]:
    """Distractor files in MegaFace's folders; `leaked` of them, at random positions, show another image of a probe."""
    positions = random_stream(seed, StreamId.SUITE, first).permutation(count)[:leaked].tolist()
    leaks = {position: (people[number % len(people)], images + number) for number, position in enumerate(positions)}
    entries, next_identity = [], first
    for number in range(count):
        path = f"{number % 100:03d}/{number:08d}@N{number % 10:02d}/{number:09d}_0.jpg"
        entries.append(_Entry(path, leaks.get(number, (next_identity, 0)), number in leaks))
        next_identity += number not in leaks
    return entries


def _write_lists(target: Path, probes: list[_Entry], others: list[_Entry], sizes: tuple[int, ...]) -> None:
    """Writes path lists, MegaFace's JSON lists for each gallery size, and the two noise lists."""
    probe_paths, other_paths = [entry.path for entry in probes], [entry.path for entry in others]
    (target / "facescrub_lst").write_text("".join(f"{path}\n" for path in probe_paths))
    (target / "megaface_lst").write_text("".join(f"{path}\n" for path in other_paths))
    names = [path.split("/")[0] for path in probe_paths]
    (target / "facescrub_features_list.json").write_text(json.dumps({"path": probe_paths, "id": names}))
    for size in sizes:
        (target / f"megaface_features_list.json_{size}_1").write_text(json.dumps({"path": other_paths[:size]}))
    noisy = [entry.path.split("/")[-1] for entry in probes if entry.is_noise]
    _write_noise(target / "facescrub_noises.txt", "mislabelled probe images (synthetic)", noisy)
    noisy = [entry.path for entry in others if entry.is_noise]
    _write_noise(target / "megaface_noises.txt", "distractors that show a probe identity (synthetic)", noisy)


def _write_noise(path: Path, title: str, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in [f"# {title}", *lines]))


def _write_tables(
    target: Path, probes: list[_Entry], genders: dict[str, str], digests: dict[str, str], size: int
) -> None:
    """Writes FaceScrub's tables of actors and actresses: six tab-separated columns, one row per image."""
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
    """Record file and counts of a written set; its identities are `first_identity` to `next_identity` - 1."""

    record: Path
    identities: int
    images: int
    first_identity: int
    next_identity: int


def head_heavy_counts(identities: int, *, mean: float, largest: int, seed: int, smallest: int = 1) -> np.ndarray:
    """Returns long-tailed image counts of the identities, int64 [identities], in random order.

    The identity at quantile u of the ranks (0 is the head) has smallest + (largest - smallest) * (1 - u)^p images,
    rounded, with p chosen for the mean `mean`. Raises UserError unless smallest < mean < largest.
    """
    _check_whole_number("identities", identities, 1)
    _check_whole_number("smallest", smallest, 1)
    _check_whole_number("largest", largest, smallest + 1)
    if not smallest < mean < largest:
        raise UserError(f"synthetic faces: the mean image count must be between {smallest} and {largest}, not {mean!r}")
    power = (largest - smallest) / (mean - smallest) - 1.0
    quantiles = (np.arange(identities) + 0.5) / identities
    counts = np.rint(smallest + (largest - smallest) * (1.0 - quantiles) ** power).astype(np.int64)
    return random_stream(seed, StreamId.COUNTS, identities).permutation(counts)


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
    """Writes `train.rec`, `train.idx`, `property` and `identities.csv` to `folder`, atomically.

    `images_per_identity` is a count for each identity, or the mean of `head_heavy_counts` with its `largest`. Label l
    is identity `first_identity` + l. Raises UserError for an argument out of range or a folder that is not empty.
    """
    _check_whole_number("identities", identities, 1)
    first = _check_whole_number("first_identity", first_identity, 0)
    if np.ndim(images_per_identity) == 0:
        counts = head_heavy_counts(identities, mean=images_per_identity, largest=largest, seed=seed)
    else:
        counts = [_check_whole_number("each of images_per_identity", count, 1) for count in images_per_identity]
        if len(counts) != identities:
            raise UserError(
                f"synthetic faces: images_per_identity has {len(counts)} counts for {identities} identities"
            )
    labels = np.repeat(np.arange(identities), counts).tolist()
    pictures = [(first + label, image) for label, count in enumerate(counts) for image in range(count)]
    folder = Path(folder)
    with atomic_folder(folder) as target:
        files = render_jpegs(pictures, seed=seed, difficulty=difficulty, size=size, workers=workers)
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

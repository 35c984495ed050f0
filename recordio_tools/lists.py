"""Lists of images: readers of every kind, and writing long-tailed training, validation and test lists.

Kinds: im2rec's .lst (index, label, path), InsightFace's .lst (aligned, path, label), `path label` lines as published
with long-tailed sets, paths alone, and folders per identity.

N images of the source, C classes (labels 0..C-1), K classes kept.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recordio_tools.atomic_io import atomic_folder, write_text
from recordio_tools.bounded_io import read_utf8
from recordio_tools.errors import RecordIOError
from recordio_tools.format import is_beyond_int64
from recordio_tools.long_tail import HELD_OUT_STREAM, draw_selection, rank_within_label
from recordio_tools.selection import describe_counts

_MAX_LIST_BYTES = 1 << 31
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# A record file has an entry for each label up to the largest. A few images of a large set keep their labels.
_FREE_LABELS, _LABELS_PER_IMAGE = 1 << 20, 4
_PATH_AND_LABEL = re.compile(r"(.+) (-?[0-9]{1,18})")
_LABELLED_LINE = re.compile(r".+ -?[0-9]+")


def read_labelled_list(path: Path, num_classes: int | None = None) -> tuple[list[str], np.ndarray]:
    """Returns relative paths and labels, int64 [N], of a list with `path label` on each line, as ImageNet-LT has them.

    Raises RecordIOError naming the file and the line: an unreadable or empty list, a line without a label, a label
    outside -1..num_classes - 1 (-1 marks the open set), a path that is absolute or leads upwards.
    """
    lines = read_lines(path)
    matches = [_PATH_AND_LABEL.fullmatch(line) for line in lines]
    if None in matches:
        row = matches.index(None)
        raise RecordIOError(
            f"{path}, line {row + 1}: expected a path, one space and a label, found {lines[row][:120]!r}"
        )
    paths, labels = zip(*(match.groups() for match in matches), strict=True)
    label_N = np.array(labels).astype(np.int64)
    outside_N = (label_N < -1) | (label_N >= (np.iinfo(np.int64).max if num_classes is None else num_classes))
    if outside_N.any():
        row = int(np.argmax(outside_N))
        allowed = "-1 (open set) or 0" + ("" if num_classes is None else f" to {num_classes - 1}")
        raise RecordIOError(f"{path}, line {row + 1}: label {label_N[row]} is not {allowed}")
    check_relative(path, paths)
    return list(paths), label_N


def read_path_list(path: Path) -> list[str]:
    """Returns the relative paths of a list without labels. Raises RecordIOError as `read_labelled_list` does."""
    paths = read_lines(path)
    check_relative(path, paths)
    return paths


def has_labels(path: Path) -> bool:
    """Returns True if every line of a list ends in a label."""
    return all(_LABELLED_LINE.fullmatch(line) for line in read_lines(path))


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a list without line ends; only the last may be followed by empty lines.

    Raises RecordIOError naming the file, and the line that is empty.
    """
    try:
        text = read_utf8(path, _MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        raise RecordIOError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise RecordIOError(f"{path}, line {line}: a NUL character; no file has such a name")
    lines = text.rstrip().split("\n")
    if (row := next((row for row, line in enumerate(lines) if not line.strip()), None)) is not None:
        problem = "the list is empty" if len(lines) == 1 else f"line {row + 1} is empty"
        raise RecordIOError(f"{path}: {problem}; each line names an image, or a pair")
    return lines


def check_relative(path: Path, names: Sequence[str], first_line: int = 1) -> None:
    """Raises RecordIOError at a listed name that is absolute or leads upwards; `first_line` is that of the first."""
    for line, name in enumerate(names, start=first_line):
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            raise RecordIOError(
                f"{path}, line {line}: {name[:120]!r} leads out of the root folder; list relative paths below it"
            )


class ListedImage(NamedTuple):
    """A file and its label."""

    path: Path
    label: int


def read_lst(path: Path, root: Path | None = None) -> list[ListedImage]:
    """Returns the images of a tab-separated .lst, paths relative to `root` (default: the list's folder).

    Lines are im2rec's (index, label, path) or InsightFace's (aligned, path, label). Raises RecordIOError naming the
    line: neither of them, an image that must be aligned first, a path that leaves `root`, or a label so large that
    nearly all identities would have no image.
    """
    root = (root or path.parent).resolve()
    lines = read_lines(path)
    limit = max(_FREE_LABELS, _LABELS_PER_IMAGE * len(lines))
    numbered = enumerate(lines, start=1)
    return [_parse_lst(f"{path}, line {number}", line.split("\t"), root, limit) for number, line in numbered]


def _parse_lst(where: str, fields: list[str], root: Path, limit: int) -> ListedImage:
    if any("\0" in field for field in fields):
        raise RecordIOError(f"{where}: a NUL character; a list is a text file")
    im2rec = len(fields) >= 3 and fields[0].isdecimal() and all(is_number(field) for field in fields[1:-1])
    insightface = len(fields) >= 3 and fields[0] in ("0", "1") and is_number(fields[2])
    if im2rec and not (insightface and is_number(fields[-1])):
        label, name = fields[1], fields[-1]
    elif insightface and not im2rec:
        if fields[0] == "0":
            raise RecordIOError(f"{where}: the image is marked as not aligned; align it first, then mark it 1")
        label, name = fields[2], fields[1]
    else:
        raise RecordIOError(f"{where}: expected index, label, path or aligned, path, label, separated by tabs")
    if im2rec and is_beyond_int64(fields[0]):
        raise RecordIOError(f"{where}: the index {fields[0][:60]} is above 2^63 - 1")
    number = float(label)
    if not (number.is_integer() and number >= 0):
        raise RecordIOError(f"{where}: the label {label[:60]} is not a whole number of at least 0")
    if number >= limit:
        raise RecordIOError(
            f"{where}: the label {label[:60]} is {limit} or more, too large for this many images, since each label up "
            "to the largest becomes an identity; number the labels from 0"
        )
    image = (root / name).resolve()
    if not image.is_relative_to(root):
        raise RecordIOError(f"{where}: {name} is outside {root}; name the images' folder with --root")
    return ListedImage(image, int(number))


def is_number(text: str) -> bool:
    """Checks if `float` can read a text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_folders(root: Path) -> tuple[list[ListedImage], list[str]]:
    """Returns the images of one folder per identity, sorted by name, and the identities' names by label.

    Raises RecordIOError if `root` holds no folder with images, or a link that leads out of it.
    """
    images, names = [], []
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        files = list(_images(folder, root.resolve()))
        if files:
            images += [ListedImage(file, len(names)) for file in files]
            names.append(folder.name)
    if not names:
        raise RecordIOError(f"{root}: no folder with images; expected one folder per identity")
    return images, names


def _images(folder: Path, root: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            if not file.resolve().is_relative_to(root):
                raise RecordIOError(f"{file}: leads out of {root}")
            yield file


class _Source(NamedTuple):
    """Sorted relative paths, their labels 0..C-1 [N], and the name of each label."""

    paths: list[str]
    labels: np.ndarray
    names: list[str]


class HeldOut(NamedTuple):
    """Numbers of images of each class that are held out of training."""

    validation: int = 0
    test: int = 0


def write_lists(
    source: Path,
    out: Path,
    profile: str,
    seed: int,
    held_out: HeldOut = HeldOut(),  # noqa: B008, it cannot change
    identities: int | None = None,
    options: dict[str, float | None] | None = None,
    overwrite: bool = False,
) -> dict:
    """Writes train.txt, and validation.txt and test.txt if images are held out, with lines `path label`.

    `source` is a folder with one folder per class, or a list of `path label` lines. In each class the first images by
    a hash of the seed and the image's number in path order are held out; the profile draws from the rest. Labels
    number the kept classes from 0; classes.txt names them by line, statistics.json holds the profile and all counts.

    Returns the statistics. Raises UserError if `out` is not empty (without `overwrite`) or holds the source, a name
    cannot be written to a list, or the source has too few images; `out` is then unchanged.
    """
    with atomic_folder(out, overwrite, [source]) as folder:
        return _write_lists(source, folder, profile, seed, held_out, identities, options or {})


def _write_lists(
    source: Path,
    folder: Path,
    profile: str,
    seed: int,
    held_out: HeldOut,
    identities: int | None,
    options: dict[str, float | None],
) -> dict:
    paths, label_N, names = _read_source(source)
    key_N = np.arange(len(paths))
    rank_N = rank_within_label(key_N, label_N, seed, HELD_OUT_STREAM)
    rest_N = rank_N >= sum(held_out)
    _check_training_images(label_N, rest_N, names, held_out)
    selection, profile_values = draw_selection(key_N[rest_N], label_N[rest_N], profile, seed, identities, options)
    kept_K = np.unique(selection.labels)
    new_C = np.full(len(names), -1)
    new_C[kept_K] = np.arange(len(kept_K))
    rows = {"train": selection.keys}
    if held_out.validation:
        rows["validation"] = np.flatnonzero((rank_N < held_out.validation) & (new_C[label_N] >= 0))
    if held_out.test:
        rows["test"] = np.flatnonzero((rank_N >= held_out.validation) & ~rest_N & (new_C[label_N] >= 0))
    counts = {split: describe_counts(np.bincount(new_C[label_N[row]])) for split, row in rows.items()}
    counts = {"source": describe_counts(np.bincount(label_N)), **counts}
    statistics = {"format": 1, "profile": profile_values, "held_out": held_out._asdict(), **counts}
    for split, row in rows.items():
        row = row[np.lexsort((row, new_C[label_N[row]]))]
        lines = (f"{paths[image]} {new_C[label_N[image]]}\n" for image in row.tolist())
        write_text(folder / f"{split}.txt", "".join(lines))
    write_text(folder / "classes.txt", "".join(f"{names[label]}\n" for label in kept_K))
    write_text(folder / "statistics.json", json.dumps(statistics, indent=2) + "\n")
    return statistics


def _read_source(source: Path) -> _Source:
    if source.is_dir():
        images, names = read_folders(source)
        paths = [image.path.relative_to(source).as_posix() for image in images]
        label_N = np.array([image.label for image in images], np.int64)
    else:
        paths, label_N = read_labelled_list(source)
        _check_selectable(source, paths, label_N)
        labels, label_N = np.unique(label_N, return_inverse=True)
        names = [str(label) for label in labels]
    for path in paths:
        if any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in path):
            raise RecordIOError(f"{source}: {path!r}: a list cannot hold this name; rename the file")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return _Source([paths[row] for row in order], label_N[order], names)


def _check_selectable(source: Path, paths: list[str], label_N: np.ndarray) -> None:
    """Raises RecordIOError at a label of the open set and at an image that is listed twice."""
    previous: set[str] = set()
    for line, (path, label) in enumerate(zip(paths, label_N.tolist(), strict=True), start=1):
        if label < 0:
            raise RecordIOError(f"{source}, line {line}: expected a label of at least 0, found {label}")
        if path in previous:
            raise RecordIOError(f"{source}, line {line}: {path} is listed twice")
        previous.add(path)


def _check_training_images(label_N: np.ndarray, rest_N: np.ndarray, names: list[str], held_out: HeldOut) -> None:
    """Raises RecordIOError for a class with no image left to train on."""
    count_C, rest_C = (np.bincount(label_K, minlength=len(names)) for label_K in (label_N, label_N[rest_N]))
    if (used_C := (count_C > 0) & (rest_C == 0)).any():
        label = int(np.argmax(used_C))
        raise RecordIOError(
            f"class {names[label]} has {count_C[label]} images: with {held_out.validation} for validation and "
            f"{held_out.test} for test, none is left to train on; lower --validation or --test"
        )

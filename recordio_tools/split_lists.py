"""Long-tailed lists of any images: training by a profile, validation and test alike for every class.

N images of the source, C classes (labels 0..C-1), K classes kept.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.files import whole_folder, write_text
from recordio_tools.lists import read_folders, read_labelled_paths
from recordio_tools.long_tail import HELD_OUT_STREAM, place_within
from recordio_tools.sample import draw
from recordio_tools.selection_files import describe_counts


class _Source(NamedTuple):
    """Relative paths in their order, a label 0..C-1 [N] for each, and each label's name."""

    paths: list[str]
    labels: np.ndarray
    names: list[str]


class HeldOut(NamedTuple):
    """Images of each class that are kept from training."""

    validation: int = 0
    test: int = 0


def write_lists(
    source: Path,
    out: Path,
    profile: str,
    seed: int,
    held_out: HeldOut = HeldOut(),  # noqa: B008, it cannot change
    identities: int | None = None,
    given: dict[str, float | None] | None = None,
) -> dict:
    """Write train.txt, and validation.txt and test.txt where images are held out, each line `path label`.

    `source` is a folder with one folder per class, or a list of `path label` lines. Of each class a hash of the seed
    and an image's number in the order of paths holds out the first images; the profile draws from the rest. Labels
    count the kept classes from 0; classes.txt names them by line, statistics.json says how all was made and counted.

    Returns the statistics. Raises RecordIOError where `out` holds something, a name cannot stand in a list or the
    source has too few images; then nothing is left of `out`.
    """
    paths, label_N, names = _read(source)
    key_N = np.arange(len(paths))
    place_N = place_within(key_N, label_N, seed, HELD_OUT_STREAM)
    rest_N = place_N >= sum(held_out)
    _refuse_used_up(label_N, rest_N, names, held_out)
    selection, made = draw(key_N[rest_N], label_N[rest_N], profile, seed, identities, given or {})
    kept_K = np.unique(selection.labels)
    new_C = np.full(len(names), -1)
    new_C[kept_K] = np.arange(len(kept_K))
    rows = {"train": selection.keys}
    if held_out.validation:
        rows["validation"] = np.flatnonzero((place_N < held_out.validation) & (new_C[label_N] >= 0))
    if held_out.test:
        rows["test"] = np.flatnonzero((place_N >= held_out.validation) & ~rest_N & (new_C[label_N] >= 0))
    counts = {split: describe_counts(np.bincount(new_C[label_N[row]])) for split, row in rows.items()}
    counts = {"source": describe_counts(np.bincount(label_N)), **counts}
    statistics = {"format": 1, "profile": made, "held_out": held_out._asdict(), **counts}
    with whole_folder(out) as folder:
        for split, row in rows.items():
            row = row[np.lexsort((row, new_C[label_N[row]]))]
            lines = (f"{paths[place]} {new_C[label_N[place]]}\n" for place in row.tolist())
            write_text(folder / f"{split}.txt", "".join(lines))
        write_text(folder / "classes.txt", "".join(f"{names[label]}\n" for label in kept_K))
        write_text(folder / "statistics.json", json.dumps(statistics, indent=2) + "\n")
    return statistics


def _read(source: Path) -> _Source:
    if source.is_dir():
        images, names = read_folders(source)
        paths = [image.path.relative_to(source).as_posix() for image in images]
        label_N = np.array([image.label for image in images], np.int64)
    else:
        paths, labels = read_labelled_paths(source)
        found, label_N = np.unique(labels, return_inverse=True)
        names = [str(label) for label in found]
    for path in paths:
        if any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in path):
            raise RecordIOError(f"{source}: {path!r}: such a name cannot stand in a list; rename the file")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return _Source([paths[place] for place in order], label_N[order], names)


def _refuse_used_up(label_N: np.ndarray, rest_N: np.ndarray, names: list[str], held_out: HeldOut) -> None:
    """A class whose images are all held out, or not enough for that, is a mistake."""
    count_C, rest_C = (np.bincount(label_K, minlength=len(names)) for label_K in (label_N, label_N[rest_N]))
    if (used_C := (count_C > 0) & (rest_C == 0)).any():
        label = int(np.argmax(used_C))
        raise RecordIOError(
            f"class {names[label]} has {count_C[label]} images: with {held_out.validation} for validation and "
            f"{held_out.test} for test none is left to train on; lower --validation or --test"
        )

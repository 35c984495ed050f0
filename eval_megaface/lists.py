"""MegaFace's list files: which images are probes and distractors, and which galleries lie in each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facelt.errors import UserError

# megaface_features_list.json_1000_2: 1000 distractors, set 2.
LIST_NAME = re.compile(r"_(\d+)_(\d+)$")


def find_distractor_lists(
    place: str, root: Path, sizes: Sequence[int] | None, sets: Sequence[int] | None
) -> dict[tuple[int, int], Path]:
    """The distractor lists by (size, set), sizes ascending.

    `place` is a folder of lists named `..._SIZE_SET`, or a path with `{size}` and `{set}` in it; relative to `root`.
    Without `sizes` or `sets` all that exist are taken. Raises UserError where one that was asked for is missing.
    """
    pattern = Path(place).name
    if "{size}" in pattern and "{set}" in pattern:
        folder = root / Path(place).parent
        name = re.compile(re.escape(pattern).replace(r"\{size\}", r"(\d+)").replace(r"\{set\}", r"(\d+)"))
        if pattern.index("{size}") > pattern.index("{set}"):
            raise UserError(f"megaface_lists: {place!r} must name {{size}} before {{set}}")
    else:
        folder, name = root / place, re.compile(rf".*{LIST_NAME.pattern}")
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; megaface_lists names a folder or FOLDER/NAME_{{size}}_{{set}}"
        )
    found: dict[tuple[int, int], Path] = {}
    for file in sorted(folder.iterdir()):
        if (match := name.fullmatch(file.name)) and file.is_file():
            size, number = int(match[1]), int(match[2])
            if (size, number) in found:
                raise UserError(
                    f"{file}: and {found[size, number].name} are both the list of {size} distractors, set {number}"
                )
            found[size, number] = file
    return _chosen(found, place, sizes, sets)


def _chosen(
    found: dict[tuple[int, int], Path], place: str, sizes: Sequence[int] | None, sets: Sequence[int] | None
) -> dict[tuple[int, int], Path]:
    if not found:
        raise UserError(f"{place}: holds no distractor list named ..._SIZE_SET")
    wanted_sizes = sorted(set(sizes)) if sizes else sorted({size for size, _ in found})
    wanted_sets = sorted(set(sets)) if sets else sorted({number for _, number in found})
    wanted = [(size, number) for size in wanted_sizes for number in wanted_sets]
    # A set may lack some sizes only where nobody asked for it by name.
    missing = [key for key in wanted if key not in found]
    if missing and (sizes or sets):
        there = ", ".join(f"{size}_{number}" for size, number in sorted(found))
        raise UserError(f"{place}: has no list of {missing[0][0]} distractors, set {missing[0][1]}; there are {there}")
    return {key: found[key] for key in wanted if key in found}


@dataclass(frozen=True)
class Gallery:
    """Distractors in an order in which every list is a beginning: `cuts` has (size by name, set, number of rows)."""

    paths: list[str]
    cuts: list[tuple[int, int, int]]


def nest(lists: dict[tuple[int, int], list[str]]) -> list[Gallery]:
    """As few galleries as contain all lists: within a set, each list that contains the smaller one only adds to it."""
    galleries: list[Gallery] = []
    for number in sorted({number for _, number in lists}):
        last: Gallery | None = None
        inside: set[str] = set()
        for size in sorted(size for size, other in lists if other == number):
            paths = lists[size, number]
            here = set(paths)
            if last is None or not inside <= here:
                last, inside = Gallery([], []), set()
                galleries.append(last)
            last.paths.extend(path for path in paths if path not in inside)
            inside = here
            last.cuts.append((size, number, len(last.paths)))
    return galleries

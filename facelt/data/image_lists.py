"""Lists of images: `path label` a line, or a path alone. No image is looked at.

Shapes: N images of a list.

Where the images of a list lie: as listed, or in the other layout in which the same data set is handed round.

The lists of Places-LT name `data_256/<letter>/<scene>/x.jpg`; copies of the data also come as `train/<scene>/x.jpg`,
where a scene with a kind (apartment_building/outdoor) is one folder with a hyphen or two folders. Lists of ImageNet's
validation images name `val/<wnid>/x.JPEG`; its publishers lay them into one folder.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from facelt.errors import UserError

_LINE = re.compile(r"(.+) (-?[0-9]{1,18})")
_LABELLED_LINE = re.compile(r".+ -?[0-9]+")


def has_labels(list_path: Path) -> bool:
    """Whether every line ends in a label. Raises UserError where the list cannot be read."""
    try:
        with list_path.open(encoding="utf-8") as file:
            return all(_LABELLED_LINE.fullmatch(line.rstrip("\n")) for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_path}: cannot read the list: {error}") from error


def read_list(list_path: Path, num_classes: int | None = None) -> tuple[list[str], np.ndarray]:
    """(relative paths, labels int64 [N]) of a list of relative path, one space, label a line; -1 marks the open set.

    Raises UserError naming the list and the line: an unreadable or empty list, a line without a label, a label outside
    -1..num_classes - 1, a path that is absolute or leads upwards.
    """
    lines = text_lines(list_path)
    matches = [_LINE.fullmatch(line) for line in lines]
    if None in matches:
        number = matches.index(None)
        raise UserError(
            f"{list_path}, line {number + 1}: expected a path, one space and a label, found {lines[number][:120]!r}"
        )
    paths, texts = zip(*(match.groups() for match in matches), strict=True)
    label_N = np.array(texts).astype(np.int64)
    outside_N = (label_N < -1) | (label_N >= (np.iinfo(np.int64).max if num_classes is None else num_classes))
    if outside_N.any():
        number = int(np.argmax(outside_N))
        top = "" if num_classes is None else f" to {num_classes - 1}"
        raise UserError(f"{list_path}, line {number + 1}: label {label_N[number]} is not -1 (open set) or 0{top}")
    refuse_escapes(list_path, paths)
    return list(paths), label_N


def read_paths(list_path: Path) -> list[str]:
    """The relative paths of a list without labels. Raises UserError as `read_list` does."""
    paths = text_lines(list_path)
    refuse_escapes(list_path, paths)
    return paths


def text_lines(list_path: Path) -> list[str]:
    """Lines of a list without their ends; empty lines may only follow the last. Raises UserError."""
    try:
        text = Path(list_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_path}: cannot read the list: {error}") from error
    lines = text.rstrip().split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            what = "the list is empty" if len(lines) == 1 else f"line {number} is empty"
            raise UserError(f"{list_path}: {what}; each line names an image, or a pair")
    return lines


def refuse_escapes(list_path: Path, paths: list[str] | tuple[str, ...], first: int = 1) -> None:
    """Raises UserError at an absolute path or one that leads upwards; `first` is the line of the first path."""
    for number, path in enumerate(paths, start=first):
        if path.startswith("/") or "\0" in path or (".." in path and ".." in path.split("/")):
            raise UserError(
                f"{list_path}, line {number}: {path[:120]!r} leads out of the root folder; list relative paths below it"
            )


Layout = Callable[[str], str | None]
"""Listed relative path -> relative path to open; None where the rule does not apply."""

_PROBES = 16


def _as_listed(path: str) -> str:
    return path


def _scene(path: str) -> tuple[str, str] | None:
    """(scene/kind, file name) of data_256/<letter>/<scene>[/<kind>]/<file>."""
    parts = path.split("/")
    return ("/".join(parts[2:-1]), parts[-1]) if parts[0] == "data_256" and len(parts) >= 4 else None


def _train_hyphen(path: str) -> str | None:
    found = _scene(path)
    return found and f"train/{found[0].replace('/', '-')}/{found[1]}"


def _train_folders(path: str) -> str | None:
    found = _scene(path)
    return found and f"train/{found[0]}/{found[1]}"


def _data_256(path: str) -> str | None:
    parts = path.split("/")
    scene = "/".join(parts[1:-1]).replace("-", "/")
    return f"data_256/{scene[0]}/{scene}/{parts[-1]}" if parts[0] == "train" and scene else None


def _val_flat(path: str) -> str | None:
    parts = path.split("/")
    return f"val/{parts[-1]}" if parts[0] == "val" and len(parts) == 3 else None


LAYOUTS: dict[str, Layout] = {
    "as listed": _as_listed,
    "train/<scene>-<kind>": _train_hyphen,
    "train/<scene>/<kind>": _train_folders,
    "data_256/<letter>/<scene>/<kind>": _data_256,
    "val/<file>": _val_flat,
}


def find_layout(root: Path, paths: Sequence[str]) -> str | None:
    """Name of the layout in which most of a few spread-out paths exist; the earlier one when equal, None for none."""
    probes = [paths[len(paths) * i // _PROBES] for i in range(_PROBES)] if len(paths) > _PROBES else list(paths)
    found = {
        name: sum((place := layout(path)) is not None and (root / place).is_file() for path in probes)
        for name, layout in LAYOUTS.items()
    }
    best = max(found, key=found.__getitem__)
    return best if found[best] else None

"""Lists of images: `path label` a line, or a path alone. No image is looked at.

Shapes: N images of a list.
"""

import re
from pathlib import Path

import numpy as np

from facelt.errors import UserError

_LINE = re.compile(r"(.+) (-?[0-9]{1,18})")
_LABELLED_LINE = re.compile(r".+ -?[0-9]+")


def is_labelled(list_path: Path) -> bool:
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

"""Lists of images: im2rec's (index, label, path), InsightFace's (aligned, path, label), those of long-tailed sets (path
label), and folders per identity.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recordio_tools.errors import RecordIOError

_PATH_AND_LABEL = re.compile(r"(.+) ([0-9]{1,9})")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class ListedImage(NamedTuple):
    """One image: the file and its label."""

    path: Path
    label: int


def read_list(path: Path, root: Path | None = None) -> list[ListedImage]:
    """The images of a tab-separated .lst of either kind, paths relative to `root` (default: the list's folder).

    Raises RecordIOError naming the line that is of neither kind, that needs alignment first, or whose path leaves
    `root`.
    """
    root = (root or path.parent).resolve()
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordIOError(f"{path}: cannot be read ({error})") from None
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    images = [_parse(f"{path}: line {number}", fields, root) for number, fields in rows]
    if not images:
        raise RecordIOError(f"{path}: the list names no image")
    return images


def _parse(where: str, fields: list[str], root: Path) -> ListedImage:
    im2rec = len(fields) >= 3 and fields[0].isdecimal() and all(_is_number(field) for field in fields[1:-1])
    insightface = len(fields) >= 3 and fields[0] in ("0", "1") and _is_number(fields[2])
    if im2rec and not (insightface and _is_number(fields[-1])):
        label, name = fields[1], fields[-1]
    elif insightface and not im2rec:
        if fields[0] == "0":
            raise RecordIOError(f"{where}: the image is marked as not aligned; align it first and mark it 1")
        label, name = fields[2], fields[1]
    else:
        raise RecordIOError(f"{where}: neither index, label, path nor aligned, path, label (separated by tabs)")
    number = float(label)
    if not (number.is_integer() and number >= 0):
        raise RecordIOError(f"{where}: the label {label} is no whole number of at least 0")
    image = (root / name).resolve()
    if not image.is_relative_to(root):
        raise RecordIOError(f"{where}: {name} lies outside {root}; name the images' folder with --root")
    return ListedImage(image, int(number))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_labelled_paths(path: Path) -> tuple[list[str], list[int]]:
    """Relative paths and labels of a list of `path label` lines, as ImageNet-LT and others are published.

    Raises RecordIOError naming the line that is none, whose path leaves its root, or that names an image once more.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordIOError(f"{path}: cannot be read ({error})") from None
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _PATH_AND_LABEL.fullmatch(line)
        if match is None:
            raise RecordIOError(f"{path}: line {number}: expected a path, one space and a label of at least 0")
        name, label = match.groups()
        if name.startswith("/") or ".." in name.split("/"):
            raise RecordIOError(f"{path}: line {number}: {name} leads out of the images' folder; list paths below it")
        if name in labels:
            raise RecordIOError(f"{path}: line {number}: {name} is listed twice")
        labels[name] = int(label)
    if not labels:
        raise RecordIOError(f"{path}: the list names no image")
    return list(labels), list(labels.values())


def read_folders(root: Path) -> tuple[list[ListedImage], list[str]]:
    """The images of one folder per identity, sorted by name, and the identities' names by label.

    Raises RecordIOError where `root` holds no such folder with images, or a link that leads out of it.
    """
    images, names = [], []
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        files = list(_images(folder, root.resolve()))
        if files:
            images += [ListedImage(file, len(names)) for file in files]
            names.append(folder.name)
    if not names:
        raise RecordIOError(f"{root}: no folder with images in it (one folder per identity is expected)")
    return images, names


def _images(folder: Path, root: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            if not file.resolve().is_relative_to(root):
                raise RecordIOError(f"{file}: leads out of {root}")
            yield file

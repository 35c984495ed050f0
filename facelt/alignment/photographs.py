"""Which photographs there are, whose they are, and their pixels."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facelt.alignment.animated import GIF_START, is_animated
from facelt.data.decode import UndecodableImage, decode_image
from facelt.data.image_list import is_labelled, read_list, read_paths
from facelt.errors import UserError

READ = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
NAMED = (".apng", ".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff")
"""Suffixes of images that are not read: they are listed with those that gave no face, not passed over."""
LARGEST_PER_PIXEL = 8
"""Bytes: a colour of four 16-bit channels. A file that exceeds this for all the pixels allowed is none to be read."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_COUNTED = re.compile(r"(.*[^ _-])[ _-]+[0-9]+|(.*[^0-9 _-])[0-9]+")


class Photograph(NamedTuple):
    """A file, how it is called in lists, and whom it shows; `identity` is empty where nothing says."""

    name: str
    place: Path
    identity: str


def find_photographs(source: Path, *, root: Path | None = None, people: str = "folder") -> list[Photograph]:
    """The photographs of a folder and all below it in the order of their paths, of a list below `root`, or one file.

    Whom one shows is its label, where a list has labels; else the last folder it lies in (`people` folder), or its own
    name without a number at the end (`people` file: Ada_Byron_0002.jpg shows Ada_Byron). Hidden files are passed over,
    and so are those without an image's suffix; linked files are read, linked folders not entered.

    Raises UserError: nothing there, or a list that facelt.data.image_list refuses.
    """
    labels = None
    if source.is_dir():
        root, paths = source, _below(source)
        if not paths:
            raise UserError(f"{source}: the folder holds no photograph ({', '.join(READ)})")
    elif source.suffix.lower() in READ + NAMED:
        root, paths = source.parent, [source.name]
    elif source.suffix == ".rec":
        raise UserError(f"{source}: photographs come as a folder, a list or one image; a .rec holds aligned faces")
    elif root is None:
        raise UserError(f"{source}: a list needs --root, the folder its paths lie in")
    elif is_labelled(source):
        paths, label_N = read_list(source)
        labels = [str(label) for label in label_N.tolist()]
    else:
        paths = read_paths(source)
    names = [printable(path) for path in paths]
    identities = labels or [_person(name, people) for name in names]
    return [Photograph(name, root / path, who) for name, path, who in zip(names, paths, identities, strict=True)]


def read_photograph(place: Path, max_pixels: int) -> np.ndarray:
    """uint8 RGB [H,W,3], upright as its EXIF orientation says.

    Raises UndecodableImage with the reason: no file, unreadable, no image, damaged, cut short, animated, or more than
    `max_pixels` by its header, before anything of that size is allocated.
    """
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableImage("is no file")
        if status.st_size > LARGEST_PER_PIXEL * max_pixels + (1 << 20):
            raise UndecodableImage(f"{status.st_size} bytes, more than any image of {max_pixels} pixels has")
        payload = place.read_bytes()
    except OSError as error:
        raise UndecodableImage(f"cannot be read ({error.strerror})") from error
    if is_animated(payload):
        raise UndecodableImage("an animated image; a photograph has one frame")
    if payload.startswith(GIF_START):
        raise UndecodableImage("a GIF; convert it to PNG")
    return decode_image(payload, max_pixels)


def printable(name: str) -> str:
    """A file's name as text that every list can hold: control characters and bytes that are no UTF-8 are spelt out."""
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", name)


def _below(root: Path) -> list[str]:
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(READ + NAMED) and not name.startswith("."):
                paths.append(Path(folder, name).relative_to(root).as_posix())
    return sorted(paths)


def _person(name: str, people: str) -> str:
    path = Path(name)
    if people == "folder":
        return path.parent.name
    match = _COUNTED.fullmatch(path.stem)
    return match[1] or match[2] if match else path.stem

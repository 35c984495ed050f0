"""Which photographs there are, whose they are, and their pixels."""

import io
import os
import re
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from facelt.data.decode import BadImageError, check_header, decode_image
from facelt.errors import UserError
from recordio_tools.lists import has_labels, read_labelled_list, read_path_list

READ = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
NAMED = (".apng", ".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff")
"""Suffixes of images that are not read: they are listed with those that gave no face, not passed over."""
LARGEST_PER_PIXEL = 8
"""Bytes: a colour of four 16-bit channels. A file that exceeds this for all the pixels allowed is none to be read."""
# Bytes that are no UTF-8 come as surrogates. A backslash that stands there already must not make two names one.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})"
)
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

    Raises UserError: nothing there, a folder that cannot be looked into, or a list that cannot be read.
    """
    labels = None
    try:
        is_folder, is_there = source.is_dir(), source.exists()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    is_image = source.suffix.lower() in READ + NAMED
    if not is_there:
        raise UserError(f"{source}: no such file or folder; give a folder of photographs, a list of paths, or one")
    if root is not None and (is_folder or is_image):
        raise UserError(f"--root {root}: the paths of a list lie in it, and {source} is no list")
    if is_folder:
        root, paths = source, _below(source)
        if not paths:
            raise UserError(f"{source}: the folder holds no photograph ({', '.join(READ)})")
    elif is_image:
        root, paths = source.parent, [source.name]
    elif source.suffix == ".rec":
        raise UserError(f"{source}: photographs come as a folder, a list or one image; a .rec holds aligned faces")
    elif root is None:
        raise UserError(f"{source}: a list needs --root, the folder its paths lie in")
    elif not root.is_dir():
        raise UserError(f"--root {root}: no such folder")
    elif has_labels(source):
        paths, label_N = read_labelled_list(source)
        labels = [str(label) for label in label_N.tolist()]
    else:
        paths = read_path_list(source)
    names = [printable(path) for path in paths]
    identities = labels or [_person(name, people) for name in names]
    return [Photograph(name, root / path, who) for name, path, who in zip(names, paths, identities, strict=True)]


def read_photograph(place: Path, max_pixels: int) -> np.ndarray:
    """uint8 RGB [H,W,3], upright as its EXIF orientation says.

    Raises BadImageError with the reason: no regular file, unreadable, no image, one of another format, damaged, cut
    short, animated, or more than `max_pixels` by its header, before anything of that size is allocated.
    """
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("is no regular file")
        if status.st_size > LARGEST_PER_PIXEL * max_pixels + (1 << 20):
            raise BadImageError(f"{status.st_size} bytes, more than any image of {max_pixels} pixels has")
        payload = place.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})") from error
    if name := unsupported_format(payload):
        raise BadImageError(f"is {name}, which is not read; convert it to PNG or JPEG")
    check_header(payload, max_pixels)
    if is_animated(payload):
        raise BadImageError("an animated image; a photograph has one frame")
    return decode_image(payload, max_pixels)


# Pillow opens neither HEIC nor JPEG XL, and no damaged file, so the names come from the first bytes.
_SIGNATURES = {
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
# Major brands: ISO/IEC 23008-12, 10.2 and B.4, where mif1 leaves the codec open; AVIF specification, 6.
_BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC")
_BRANDS |= {b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}


def unsupported_format(payload: bytes) -> str | None:
    """Returns the name of a known image format that is not read; None for any other bytes."""
    if payload[4:8] == b"ftyp":
        return _BRANDS.get(payload[8:12])
    return next((name for start, name in _SIGNATURES.items() if payload.startswith(start)), None)


def is_animated(payload: bytes) -> bool:
    """Returns True for a PNG or WebP of several frames; False for any other bytes, damaged or not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own pixel limit
            with Image.open(io.BytesIO(payload), formats=("PNG", "WEBP")) as image:
                return image.is_animated
    except Exception:  # Pillow's readers raise many kinds for damaged files
        return False


def refuse_nameless(who: Iterable[tuple[str, str]], purpose: str, advice: str) -> None:
    """Raises UserError at the first of these names of images whose identity nothing says; `purpose` needs to know."""
    for name, identity in who:
        if identity in ("", "-1"):  # in a list -1 stands for nobody in particular
            raise UserError(f"{name}: nothing says whom it shows, and {purpose} needs to know; {advice}")


def printable(name: str) -> str:
    """A file's name as text that every list can hold, and no other file's: control characters, those that turn text
    around, and bytes that are no UTF-8 are spelt out.
    """
    return _UNPRINTABLE.sub(_spelt, name)


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code & 0xFF:02x}" if code <= 0xFF or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _below(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); its photographs would be missing")

    paths = []
    for folder, folders, names in os.walk(root, onerror=refuse):
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

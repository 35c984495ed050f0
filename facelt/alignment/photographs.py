"""Photographs: file discovery, identities from folders, file names or lists, and decoding."""

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

READ_SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp")
UNREADABLE_SUFFIXES = (".apng", ".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff")
"""Suffixes of images in formats that are not read; they are listed as failures instead of being skipped."""
_MAX_BYTES_PER_PIXEL = 8
"""Bytes of four 16-bit channels. A file larger than this for the allowed number of pixels is refused unread."""
# Bytes that are not UTF-8 are surrogates. Existing backslash escapes are escaped, so that names stay distinct.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]|\\(?=x[0-9a-f]{2}|u[0-9a-f]{4})"
)
_COUNTED = re.compile(r"(.*[^ _-])[ _-]+[0-9]+|(.*[^0-9 _-])[0-9]+")


class Photograph(NamedTuple):
    """Photograph file: its name in lists, its path and its identity (empty if unknown)."""

    name: str
    path: Path
    identity: str


def find_photographs(source: Path, *, root: Path | None = None, people: str = "folder") -> list[Photograph]:
    """Returns the photographs of a folder (recursively, in order of path), of a list with paths under `root`, or one.

    The identity is the label if a list has labels, else the name of the folder (`people` folder), or the file name
    without its final number (`people` file: Ada_Byron_0002.jpg shows Ada_Byron). Hidden files and files without an
    image suffix are skipped; linked files are read, linked folders are not entered.

    Raises UserError on a missing source, an unreadable folder or an invalid list.
    """
    labels = None
    try:
        is_folder, exists = source.is_dir(), source.exists()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    is_image = source.suffix.lower() in READ_SUFFIXES + UNREADABLE_SUFFIXES
    if not exists:
        raise UserError(
            f"{source}: no such file or folder; pass a folder of photographs, a list of paths, or one photograph"
        )
    if root is not None and (is_folder or is_image):
        raise UserError(f"--root {root}: only applies to a list of paths, and {source} is not a list")
    if is_folder:
        root, paths = source, _list_folder(source)
        if not paths:
            raise UserError(f"{source}: the folder has no photographs ({', '.join(READ_SUFFIXES)})")
    elif is_image:
        root, paths = source.parent, [source.name]
    elif source.suffix == ".rec":
        raise UserError(
            f"{source}: photographs are read from a folder, a list or one image file; a .rec holds aligned faces"
        )
    elif root is None:
        raise UserError(f"{source}: a list needs --root, the folder of its paths")
    elif not root.is_dir():
        raise UserError(f"--root {root}: no such folder")
    elif has_labels(source):
        paths, label_N = read_labelled_list(source)
        labels = [str(label) for label in label_N.tolist()]
    else:
        paths = read_path_list(source)
    names = [printable_name(path) for path in paths]
    identities = labels or [_identity(name, people) for name in names]
    return [
        Photograph(name, root / path, identity) for name, path, identity in zip(names, paths, identities, strict=True)
    ]


def read_photograph(path: Path, max_pixels: int) -> np.ndarray:
    """Reads a photograph as uint8 RGB [H,W,3], upright by its EXIF orientation.

    Raises BadImageError with the reason: not a regular file, unreadable, not an image, an unsupported format,
    damaged, truncated, animated, or more than `max_pixels` by its header (before an image of that size is allocated).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("not a regular file")
        if status.st_size > _MAX_BYTES_PER_PIXEL * max_pixels + (1 << 20):
            raise BadImageError(f"{status.st_size} bytes, more than an image of {max_pixels} pixels can have")
        payload = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read ({error.strerror})") from error
    if name := unsupported_format(payload):
        raise BadImageError(f"{name} images are not supported; convert it to PNG or JPEG")
    check_header(payload, max_pixels)
    if is_animated(payload):
        raise BadImageError("animated images are not supported")
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
            warnings.simplefilter("ignore")  # about Pillow's pixel limit
            with Image.open(io.BytesIO(payload), formats=("PNG", "WEBP")) as image:
                return image.is_animated
    except Exception:  # Pillow's readers raise many kinds for damaged files
        return False


def require_identity(images: Iterable[tuple[str, str]], purpose: str, advice: str) -> None:
    """Raises UserError at the first of (name, identity) without an identity, which `purpose` needs."""
    for name, identity in images:
        if identity in ("", "-1"):  # label -1 in a list: unknown
            raise UserError(f"{name}: has no identity, which {purpose} needs; {advice}")


def printable_name(name: str) -> str:
    """Returns a unique printable form of a file name: escapes control characters, text direction marks and bytes that
    are not UTF-8.
    """
    return _UNPRINTABLE.sub(_escape, name)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code & 0xFF:02x}" if code <= 0xFF or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _list_folder(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); its photographs would be skipped")

    paths = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(READ_SUFFIXES + UNREADABLE_SUFFIXES) and not name.startswith("."):
                paths.append(Path(folder, name).relative_to(root).as_posix())
    return sorted(paths)


def _identity(name: str, people: str) -> str:
    path = Path(name)
    if people == "folder":
        return path.parent.name
    match = _COUNTED.fullmatch(path.stem)
    return match[1] or match[2] if match else path.stem

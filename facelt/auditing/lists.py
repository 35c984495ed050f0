"""Lists of images: which are audited, and which are known to be wrongly labelled."""

import json
from pathlib import Path, PurePosixPath

from facelt.errors import UserError


def read_image_list(path: Path) -> list[str]:
    """The images of a list: lines of text, or a JSON object `{"path": [...]}` as MegaFace's devkit writes it.

    Raises UserError naming the file, and the line or entry that is repeated or leads out of its folder.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: is not a JSON features list ({error})") from error
        entries = content.get("path")
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f'{path}: must hold an object with "path", a list of image paths')
        places = [f"entry {place}" for place in range(len(entries))]
    else:
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        numbered = [(number, line) for number, line in lines if line and not line.startswith("#")]
        entries, places = [line for _, line in numbered], [f"line {number}" for number, _ in numbered]
    if not entries:
        raise UserError(f"{path}: lists no image")
    seen: set[str] = set()
    for entry, place in zip(entries, places, strict=True):
        if entry.startswith("/") or "\\" in entry or "\0" in entry or {"", ".", ".."} & set(entry.split("/")):
            raise UserError(f"{path}: {place}: {entry!r} is no plain path below the images' folder")
        if entry in seen:
            raise UserError(f"{path}: {place}: {entry!r} is listed more than once")
        seen.add(entry)
    return entries


def identity_of(entry: str, where: Path) -> str:
    """The identity of a listed image: the folder it lies in. Raises UserError where there is none."""
    identity = PurePosixPath(entry).parent.name
    if not identity:
        raise UserError(f"{where}: {entry!r} lies in no folder; the folder's name is the identity")
    return identity


def read_noises(path: Path) -> frozenset[str]:
    """The images a noise list names: paths, or the stem of a name without a folder.

    Lines that begin with `#` are comments; of a line with tabs the second field counts. FaceScrub's list names .png
    files whatever the images are, hence the stems. Raises UserError naming the file.
    """
    fields = (line.split("\t") for line in _text(path).splitlines() if line.strip() and not line.startswith("#"))
    names = (parts[1].strip() if len(parts) > 1 else parts[0].strip() for parts in fields)
    return frozenset(name if "/" in name else PurePosixPath(name).stem for name in names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error

"""Lists of images as MegaFace's development kit writes them, and as plain text; noise lists. Every path is relative."""

import json
from pathlib import Path, PurePosixPath

from facelt.errors import UserError


def read_features_list(path: Path) -> list[str]:
    """The image paths of a features list, a JSON object `{"path": [...], "id": [...]}`; `id` is not needed.

    Raises UserError naming the file, and the entry that is repeated or leads outside its root.
    """
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not a JSON features list ({error})") from error
    paths = content.get("path") if isinstance(content, dict) else None
    if not isinstance(paths, list) or not all(isinstance(entry, str) for entry in paths):
        raise UserError(f'{path}: must hold an object with "path", a list of image paths')
    _check_paths(paths, path)
    return paths


def read_image_list(path: Path) -> list[str]:
    """The images of a features list, or of a text file with a path a line; `#` begins a comment.

    Raises UserError as `read_features_list` does, or where nothing is listed.
    """
    text = _text(path)
    if text.lstrip().startswith("{"):
        paths = read_features_list(path)
    else:
        paths = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        _check_paths(paths, path)
    if not paths:
        raise UserError(f"{path}: lists no image")
    return paths


def read_noise_names(path: Path) -> list[str]:
    """The images that a noise list names, as it names them.

    Lines that begin with `#` are comments; of a line with tabs the second field counts. Raises UserError naming the
    file.
    """
    fields = (line.split("\t") for line in _text(path).splitlines() if line.strip() and not line.startswith("#"))
    return [parts[1].strip() if len(parts) > 1 else parts[0].strip() for parts in fields]


def _check_paths(paths: list[str], path: Path) -> None:
    # A million entries are checked as one path; only where that is odd each is looked at, to name it.
    joined = "/".join(("", *paths, ""))
    if any(odd in joined for odd in ("//", "/./", "/../", "\\", "\0")):
        for entry in paths:
            check_inside(entry, path)
    if len(set(paths)) != len(paths):
        seen: set[str] = set()
        twice = next(entry for entry in paths if entry in seen or seen.add(entry))
        raise UserError(f"{path}: {twice!r} is listed more than once")


def check_inside(entry: str, where: Path) -> None:
    """Raise UserError unless `entry` is a relative path that stays below its root."""
    parts = entry.split("/")
    if entry.startswith("/") or "\\" in entry or "\0" in entry or {"", ".", ".."} & set(parts):
        raise UserError(f"{where}: {entry!r} is no plain path below the images' folder")


def probe_identity(entry: str, where: Path) -> str:
    """The identity of a listed image: the folder it lies in. Raises UserError where there is none."""
    identity = PurePosixPath(entry).parent.name
    if not identity:
        raise UserError(f"{where}: {entry!r} lies in no folder; the folder's name is the identity")
    return identity


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error

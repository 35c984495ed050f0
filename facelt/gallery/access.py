"""Access to the files of a local gallery: the permissions that its reader or writer needs."""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from facelt.errors import UserError

# Name and letter for chmod.
_PERMISSIONS = {os.R_OK: ("read", "r"), os.W_OK: ("write", "w"), os.X_OK: ("search", "x")}


def require_access(folder: Path, *, write: bool) -> None:
    """Raises UserError naming the first path of a gallery, and the permission that this process lacks on it.

    A missing gallery passes. SQLite writes to the folder for a reader as well, unless its -shm file exists.
    """
    try:
        is_missing = not folder.exists()
    except PermissionError:
        raise _error(_unreachable_parent(folder), [os.X_OK]) from None
    for path in () if is_missing else _paths(folder):
        needed = [os.R_OK]
        if write or (path == folder and not any(path.glob("*.sqlite-shm"))):
            needed.append(os.W_OK)
        if path.is_dir():
            needed.append(os.X_OK)
        lacking = [mode for mode in needed if not _is_allowed(path, mode)]
        # A writer may have removed it meanwhile.
        if lacking and path.exists():
            raise _error(path, lacking)


def _paths(folder: Path) -> Iterator[Path]:
    """Yields a folder, then what is in it, so that an unreadable folder is reported before its content."""
    yield folder
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield from _paths(path)


def _is_allowed(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _unreachable_parent(path: Path) -> Path:
    parents = reversed(path.absolute().parents)
    return next((parent for parent in parents if not _is_allowed(parent, os.X_OK)), path.parent)


def _error(path: Path, lacking: list[int]) -> UserError:
    names, letters = zip(*(_PERMISSIONS[mode] for mode in lacking), strict=True)
    needed = " and ".join(names)
    owner = path.stat().st_uid
    if owner == os.geteuid():
        return UserError(f"{path}: needs {needed} permission; chmod u+{''.join(letters)} grants it")
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"number {owner}"
    return UserError(
        f"{path}: needs {needed} permission; it belongs to the user {name}: run the command as that user, or use a "
        "snapshot of your own"
    )

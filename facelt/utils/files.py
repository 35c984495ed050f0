"""Files and folders that are whole: written completely or not at all; files are known by a digest of all they hold."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from facelt.errors import UserError


def sync(place: Path | IO) -> None:
    """What was written to a file, or which files a folder holds, is on disk after this. Raises OSError."""
    if not isinstance(place, Path):
        place.flush()
        os.fsync(place.fileno())
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, advice: str = "") -> Iterator[Path]:
    """A temporary neighbour of `path`, in a folder that is made; it takes the name once it is written and on disk.

    Raises UserError, which ends with the advice, where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}{advice and f'; {advice}'}") from error
    finally:
        # Gone after the rename; still there when anything above failed.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, advice: str = "") -> None:
    """Writes UTF-8 text as it is, without changing ends of lines."""
    with replacing(path, advice) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and vanishes when it does not.

    Raises UserError where something other than an empty folder is at `target`, or where it cannot be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists already; remove it or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); make room or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, which need not fit in memory. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_input(path: Path) -> str:
    """The same of a file that a user names. Raises UserError where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error

"""Writing a report's files: whole or not at all."""

import contextlib
import os
from pathlib import Path

from facelt.errors import UserError


def write_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text through a temporary file beside `path`, synced to disk before it takes the name.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder for the report") from error
    finally:
        # Gone after the rename; still there when anything above failed.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

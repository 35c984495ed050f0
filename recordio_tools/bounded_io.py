"""Bounded reading of regular files: bytes, UTF-8 text, JSON values.

A name may lead to a named pipe, which would block, to a device without end, or to a file that fills the memory. All of
them, and values that the readers here refuse, are reported before they do harm.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from recordio_tools.errors import RecordIOError

MAX_JSON_BYTES = 1 << 26
"""Default limit of a JSON file: the card of a model with four million relabelled classes is smaller."""
_MAX_CONTAINERS = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_regular_file(path: Path, limit: int) -> bytes:
    """Returns the bytes of a file of at most `limit` bytes.

    Raises OSError, whose `strerror` says what is wrong, also for anything but a regular file, and for a larger one.
    """
    with os.fdopen(open_regular_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes are more than the limit of {limit:,}", str(path))
        return file.read(size)


def open_regular_file(path: Path) -> int:
    """Returns a descriptor of a regular file, opened for reading. Raises OSError as `read_regular_file` does."""
    try:
        # Opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "the name contains a NUL character", str(path)) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.EINVAL, "a socket, not a regular file", str(path)) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{_kind(mode)}, not a regular file", str(path))
    return descriptor


def regular_file_exists(path: Path) -> bool:
    """Returns True for a regular file and False if nothing has this name.

    Raises RecordIOError for a folder, and for a named pipe or a device, which a program that opens it may wait for
    without end.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return False
    except OSError as error:
        raise RecordIOError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(mode):
        raise RecordIOError(f"{path}: is {_kind(mode)}, not a regular file")
    return True


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def read_utf8(path: Path, limit: int) -> str:
    """Returns the text of a file with line ends as `\\n`, without a byte order mark.

    Raises OSError as `read_regular_file` does, and ValueError, one line, for bytes that are not UTF-8.
    """
    content = read_regular_file(path, limit)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Returns the value in a JSON file.

    Raises OSError as `read_regular_file` does, and ValueError, one line, for text that is not JSON, NaN and infinity,
    more than a million objects and lists, deep nesting, and integers of thousands of digits.
    """
    text = read_utf8(path, limit)
    if text.count("[") + text.count("{") > _MAX_CONTAINERS:
        raise ValueError(f"it has more than {_MAX_CONTAINERS:,} objects and lists")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("its objects and lists are nested too deeply") from None
    except ValueError as error:
        # Python's message on long integers advises programmers.
        reason = re.sub(r"Exceeds the limit.*", "an integer has too many digits", str(error), flags=re.DOTALL)
        raise ValueError(f"not JSON: {reason}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")

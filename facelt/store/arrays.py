"""Arrays in .npy and .npz files, checked by their headers before any value is read.

N rows, D values, P pairs.
"""

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from facelt.errors import UserError
from recordio_tools.bounded_io import open_regular_file

ARRAY_SUFFIXES = (".npy", ".npz")
_MAX_DIMENSION = 1 << 20
# A larger file with less than an eighth of its size on the disk is sparse; file systems compress floats less than that.
_SPARSE_FROM = 1 << 24
_SPARSE_RATIO = 8
# A header may claim four gigabytes for itself, which NumPy would allocate.
_MAX_HEADER_BYTES = 1 << 16


def refuse_special_file(path: Path) -> None:
    """Raises UserError unless `path` is a regular file whose size is really there, as its status says.

    Opening a named pipe would wait forever; a sparse file may claim more than any memory holds.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a regular file; write the embeddings to one")
    if status.st_size > _SPARSE_FROM and status.st_blocks * 512 * _SPARSE_RATIO < status.st_size:
        raise UserError(
            f"{path}: is a sparse file of {status.st_size:,} bytes, of which {status.st_blocks * 512:,} were written; "
            "write it again"
        )


def is_array_file(path: Path) -> bool:
    """Returns whether a path is that of an array by its suffix, .npy or .npz."""
    return path.suffix.lower() in ARRAY_SUFFIXES


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    is_fortran_order: bool
    dtype: np.dtype
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the file, header included."""
        return self.offset + self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    def __str__(self) -> str:
        return f"{'big-endian ' if self.dtype.str[0] == '>' else ''}{self.dtype.name} {list(self.shape)}"


def map_npy(path: Path, shape: tuple[int, ...], dtypes: tuple[str, ...], source: str) -> np.ndarray:
    """Returns a read-only memory map of an array with that shape and one of these little-endian dtypes, in C order.

    `source` states the shape in messages, `meta.json` for example. Raises UserError, one line, for any other file: not
    a regular one, another dtype, objects, Fortran order, another shape, and fewer or more values than the header says.
    """
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            try:
                header = _read_header(path, file, "the file")
            except Exception as error:  # NumPy's parser raises any exception on a damaged header
                reason = " ".join(str(error).split())[:120]
                raise UserError(f"{path}: truncated, or not a .npy file ({reason})") from None
            allowed = {np.dtype(name).newbyteorder("<").str for name in dtypes}
            if header.dtype.str not in allowed or header.shape != shape:
                raise UserError(f"{path}: holds {header}, {source} says {' or '.join(dtypes)} {list(shape)}")
            if header.is_fortran_order:
                raise UserError(f"{path}: holds columns (Fortran order), not rows; save numpy.ascontiguousarray(array)")
            num_bytes, size = header.size - header.offset, os.fstat(file.fileno()).st_size - header.offset
            if size != num_bytes:
                raise UserError(f"{path}: truncated or damaged: {size:,} bytes of values, not {num_bytes:,}")
            # An empty array cannot be mapped.
            return (
                np.memmap(file, header.dtype, "r", header.offset, shape) if num_bytes else np.empty(shape, header.dtype)
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {source} lists it") from error


def read_embedding_array(
    path: Path, name: str | None = None, *, default: str = "", rows: int | None = None
) -> np.ndarray:
    """Returns embeddings [N,D]: memory-mapped from a .npy file, or the array `name` of a .npz file.

    Without a name it is the array `default` of a .npz file, or the only one. float64 becomes float32. `rows` is the
    number of rows that a list gives.

    Raises UserError, in one line and before memory is taken, on objects, integers or another rank, another number of
    rows, a truncated file, a file that is not regular or is sparse, an array larger than the memory, an archive without
    a clear choice.
    """
    with _open_array(path, name, default) as (file, name, size):
        header = _read_header(path, file, name)
        if header.dtype.hasobject:
            raise UserError(f"{path}: {name} holds Python objects, which are not read; store it as float32 [N,D]")
        is_float = header.dtype.kind == "f" and header.dtype.itemsize <= 8
        if not is_float or len(header.shape) != 2 or not 0 < header.shape[1] <= _MAX_DIMENSION:
            raise UserError(f"{path}: embeddings must be floats [N,D], not {header}")
        if not header.shape[0]:
            raise UserError(f"{path}: {name} has no rows")
        if rows is not None and header.shape[0] != rows:
            raise UserError(f"{path}: has {header.shape[0]:,} rows, the list of its rows has {rows:,}")
        if size != header.size:
            raise UserError(f"{path}: {name} has {size:,} bytes, its header says {header.size:,}; copy it again")
        if zipfile.is_zipfile(path):
            _refuse_beyond_memory(path, header)
            file.seek(0)
            value_ND = np.lib.format.read_array(file, allow_pickle=False)
        else:
            value_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    if value_ND.dtype.itemsize == 8:
        _refuse_beyond_memory(path, header)
        with np.errstate(over="ignore"):
            return np.asarray(value_ND, dtype=np.float32)
    return value_ND


def read_pair_embeddings(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads embeddings [2P,D], the two of a pair in consecutive rows, and labels bool [P] or None.

    A .npy file holds embeddings only; a .npz file has the arrays `embeddings` and `issame`. Raises UserError.
    """
    embedding_ND = read_embedding_array(path, "embeddings")
    if not zipfile.is_zipfile(path):
        return embedding_ND, None
    with _open_array(path, "issame") as (file, name, size):
        header = _read_header(path, file, name)
        if header.dtype.kind not in "biuf" or len(header.shape) != 1 or size != header.size:
            raise UserError(f"{path}: `issame` must be booleans [P], not {header}")
        _refuse_beyond_memory(path, header)
        file.seek(0)
        same_P = np.lib.format.read_array(file, allow_pickle=False)
    if not np.isin(same_P, (0, 1)).all():
        raise UserError(f"{path}: `issame` must be booleans [P], not {header}")
    return embedding_ND, same_P.astype(bool)


@contextmanager
def _open_array(path: Path, name: str | None, default: str = "") -> Iterator[tuple[IO[bytes], str, int]]:
    """Opens the array of a .npy file, or one of a .npz file: yields the file, the array's name and its size in bytes.

    Raises UserError on anything that reading it raises.
    """
    refuse_special_file(path)
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                yield file, "the array", os.fstat(file.fileno()).st_size
            return
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            chosen = name or (default if len(members) != 1 else next(iter(members)))
            if chosen not in members:
                advice = f"it needs `{name}`" if name else "name one of them"
                raise UserError(f"{path}: holds the arrays {', '.join(members) or 'none'}; {advice}")
            with archive.open(members[chosen]) as file:
                yield file, f"`{chosen}`", members[chosen].file_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a .npy or .npz file of plain arrays ({reason})") from None


def _read_header(path: Path, file: IO[bytes], name: str) -> _Header:
    """Reads the header of an array. Raises ValueError on anything but a .npy file."""
    start = io.BytesIO(file.read(_MAX_HEADER_BYTES))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise UserError(f"{path}: {name} has the format version {version}, which only arrays of records need")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return _Header(*read(start), start.tell())


def _refuse_beyond_memory(path: Path, header: _Header) -> None:
    """Raises UserError if an array is larger than the memory of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if header.size > memory:
        raise UserError(f"{path}: holds {header}, {header.size:,} bytes, more than the memory of {memory:,} bytes")

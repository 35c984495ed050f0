"""Memory maps of .npy files whose header is checked before any memory is taken."""

import io
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from facelt.errors import UserError
from recordio_tools.bounded_io import open_regular_file

# A header may claim four gigabytes for itself, which NumPy would allocate.
_MAX_HEADER_BYTES = 1 << 16


class _Header(NamedTuple):
    shape: tuple[int, ...]
    is_fortran_order: bool
    dtype: np.dtype


def map_npy(path: Path, shape: tuple[int, ...], dtypes: tuple[str, ...], source: str) -> np.ndarray:
    """Returns a read-only memory map of an array with that shape and one of these little-endian dtypes, in C order.

    `source` states the shape in messages, `meta.json` for example. Raises UserError, one line, for any other file: not
    a regular one, another dtype, objects, Fortran order, another shape, and fewer or more values than the header says.
    """
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            start = io.BytesIO(file.read(_MAX_HEADER_BYTES))
            header = _read_header(path, start)
            offset, size = start.tell(), os.fstat(file.fileno()).st_size
            allowed = {np.dtype(name).newbyteorder("<").str for name in dtypes}
            if header.dtype.str not in allowed or header.shape != shape:
                name = ("big-endian " if header.dtype.str.startswith(">") else "") + header.dtype.name
                expected = f"{source} says {' or '.join(dtypes)} {list(shape)}"
                raise UserError(f"{path}: holds {name} {list(header.shape)}, {expected}")
            if header.is_fortran_order:
                raise UserError(f"{path}: holds columns (Fortran order), not rows; save numpy.ascontiguousarray(array)")
            num_bytes = header.dtype.itemsize * int(np.prod(shape, dtype=object))
            if size != offset + num_bytes:
                raise UserError(f"{path}: truncated or damaged: {size - offset:,} bytes of values, not {num_bytes:,}")
            # An empty array cannot be mapped.
            return np.memmap(file, header.dtype, "r", offset, shape) if num_bytes else np.empty(shape, header.dtype)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {source} lists it") from error


def _read_header(path: Path, file: BinaryIO) -> _Header:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return _Header(*read(file))
    except Exception as error:  # NumPy's parser raises any exception on a damaged header
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: truncated, or not a .npy file ({reason})") from None

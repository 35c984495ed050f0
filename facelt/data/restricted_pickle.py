"""Restricted unpickling of verification sets and CIFAR files: plain values and small arrays, no code execution.

A pickle is a program. These files need few of its opcodes: numbers, text, bytes, lists, tuples, dictionaries, and NumPy
arrays of bytes or booleans. All opcodes are checked before `pickle.Unpickler` reads the first one.
"""

import io
import pickle
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from facelt.errors import UserError
from recordio_tools.bounded_io import read_regular_file

MAX_FILE_BYTES = 1 << 31
"""Published files have at most a few hundred million bytes."""
MAX_OPCODES = 1 << 20
"""Published files have up to 35 opcodes for each of 14,000 images (verification) or 7 for each of 50,000 (CIFAR)."""


class _Opcode(NamedTuple):
    """Argument and stack effect of an opcode.

    The argument is a number of `number` bytes; or a length of `length` bytes and that much data; or some `lines`. The
    opcode pops `pops` values (None: all down to the mark), then pushes `pushes` values, which are text if `is_text`.
    """

    name: str
    number: int = 0
    length: int = 0
    lines: int = 0
    pops: int | None = 0
    pushes: int = 0
    is_text: bool = False


_ALLOWED = (
    *(_Opcode("PROTO", number=1), _Opcode("FRAME", number=8), _Opcode("STOP"), _Opcode("MARK")),
    *(_Opcode(name, pushes=1) for name in ("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE")),
    *(_Opcode(name, number=size, pushes=1) for name, size in (("BININT", 4), ("BININT1", 1), ("BININT2", 2))),
    *(_Opcode(name, length=size, pushes=1) for name, size in (("LONG1", 1), ("BYTEARRAY8", 8))),
    *(_Opcode(name, lines=count, pushes=1) for name, count in (("INT", 1), ("LONG", 1), ("GLOBAL", 2))),
    *(_Opcode(name, lines=1, pushes=1, is_text=True) for name in ("STRING", "UNICODE")),
    *(
        _Opcode(name, length=size, pushes=1, is_text=True)
        for name, size in (
            *(("SHORT_BINSTRING", 1), ("BINSTRING", 4), ("SHORT_BINBYTES", 1), ("BINBYTES", 4), ("BINBYTES8", 8)),
            *(("SHORT_BINUNICODE", 1), ("BINUNICODE", 4), ("BINUNICODE8", 8)),
        )
    ),
    *(_Opcode(name, pops=pops, pushes=1) for name, pops in (("TUPLE1", 1), ("TUPLE2", 2), ("TUPLE3", 3))),
    *(_Opcode(name, pops=2, pushes=1) for name in ("STACK_GLOBAL", "REDUCE")),
    *(_Opcode(name, pops=pops) for name, pops in (("APPEND", 1), ("BUILD", 1), ("SETITEM", 2))),
    *(_Opcode(name, pops=None, pushes=1) for name in ("TUPLE", "LIST", "DICT")),
    *(_Opcode(name, pops=None) for name in ("APPENDS", "SETITEMS")),
    *(_Opcode("PUT", lines=1), _Opcode("BINPUT", number=1), _Opcode("LONG_BINPUT", number=4), _Opcode("MEMOIZE")),
    *(_Opcode("GET", lines=1), _Opcode("BINGET", number=1), _Opcode("LONG_BINGET", number=4)),
)
_OPCODES = {getattr(pickle, opcode.name)[0]: opcode for opcode in _ALLOWED}


class PickledArray:
    """Stand-in for numpy.ndarray: `value` is uint8 or bool, empty until the file sets it."""

    value: np.ndarray = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_column_major, data = state
        self.value = _array(data, dtype, shape, "F" if is_column_major else "C")


def read_restricted_pickle(path: Path, *, what: str, encoding: str, dtypes: tuple[str, ...] = ("u1",)) -> Any:
    """Reads a file as `load_restricted` does. Raises UserError, in one line, for whatever is wrong with it."""
    try:
        payload = read_regular_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot read the file ({error.strerror})") from None
    try:
        return load_restricted(payload, what=what, encoding=encoding, dtypes=dtypes)
    except Exception as error:  # a damaged pickle raises any exception
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: not a {what} ({reason}); download it again") from None


def load_restricted(payload: bytes, *, what: str, encoding: str, dtypes: tuple[str, ...] = ("u1",)) -> Any:
    """Returns the value of one pickle: numbers, text, bytes, lists, tuples, dictionaries and `PickledArray`.

    `what` names such a file in messages; `encoding` is what strings of Python 2 become, `bytes` or an encoding;
    `dtypes` are the array types allowed, among u1 and b1.

    Memory and time stay proportional to the file. Raises UnpicklingError for any other content, EOFError for a
    truncated file, and other exceptions for a damaged one.
    """
    _check_opcodes(payload)
    return _Unpickler(payload, what, encoding, dtypes).load()


def _check_opcodes(payload: bytes) -> None:
    """Follows the stack and the memo without making any value.

    Raises UnpicklingError for an opcode that plain values do not need, more than MAX_OPCODES of them, a memo index far
    beyond their number (the unpickler allocates a table of that size), or a dictionary key other than text or bytes
    (hashing a tuple that holds another one twice, which holds another one twice, takes forever). Raises EOFError for a
    truncated file.
    """
    # True for text or bytes: the values on the stack, below each mark, and in the memo.
    stack: list[bool] = []
    marked: list[list[bool]] = []
    memo: dict[int, bool] = {}
    try:
        for count, (opcode, argument) in enumerate(_opcodes(payload)):
            if count >= MAX_OPCODES:
                raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES:,} opcodes")
            name, pops = opcode.name, opcode.pops
            if name in ("SETITEM", "SETITEMS", "DICT"):
                _check_keys(stack[-2:-1] if name == "SETITEM" else stack[0::2])
            if pops is None:
                stack = marked.pop()
            elif pops:
                if len(stack) < pops:
                    raise IndexError
                del stack[-pops:]
            if opcode.pushes:
                stack.append(opcode.is_text)
            elif name == "MARK":
                marked.append(stack)
                stack = []
            elif "GET" in name:
                stack.append(memo[argument])
            elif "PUT" in name or name == "MEMOIZE":
                index = len(memo) if name == "MEMOIZE" else argument
                if index > count + 255:
                    raise pickle.UnpicklingError(f"the memo index {index} is too large")
                memo[index] = stack[-1]
    except (IndexError, KeyError):
        raise pickle.UnpicklingError("an opcode uses a value that does not exist") from None


def _opcodes(payload: bytes) -> Iterator[tuple[_Opcode, int]]:
    """The opcodes up to STOP, each with its number or memo index; other arguments are skipped."""
    position = frame_end = 0
    opcode = None
    while opcode is None or opcode.name != "STOP":
        start = position
        if start >= len(payload):
            raise EOFError("the file is truncated")
        opcode = _OPCODES.get(payload[start])
        if opcode is None:
            raise pickle.UnpicklingError(f"the opcode {payload[start : start + 1]!r} is not allowed")
        name, number, length, lines, *_ = opcode
        argument, position = 0, start + 1
        if number or length:
            position += number or length
            argument = int.from_bytes(payload[start + 1 : position], "little")
            if length:
                position += argument
        for _ in range(lines):
            position = (payload.find(b"\n", position) + 1) or len(payload) + 1
        if position > len(payload):
            raise EOFError("the file is truncated")
        if name in ("PUT", "GET"):
            line = payload[start + 1 : position - 1]
            if not line.isdigit():
                raise pickle.UnpicklingError("a memo index is not a number")
            argument = int(line)
        # The unpickler reads a whole frame ahead, and drops the rest of it at an opcode that crosses its end.
        if start < frame_end and (position > frame_end or name == "FRAME"):
            raise pickle.UnpicklingError("a frame ends within an opcode or contains another frame")
        if name == "FRAME":
            frame_end = position + argument
            if frame_end > len(payload):
                raise EOFError("the file is truncated")
        yield opcode, argument


def _check_keys(are_text: list[bool]) -> None:
    if not all(are_text):
        raise pickle.UnpicklingError("a dictionary has keys that are not text")


class _Global:
    """Stand-in for a global of a module: callable if `make` is given, without state."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any] | None = None) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        if self._make is None:
            raise pickle.UnpicklingError("it calls a class that only names a type")
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of a global")


class _Budget:
    """Bytes that may still be made of those in the file: a reference costs a few, what it refers to may be large."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def spend(self, count: int) -> None:
        """Raises UnpicklingError if more bytes are made than the file has."""
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("it makes more bytes than the file has")


class _Dtype:
    """Stand-in for numpy.dtype: u1 (byte) or b1 (boolean). `encode` turns text into bytes, `budget` limits arrays."""

    def __init__(self, name: str, encode: Callable[[str], bytes], budget: _Budget) -> None:
        self.dtype, self.encode, self.budget = np.dtype(name), encode, budget

    def __setstate__(self, state: tuple) -> None:
        """Does nothing: byte order and alignment do not matter for single bytes."""


class _Unpickler(pickle.Unpickler):
    """The standard unpickler with the few globals that arrays and bytes need."""

    def __init__(self, payload: bytes, what: str, encoding: str, dtypes: tuple[str, ...]) -> None:
        super().__init__(io.BytesIO(payload), encoding=encoding)
        self._what, self._dtypes = what, dtypes
        # Each text and each array in the file has bytes there, which a damaged file would use over and over.
        self._encoded, self._in_arrays = _Budget(len(payload)), _Budget(len(payload))
        array = _Global()
        globals_ = {
            "_codecs": {"encode": _Global(self._encode)},
            "numpy": {"ndarray": array, "dtype": _Global(self._dtype)},
        }
        for core in ("numpy.core", "numpy._core"):
            globals_[f"{core}.multiarray"] = {
                "_reconstruct": _Global(lambda class_, *_: _empty(class_, array)),
                "scalar": _Global(lambda dtype, data: _array(data, dtype, (), "C").item()),
            }
            globals_[f"{core}.numeric"] = {"_frombuffer": _Global(_from_buffer)}
        self._globals = globals_

    def find_class(self, module: str, name: str) -> object:
        try:
            return self._globals[module][name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a {self._what}") from None

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """Bytes from text, as protocols 0 to 2 of Python 3 write them, and as Python 2 strings decoded to text need."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("_codecs.encode is not called with bytes as latin1 text")
        self._encoded.spend(len(text))
        return text.encode("latin-1")

    def _dtype(self, name: str | bytes, *_: Any) -> _Dtype:
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if name not in self._dtypes:
            # reprlib truncates: a nested tuple may be astronomically long when written out.
            raise pickle.UnpicklingError(
                f"an array has the type {reprlib.repr(name)}, expected {' or '.join(self._dtypes)}"
            )
        return _Dtype(name, self._encode, self._in_arrays)


def _empty(class_: object, array: _Global) -> PickledArray:
    if class_ is not array:
        raise pickle.UnpicklingError("an array has an unknown class")
    return PickledArray()


def _from_buffer(data: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> PickledArray:
    result = PickledArray()
    result.value = _array(data, dtype, shape, order)
    return result


def _array(data: object, dtype: object, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | str):
        raise pickle.UnpicklingError("an array is not made of bytes")
    data = dtype.encode(data) if isinstance(data, str) else data
    dtype.budget.spend(len(data))
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)

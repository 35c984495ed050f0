"""Pickles of plain values and small arrays, read without letting one run anything.

Data sets of old are handed round as pickles, which are programs. These files need few of its words: numbers, text,
bytes, lists, dictionaries, and numpy's arrays of bytes or of truth values. Everything else is refused.
"""

import io
import pickle
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_WORDS = (
    *("PROTO", "FRAME", "STOP", "MARK", "REDUCE", "BUILD", "GLOBAL", "STACK_GLOBAL"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
)


class _Dispatch(dict):
    """The words that are understood, each with what pickle's own reader does at it."""

    def __missing__(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it holds the instruction {bytes([code])!r}, which plain values do not need")


class _Named:
    """What a name of a module stands for: something to call, or nothing but itself. It has no state to be given."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any] | None = None) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        if self._make is None:
            raise pickle.UnpicklingError("it calls what is not made by calling")
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it gives a state to a name")


class _Kind:
    """What stands for numpy's dtype: u1, a byte, or b1, a truth value. `encode` makes bytes of text."""

    def __init__(self, name: str, encode: Callable[[str], bytes]) -> None:
        self.dtype, self.encode = np.dtype(name), encode

    def __setstate__(self, state: tuple) -> None:
        """Byte order and alignment say nothing about single bytes."""


class PlainArray:
    """What stands for numpy's array: `value` is one, uint8 or bool, empty where the file gives it nothing."""

    value: np.ndarray = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, column_major, data = state
        self.value = _array(data, kind, shape, "F" if column_major else "C")


def _bytearray(reader: "PlainUnpickler") -> None:
    size = int.from_bytes(reader.read(8), "little")
    data = bytearray(reader.read(size))
    if len(data) < size:
        raise EOFError
    reader.append(data)


def _set(target: object, items: Sequence[Any]) -> None:
    """Keys and values in turn. Other keys than text may be made so that their hashes take for ever."""
    for key, value in zip(items[0::2], items[1::2], strict=True):
        if not isinstance(target, dict) or not isinstance(key, str | bytes):
            raise pickle.UnpicklingError("it holds a dictionary whose keys are not text")
        target[key] = value


def _dict(reader: "PlainUnpickler") -> None:
    items = reader.pop_mark()
    made: dict = {}
    _set(made, items)
    reader.append(made)


def _setitem(reader: "PlainUnpickler") -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    _set(reader.stack[-1], (key, value))


def _setitems(reader: "PlainUnpickler") -> None:
    items = reader.pop_mark()
    _set(reader.stack[-1], items)


class PlainUnpickler(pickle._Unpickler):
    """Reads one pickle, by pickle's reader in Python: the one in C can be made to reserve any amount of memory.

    `what` names such a file in messages; `encoding` is what strings of Python 2 become, `bytes` or an encoding; `kinds`
    are the kinds of arrays there may be, u1 and b1. `load` returns numbers, text, bytes, lists, tuples, dictionaries
    and `PlainArray`; it raises UnpicklingError at anything else, and at a damaged pickle whatever its bytes lead to.
    """

    dispatch = _Dispatch({code: pickle._Unpickler.dispatch[code] for (code,) in (getattr(pickle, w) for w in _WORDS)})
    # Pickle's own reserves what the file says before it looks whether that much is there.
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    dispatch |= {pickle.DICT[0]: _dict, pickle.SETITEM[0]: _setitem, pickle.SETITEMS[0]: _setitems}

    def __init__(self, payload: bytes, *, what: str, encoding: str, kinds: tuple[str, ...] = ("u1",)) -> None:
        # Read from memory, where a length that lies beyond the end reserves nothing.
        super().__init__(io.BytesIO(payload), encoding=encoding)
        self._what, self._kinds = what, kinds
        self._encodable = len(payload)
        array = _Named()
        names = {"_codecs": {"encode": _Named(self._encode)}, "numpy": {"ndarray": array, "dtype": _Named(self._dtype)}}
        for core in ("numpy.core", "numpy._core"):
            names[f"{core}.multiarray"] = {
                "_reconstruct": _Named(lambda kind, *_: _empty(kind, array)),
                "scalar": _Named(lambda kind, data: _array(data, kind, (), "C").item()),
            }
            names[f"{core}.numeric"] = {"_frombuffer": _Named(_from_buffer)}
        self._names = names

    def find_class(self, module: str, name: str) -> object:
        try:
            return self._names[module][name]
        except KeyError:
            reason = f"it asks for {module}.{name}, which no {self._what} holds"
            raise pickle.UnpicklingError(reason) from None

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """Bytes as Python 3 writes them where pickles have no word for them, and strings of Python 2 that are text."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes something else than bytes")
        # Each text in the file is one bytes object: whoever asks for more wants to fill the memory.
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("it makes more bytes than the file has")
        return text.encode("latin-1")

    def _dtype(self, name: str | bytes, *_: Any) -> _Kind:
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if name not in self._kinds:
            # reprlib's: the whole name may be a tuple of tuples that is nowhere as large as when it is written out.
            found = reprlib.repr(name)
            raise pickle.UnpicklingError(f"an array of {found} where {' or '.join(self._kinds)} is expected")
        return _Kind(name, self._encode)


def _empty(kind: object, array: _Named) -> PlainArray:
    if kind is not array:
        raise pickle.UnpicklingError("an array of an unknown class")
    return PlainArray()


def _from_buffer(data: bytes | bytearray, kind: _Kind, shape: tuple[int, ...], order: str) -> PlainArray:
    found = PlainArray()
    found.value = _array(data, kind, shape, order)
    return found


def _array(data: object, kind: object, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(data, bytes | bytearray | str):
        raise pickle.UnpicklingError("an array of another kind than bytes")
    data = kind.encode(data) if isinstance(data, str) else data
    return np.frombuffer(data, kind.dtype).reshape(shape, order=order)

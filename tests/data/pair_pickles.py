"""Pickles opcode by opcode: verification sets as written by Python 2 (protocols 0 and 2), and hostile ones."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np


def python2_set(images: Sequence[bytes | np.ndarray], answers: Sequence[bool], protocol: int) -> bytes:
    """Returns the pickle of the tuple (images, answers)."""
    if protocol == 0:
        return b"(" + _protocol0(list(images)) + _protocol0(list(answers)) + b"tp0\n."
    return b"\x80\x02" + _protocol2(list(images)) + _protocol2(list(answers)) + b"\x86q\x00."


def doubled(times: int) -> bytes:
    """Returns opcodes of a tuple that holds a tuple twice, and so on: 6 bytes per level, 2^times numbers in all."""
    return b"K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(times))


def _protocol0(value: Any) -> bytes:
    match value:
        case bool():
            return b"I01\n" if value else b"I00\n"
        case bytes():
            return b"S" + repr(value)[1:].encode() + b"\np1\n"
        case list():
            return b"(lp2\n" + b"".join(_protocol0(item) + b"a" for item in value)
        case np.ndarray():
            prefix = b"cnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntp5\nS'b'\np6\ntp7\nRp8\n"
            dtype = b"cnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
            shape = b"(I%d\ntp15\n" % len(value)
            return prefix + b"(I1\n" + shape + dtype + b"I00\n" + _protocol0(value.tobytes()) + b"tp16\nb"
    raise TypeError(value)


def _protocol2(value: Any) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value + b"q\x01"
        case list():
            return b"]q\x02(" + b"".join(map(_protocol2, value)) + b"e"
        case np.ndarray():
            prefix = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x07"
            dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            shape = b"M" + struct.pack("<H", len(value)) + b"\x85"
            return prefix + b"(K\x01" + shape + dtype + b"\x89" + _protocol2(value.tobytes()) + b"tb"
    raise TypeError(value)

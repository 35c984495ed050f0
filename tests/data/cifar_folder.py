"""Small CIFAR folders in torchvision's layout, with pickles as written by Python 2."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = {10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels")}
BATCHES[100] = ("cifar-100-python", ["train"], "test", "fine_labels")


def python2_pickle(value: Any) -> bytes:
    """Returns the Python 2 pickle (protocol 2) of str (bytes here), int, list, dict and NumPy arrays of bytes."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_opcodes(part) for item in value.items() for part in item) + b"u"
        case np.ndarray():
            prefix = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            shape = b"".join(map(_opcodes, value.shape)) + b"\x86"
            return prefix + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"
    raise TypeError(value)


def write_cifar(root: Path, classes: int, per_class: int, test_per_class: int = 1) -> dict[str, tuple]:
    """Writes both splits below `root`; returns {"train": (uint8 [N,32,32,3], labels), "test": ...} in file order.

    Images are coarse coloured patches, similar within a class.
    """
    folder, train, test, key = BATCHES[classes]
    (root / folder).mkdir(parents=True)
    random = np.random.default_rng(classes)
    base_C = random.integers(60, 196, (classes, 4, 4, 3))
    splits = {}
    for split, names, count in (("train", train, per_class), ("test", [test], test_per_class)):
        label_N = random.permutation(np.repeat(np.arange(classes), count))
        small_N = (base_C[label_N] + random.integers(-40, 41, (len(label_N), 4, 4, 3))).astype(np.uint8)
        image_N = small_N.repeat(8, axis=1).repeat(8, axis=2)
        splits[split] = image_N, label_N
        for name, part in zip(names, np.array_split(np.arange(len(label_N)), len(names)), strict=True):
            rows = np.ascontiguousarray(image_N[part].transpose(0, 3, 1, 2)).reshape(len(part), -1)
            values = {b"batch_label": name.encode(), key.encode(): label_N[part].tolist(), b"data": rows}
            (root / folder / name).write_bytes(python2_pickle(values))
    return splits

"""Verification pairs: pickles of Python 2 and 3 in all protocols, lists, and one-line errors."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from facelt.data import restricted_pickle
from facelt.data.decode import decode_image
from facelt.data.pairs import read_pairs
from facelt.errors import UserError
from tests.data.pair_pickles import doubled, python2_set

# All byte values, with quotes and line ends, and one image twice.
IMAGES = [bytes(range(256)), b"\xff\xd8'\n\\x00\"", b"three", b"four", b"three", b"six"]
ANSWERS = [True, False, True]


def assert_read(path, payload: bytes) -> None:
    path.write_bytes(payload)
    pairs = read_pairs(path)
    assert pairs.images == [*IMAGES[:4], b"six"]
    assert pairs.is_encoded
    assert pairs.first_U.tolist() == [0, 1, 2, 3, 5]
    assert pairs.left_P.tolist() == [0, 2, 2]
    assert pairs.right_P.tolist() == [1, 3, 4]
    assert pairs.same_P.tolist() == ANSWERS
    assert pairs.same_P.dtype == bool


def arrays() -> list[np.ndarray]:
    return [np.frombuffer(image, np.uint8) for image in IMAGES]


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("images", [IMAGES, arrays()], ids=["bytes", "arrays"])
def test_what_python_2_wrote_is_read(tmp_path, images, protocol):
    payload = python2_set(images, ANSWERS, protocol)
    images_read, answers = pickle.loads(payload, encoding="latin1")
    as_bytes = [image.encode("latin-1") if isinstance(image, str) else image.tobytes() for image in images_read]
    assert (as_bytes, answers) == (IMAGES, ANSWERS)
    assert_read(tmp_path / "lfw.bin", payload)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_3_wrote_is_read(tmp_path, protocol):
    for images in (IMAGES, arrays(), [bytearray_array(image) for image in IMAGES]):
        for answers in (ANSWERS, np.array(ANSWERS), list(np.array(ANSWERS)), [1, 0, 1]):
            for both in ((images, answers), [images, answers]):
                assert_read(tmp_path / "lfw.bin", pickle.dumps(both, protocol))


def bytearray_array(image: bytes) -> np.ndarray:
    """Returns a writable array, which protocol 5 stores as a bytearray."""
    return np.frombuffer(bytearray(image), np.uint8)


def test_the_shared_sets_are_read(real_data):
    folder = real_data / "verification"
    pairs = read_pairs(folder / "lfw600_bytes.bin")
    with np.load(folder / "lfw600_embeddings.npz") as archive:
        embedding_ND, same_P = archive["embeddings"], archive["issame"]
    assert pairs.same_P.tolist() == same_P.tolist()
    # Only equal images have equal embeddings there.
    rows = [row.tobytes() for row in embedding_ND]
    assert len(pairs.images) == len(set(rows)) == 1154
    assert [rows[index] for index in pairs.first_U[pairs.left_P]] == rows[0::2]
    assert [rows[index] for index in pairs.first_U[pairs.right_P]] == rows[1::2]
    few = read_pairs(folder / "lfw40_ndarray.bin")
    assert (len(few.images), len(few.same_P), int(few.same_P.sum())) == (79, 40, 23)
    for image in (pairs.images[0], pairs.images[-1], *few.images[:3]):
        assert decode_image(image).shape == (112, 112, 3)


class Runs:
    """Object whose pickle makes a folder when loaded."""

    def __init__(self, canary) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_no_set_makes_anything_run(tmp_path):
    path, canary = tmp_path / "lfw.bin", tmp_path / "canary"
    for index in (([Runs(canary), b"2"], [True]), ([b"1", b"2"], [Runs(canary)]), Runs(canary)):
        path.write_bytes(pickle.dumps(index))
        with pytest.raises(UserError, match=r"lfw\.bin: not a verification set \(posix\.mkdir is not allowed in a ver"):
            read_pairs(path)
        assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.is_dir(), "the file would have made the folder, had it been let"


GOOD = python2_set(IMAGES, ANSWERS, 2)
# An array before its state is set.
NO_VALUE = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00tR"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", r"not a verification set \(the file is truncated\)"),
        (b"no pickle", "not a verification set"),
        (GOOD[:-1], r"not a verification set \(the file is truncated\)"),
        (GOOD[:100], "not a verification set"),
        (GOOD[:-20], "not a verification set"),
        (pickle.dumps([IMAGES]), "not a verification set"),
        (pickle.dumps({"images": IMAGES, "answers": ANSWERS}), "not a verification set"),
        (pickle.dumps((3, [])), r"not a verification set \(expected a list of images and a list of labels\)"),
        (pickle.dumps((IMAGES[:5], ANSWERS)), "5 images for 3 pairs, expected two per pair"),
        (pickle.dumps((IMAGES, ANSWERS[:2])), "6 images for 2 pairs"),
        (pickle.dumps(([], [])), "contains no pair"),
        (pickle.dumps((["text", *IMAGES[1:]], ANSWERS)), "image 0 is not an encoded image"),
        (pickle.dumps(([*arrays()[:5], np.zeros((2, 2, 3), np.uint8)], ANSWERS)), "image 5 is not an encoded image"),
        (pickle.dumps(([np.ones(3, bool), *IMAGES[1:]], ANSWERS)), "image 0 is not an encoded image"),
        (pickle.dumps(([np.zeros(3), *IMAGES[1:]], ANSWERS)), "an array has the type 'f8', expected u1 or b1"),
        (pickle.dumps((IMAGES, [True, 2, True])), "pair 1 has the label 2, expected True or False"),
        (pickle.dumps((IMAGES, [True, False, "yes"])), "pair 2 has the label 'yes', expected True or False"),
        (pickle.dumps((IMAGES, [True, False, None])), "pair 2 has the label None, expected True or False"),
        (pickle.dumps((IMAGES, np.ones((3, 2), bool))), r"pair 0 has the label \[True, True\], expected True or False"),
        (pickle.dumps((IMAGES, np.array(True))), "expected a list of images and a list of labels"),
        (b"\x80\x03](C\x01aC\x01be" + NO_VALUE + b"\x86.", "2 images for 0 pairs"),
        (b"\x80\x03](C\x01aC\x01be](" + NO_VALUE + b"e\x86.", "pair 0 has the label <.*, expected True or False"),
    ],
)
def test_what_is_no_set_is_named_in_one_line(tmp_path, payload, reason):
    path = tmp_path / "lfw.bin"
    path.write_bytes(payload)
    with pytest.raises(UserError, match=rf"lfw\.bin: .*({reason})") as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nested", [doubled(60), b"]" * 50_000 + b"a" * 49_999], ids=["doubled", "deep"])
def test_what_is_endless_when_written_out_is_named_in_short(tmp_path, nested):
    # The value is one of the images, and the first label.
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x03](" + nested + b"q\xffe](h\xffe\x86.")
    with pytest.raises(UserError, match=r"lfw\.bin: pair 0 has the label [(\[]{7}.*, expected True or False") as caught:
        read_pairs(tmp_path / "lfw.bin")
    assert len(str(caught.value)) < 300


def one_array_many_times(images: int, size: int) -> bytes:
    """Returns a set of many arrays, each a separate object that refers to the same bytes: 5 bytes for an image."""
    function = b"cnumpy.core.numeric\n_frombuffer\nq\x01"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
    shape = b"(J" + struct.pack("<i", size) + b"t"
    arguments = b"(B" + struct.pack("<I", size) + bytes(size) + dtype + shape + b"U\x01Ctq\x02"
    array = b"h\x01h\x02R"
    return b"\x80\x03" + function + arguments + b"](" + array * images + b"e](" + b"\x88" * (images // 2) + b"e\x86."


def test_an_array_cannot_be_made_over_and_over(tmp_path):
    """400,000 references to an array of a megabyte would be 400 GB."""
    (tmp_path / "lfw.bin").write_bytes(one_array_many_times(100_000, 1 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"lfw\.bin: not a verification set \(it makes more bytes than the file has\)"):
        read_pairs(tmp_path / "lfw.bin")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    # The same opcodes with two arrays, small enough to be made twice from a file of that size.
    (tmp_path / "lfw.bin").write_bytes(one_array_many_times(2, 50))
    assert read_pairs(tmp_path / "lfw.bin").images == [bytes(50)]


@pytest.mark.parametrize("name", ["pairs.txt", "lfw.bin"])
def test_a_fifo_is_refused_without_waiting(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot .*read.* \(a named pipe, not a regular file\)"):
        read_pairs(tmp_path / name)


def test_a_missing_or_oversized_file_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"absent\.bin: cannot read the file \(No such file"):
        read_pairs(tmp_path / "absent.bin")
    (tmp_path / "large.bin").write_bytes(GOOD)
    monkeypatch.setattr(restricted_pickle, "MAX_FILE_BYTES", len(GOOD) - 1)
    with pytest.raises(UserError, match=r"large\.bin: cannot read the file \([\d,]+ bytes are more than the limit"):
        read_pairs(tmp_path / "large.bin")


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg a/2.jpg 1\na/1.jpg b/1.jpg 0\n",
        "a/1.jpg\ta/2.jpg\t1\r\na/1.jpg\tb/1.jpg\t0\r\n\r\n",
        "a/1.jpg   a/2.jpg 1\n  a/1.jpg b/1.jpg   0",
    ],
)
def test_a_list_of_paths(tmp_path, text):
    (tmp_path / "pairs.txt").write_bytes(text.encode())
    pairs = read_pairs(tmp_path / "pairs.txt")
    assert pairs.images == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert not pairs.is_encoded
    assert (pairs.left_P.tolist(), pairs.right_P.tolist(), pairs.same_P.tolist()) == ([0, 0], [1, 2], [True, False])


def test_paths_between_tabs_may_hold_spaces(tmp_path):
    (tmp_path / "pairs.txt").write_text("a b/1 2.jpg\tc d.jpg\t0\n")
    assert read_pairs(tmp_path / "pairs.txt").images == ["a b/1 2.jpg", "c d.jpg"]


@pytest.mark.parametrize("header", ["10\t300", "2"])
def test_lfws_own_list(tmp_path, header):
    lines = [header, "Abel_Pacheco\t1\t4", "Abdel_Madi_Shabneh\t1\tDean_Barker\t12"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    pairs = read_pairs(tmp_path / "pairs.txt")
    assert pairs.images == [
        "Abel_Pacheco/Abel_Pacheco_0001.jpg",
        "Abel_Pacheco/Abel_Pacheco_0004.jpg",
        "Abdel_Madi_Shabneh/Abdel_Madi_Shabneh_0001.jpg",
        "Dean_Barker/Dean_Barker_0012.jpg",
    ]
    assert pairs.same_P.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the list is empty"),
        ("10\t300\n", "the file contains no pair"),
        ("a b 1\n\nc d 0", "line 2 is empty"),
        ("a b 1\na b", "line 2: expected path path 1, or path path 0, found 'a b'"),
        ("a b 2", "line 1: expected path path 1"),
        ("a b 10", "line 1: expected path path 1"),
        ("a\t\t1", "line 1: expected path path 1"),
        ("a b c 1", "line 1: expected path path 1"),
        ("a /etc/passwd 1", "line 1: '/etc/passwd' leads out of the root folder"),
        ("a b 1\na ../b 1", r"line 2: '\.\./b' leads out of the root folder"),
        ("10 300\nName\t1", "line 2: expected name n m, or name n name m"),
        ("10 300\nName\t1\tx", "line 2: expected name n m"),
        ("10 300\nName 1 " + "9" * 5000, "line 2: expected name n m"),
        ("a b 1\na \0 1", "line 2: a NUL character"),
        ("10 300\nA 1 2\nA 1 .. 2", "line 3: '../.._0002.jpg' leads out of the root folder"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path, text, reason):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match=rf"pairs\.txt(:|,) {reason}"):
        read_pairs(tmp_path / "pairs.txt")

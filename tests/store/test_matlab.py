"""MATLAB files of version 5: read as scipy does, and refused in one line when sizes and dimensions disagree."""

import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import eye_array

from facelt.store.matlab import MAX_CONTENT_BYTES, read_matlab


def cells(*values: object) -> np.ndarray:
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


VARIABLES = {
    "names": cells("a.jpg", "a longer name.png", "Jos\u00e9", "c", ""),
    "mixed": cells("a", np.arange(3.0), 7),
    "none": np.empty((0, 0), dtype=object),
    "text": "plain",
    "double": np.array([[1.0, 2.5], [np.inf, -4.0]]),
    "small": np.arange(60.0)[:, None],
    **{dtype: np.array([[1, 2, 3]], dtype=dtype) for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4")},
}


def write(path, variables: dict[str, object], *, compressed: bool = False) -> bytes:
    savemat(path, variables, do_compression=compressed)
    return path.read_bytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_equal_those_that_scipy_reads(tmp_path, compressed):
    path = tmp_path / "a.mat"
    variables = read_matlab(write(path, VARIABLES, compressed=compressed))
    expected = {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    assert variables.keys() == expected.keys()
    for name, value in variables.items():
        plain = expected[name].ravel(order="F")
        if name not in ("names", "mixed"):
            np.testing.assert_array_equal(value, plain)
    assert variables["names"].tolist() == VARIABLES["names"][:, 0].tolist()
    text, numbers, number = variables["mixed"]
    assert (text, numbers.tolist(), number.tolist()) == ("a", [0, 1, 2], [7])
    assert variables["none"].dtype == object


def test_an_empty_cell_is_none():
    header = bytes(124) + b"\x00\x01IM"
    flags = tag(6, 8) + np.array([1, 0], "<u4").tobytes()
    dims, name = tag(5, 8) + np.array([1, 1], "<i4").tobytes(), tag(1, 0)
    content = flags + dims + name + tag(14, 0)
    assert read_matlab(header + tag(14, len(content)) + content)[""].tolist() == [None]


@pytest.mark.parametrize("dimensions", [0, 1, 33])
def test_the_number_of_dimensions_is_limited(dimensions):
    flags = tag(6, 8) + np.array([6, 0], "<u4").tobytes()
    dims = tag(5, 4 * dimensions) + bytes(-(-dimensions // 2) * 8)
    content = flags + dims + tag(1, 0) + tag(9, 0)
    with pytest.raises(ValueError, match=f"an array has {dimensions} dimensions, not 2 to 32"):
        read_matlab(bytes(124) + b"\x00\x01IM" + tag(14, len(content)) + content)


def tag(kind: int, size: int) -> bytes:
    return np.array([kind, size], "<u4").tobytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "something else than numbers, lines of text and cells of both"),
        (eye_array(3, format="csc"), "something else than numbers"),
        (np.array([[1j]]), "something else than numbers"),
        (np.array(["ab", "cd"]), "something else than numbers"),
        (cells(cells("a")), "something else than numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        read_matlab(write(tmp_path / "a.mat", {"value": value}))


def test_dimensions_that_claim_more_than_the_content_are_refused(tmp_path):
    content = write(tmp_path / "a.mat", {"names": cells("a.jpg", "b.jpg")})
    dims = np.array([2, 1], "<i4").tobytes()
    assert content.count(dims) == 1
    for claim in ([2**31 - 1, 1], [2**30, 2**30], [-1, 2], [1, 1]):
        with pytest.raises(ValueError, match="another number of values"):
            read_matlab(content.replace(dims, np.array(claim, "<i4").tobytes()))


def test_damaged_files_are_refused_in_one_line(tmp_path):
    content = write(tmp_path / "a.mat", VARIABLES)
    header = content[:128]
    bomb = zlib.compress(bytes(4 * MAX_CONTENT_BYTES))
    for damaged, message in (
        (b"", "its header is another"),
        (header[:124] + b"\x01\x00MI" + content[128:], "its header is another"),
        (content[:-8], "truncated"),
        (content[:140], "truncated"),
        (header + bytes(60), "something else than variables"),
        (header + tag(15, 8) + b"no  zlib", "incorrect header check"),
        (header + tag(15, len(bomb)) + bomb, "its variables have 4,194,304 bytes or more"),
        (header + tag(14, MAX_CONTENT_BYTES) + bytes(MAX_CONTENT_BYTES), "its variables have 4,194,304 bytes or more"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_matlab(damaged)
        assert "\n" not in str(error.value)

"""Bounded reading: regular files only, up to a size; JSON values in bounded depth and number."""

import os
import socket

import pytest

from recordio_tools.bounded_io import read_json, read_regular_file, read_utf8


def reason(path, limit=100) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011, the text is compared
        read_regular_file(path, limit)
    return caught.value.strerror


def test_a_regular_file_is_read_up_to_the_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(path)
    assert read_regular_file(path, 100) == read_regular_file(tmp_path / "link", 100) == b"x" * 100
    assert reason(path, 99) == "100 bytes are more than the limit of 99"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: no disk, and no memory either
    assert reason(path) == "1,099,511,627,776 bytes are more than the limit of 100"


def test_anything_else_is_refused_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    assert reason(tmp_path / "fifo") == "a named pipe, not a regular file"
    assert reason(tmp_path) == "a folder, not a regular file"
    assert reason("/dev/zero") == "a device, not a regular file"
    assert reason(tmp_path / "absent") == "No such file or directory"
    assert reason(f"{tmp_path}/a\0b") == "the name contains a NUL character"
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        server.bind("socket")
        assert reason(tmp_path / "socket") == "a socket, not a regular file"


def test_text_loses_its_mark_and_carriage_returns(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffå\r\nb\rc\n".encode())
    assert read_utf8(tmp_path / "text", 100) == "å\nb\nc\n"
    (tmp_path / "text").write_bytes(b"a\nb\xff")
    with pytest.raises(ValueError, match=r"^line 2 is not UTF-8 text \(byte 3\)$"):
        read_utf8(tmp_path / "text", 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value"),
        ("{", "not JSON: "),
        ("[NaN]", "not JSON: NaN is not a JSON number"),
        ("-Infinity", "not JSON: -Infinity is not a JSON number"),
        ("[" * 100_000, "its objects and lists are nested too deeply"),
        ('{"a":' * 100_000, "its objects and lists are nested too deeply"),
        ("9" * 5000, "not JSON: an integer has too many digits"),
        ("[[]" + ",[]" * (1 << 20) + "]", "it has more than 1,048,576 objects and lists"),
        ("\x00", "not JSON: "),
    ],
)
def test_malformed_json_is_one_line(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="^" + message) as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_json_values(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, null, true], "é": {}}')
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, True], "é": {}}

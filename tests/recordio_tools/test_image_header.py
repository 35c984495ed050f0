"""Image size from the header of an encoded image."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from recordio_tools.errors import RecordIOError
from recordio_tools.image_header import decode, decode_whole, image_format, image_size


@pytest.mark.parametrize(
    ("suffix", "options", "kind"),
    [
        (".jpg", [], "jpeg"),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2], "jpeg"),
        (".png", [], "png"),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80], "webp"),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101], "webp"),
        (".bmp", [], "bmp"),
    ],
)
def test_format_and_size_from_the_header(suffix, options, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 91, 3), dtype=np.uint8)
    payload = cv2.imencode(suffix, pixels, options)[1].tobytes()
    assert image_format(payload) == kind
    assert image_size(memoryview(payload)) == (37, 91)
    assert decode(payload).shape == (37, 91, 3)
    for cut in (0, 3, 12, 20):
        with pytest.raises(RecordIOError):
            decode(payload[:cut])


def test_transparent_webp_has_its_size_too():
    payload = cv2.imencode(".webp", np.full((5, 300, 4), 77, np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 70])[1].tobytes()
    assert image_size(payload) == (5, 300)


def test_nothing_is_decoded_past_the_limit(encode):
    assert decode(encode(0), max_pixels=256).shape == (16, 16, 3)
    with pytest.raises(RecordIOError, match="16 x 16 pixels, above the limit of 255"):
        decode(encode(0), max_pixels=255)
    bomb = bytearray(encode(0, suffix=".png"))
    bomb[16:24] = b"\xff\xff\xff\x00" * 2
    with pytest.raises(RecordIOError, match="above the limit"):
        decode(bytes(bomb))


def test_a_jpeg_without_its_end_is_refused(encode):
    payload = encode(0)
    assert decode_whole(payload + bytes(7)).shape == (16, 16, 3)
    with pytest.raises(RecordIOError, match="cut short"):
        decode_whole(payload[:-2])
    broken = payload[:2] + b"\x00" + payload[3:]
    with pytest.raises(RecordIOError):
        decode(broken)


PNG_CHUNKS = (b"IDAT", b"tEXt", b"fdAT", b"PLTE", b"IEND", b"\x1b[1m")


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 5])
@pytest.mark.parametrize("kind", PNG_CHUNKS)
def test_a_png_chunk_longer_than_the_image_never_reaches_the_decoder(encode, monkeypatch, kind, length):
    """OpenCV allocates the length that the chunk states: 4 GB for an image of 49 bytes."""
    image = encode(0, suffix=".png")
    bomb = image[:33] + struct.pack(">I4s", length, kind) + bytes(8)
    monkeypatch.setattr(cv2, "imdecode", None)
    for read in (image_size, decode, decode_whole):
        with pytest.raises(RecordIOError) as caught:
            read(memoryview(bomb))
        assert str(caught.value) == f"a png image that is cut short: a chunk of {length} bytes, 4 are left"


def test_every_cut_of_a_png_is_refused_and_bytes_after_its_end_are_not(encode):
    image = encode(0, suffix=".png")
    assert decode(image + b"after the end").shape == (16, 16, 3)
    for end in range(len(image)):
        with pytest.raises(RecordIOError):
            decode(image[:end])


def test_a_png_of_many_chunks_is_read(encode):
    image = encode(0, suffix=".png")
    text = b"tEXtkey\0value"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    assert image_size(image[:33] + chunk * 1000 + image[33:]) == (16, 16)
    np.testing.assert_array_equal(decode(image[:33] + chunk * 9 + image[33:]), decode(image))

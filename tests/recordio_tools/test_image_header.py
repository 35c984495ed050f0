"""Image size from the header of an encoded image."""

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

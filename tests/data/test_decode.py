"""Decoding: header sizes against OpenCV, pixels against the encoder, and unusable bytes of every kind."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facelt.data import decode as decode_module
from facelt.data.decode import BadImageError, decode_image
from recordio_tools.image_header import image_size

SUFFIXES = (".jpg", ".png", ".webp", ".bmp")


def save(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), suffix=st.sampled_from(SUFFIXES))
def test_size_is_that_of_the_decoded_image(encode, height, width, suffix):
    payload = encode(height, width, suffix=suffix)
    assert image_size(payload) == (height, width)
    assert image_size(memoryview(payload)) == (height, width)
    assert decode_image(payload).shape == (height, width, 3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("JPEG", {"comment": b"\xff\xc0 a frame marker inside a comment"}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": False}),
        ("WEBP", {"exif": b"Exif\x00\x00"}),  # the extended header
    ],
)
def test_size_in_the_variants_of_a_format(kind, options):
    payload = save(Image.new("RGB", (37, 21), (200, 30, 90)), kind, **options)
    assert image_size(payload) == (21, 37)
    assert decode_image(payload).shape == (21, 37, 3)


def test_pixels_are_rgb_and_exact_for_a_lossless_format():
    image_HW3 = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = decode_image(save(Image.fromarray(image_HW3), "PNG"))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image_HW3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_other_channels_become_three(mode):
    grey = Image.fromarray(np.full((4, 6), 77, np.uint8))
    image = Image.fromarray(np.full((4, 6), 77 << 8, np.uint16)) if mode == "I;16" else grey.convert(mode)
    np.testing.assert_array_equal(decode_image(save(image, "PNG")), np.full((4, 6, 3), 77, np.uint8))


def test_exif_orientation_turns_the_image_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    payload = save(Image.new("RGB", (30, 20)), "JPEG", exif=exif)
    assert image_size(payload) == (20, 30)
    assert decode_image(payload).shape == (30, 20, 3)


def giant(suffix: str, encode) -> bytes:
    """Returns a small file with a header of 60,000 x 60,000 (WebP: 16,384 x 16,384) pixels."""
    payload = bytearray(encode(8, 8, suffix=suffix))
    if suffix == ".jpg":
        position = payload.index(b"\xff\xc0") + 5
        payload[position : position + 4] = (60000).to_bytes(2, "big") * 2
    elif suffix == ".png":
        payload[16:24] = (60000).to_bytes(4, "big") * 2
    elif suffix == ".bmp":
        payload[18:26] = (60000).to_bytes(4, "little") * 2
    else:
        payload[21:25] = (2**28 - 1).to_bytes(4, "little")
    return bytes(payload)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_giant_never_reaches_the_decoder(monkeypatch, encode, suffix):
    monkeypatch.setattr(decode_module.cv2, "imdecode", lambda *_: pytest.fail("the decoder saw it"))
    with pytest.raises(BadImageError, match=r"^(16384 x 16384|60000 x 60000) pixels"):
        decode_image(giant(suffix, encode))


def test_a_png_with_a_chunk_of_4_gb_never_reaches_the_decoder(monkeypatch, encode):
    monkeypatch.setattr(decode_module.cv2, "imdecode", lambda *_: pytest.fail("the decoder saw it"))
    with pytest.raises(BadImageError, match="cut short: a chunk of 4294967295 bytes, 20 are left"):
        decode_image(encode(16, 16, suffix=".png")[:33] + b"\xff\xff\xff\xffIDAT" + bytes(24))


def test_the_limit_itself_is_allowed(encode):
    assert decode_image(encode(10, 12), max_pixels=120).shape == (10, 12, 3)
    with pytest.raises(BadImageError, match="10 x 12 pixels, above the limit of 119"):
        decode_image(encode(10, 12), max_pixels=119)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "empty, not an image"),
        (b"text", "not a JPEG"),
        (b"\xff\xd8", "not a JPEG"),
        (b"\xff\xd8\xff", "a jpeg image with a damaged header"),
        (b"BM", "a bmp image with a damaged header"),
        (b"RIFF0000WEBPVP8 ", "a webp image with a damaged header"),
        (b"GIF89a" * 9, "not a JPEG"),
    ],
)
def test_what_is_no_image_is_refused(payload, message):
    with pytest.raises(BadImageError, match=message):
        decode_image(payload)


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from(SUFFIXES), share=st.floats(0, 0.999))
def test_a_cut_image_is_refused(encode, suffix, share):
    payload = encode(24, 24, suffix=suffix)
    with pytest.raises(BadImageError):
        decode_image(payload[: int(len(payload) * share)])


@settings(max_examples=100, deadline=None)
@given(suffix=st.sampled_from(SUFFIXES), position=st.floats(0, 0.999), value=st.integers(0, 255))
def test_damage_gives_an_image_within_the_limit_or_a_reason(encode, suffix, position, value):
    payload = bytearray(encode(24, 24, suffix=suffix))
    payload[int(len(payload) * position)] = value
    with contextlib.suppress(BadImageError):  # no other exception may come out
        assert decode_image(bytes(payload), max_pixels=10_000).size <= 30_000


def test_the_decoder_is_opencv_on_the_same_bytes(encode):
    payload = encode(33, 41, suffix=".jpg")
    expected = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode_image(memoryview(payload)), expected)

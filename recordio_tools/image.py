"""Encoded images: their format and size from the first bytes, and decoding that never exceeds a pixel limit."""

import struct

import numpy as np

from recordio_tools.errors import RecordIOError

MAX_PIXELS = 1 << 25  # 33.5 million: a whole photograph; an aligned face has 12,544
JPEG_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
JPEG_END = b"\xff\xd9"
JPEG_TAIL = 1024  # cameras may leave some bytes behind the end marker
EXTENSIONS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp"}


def image_format(payload: bytes | memoryview) -> str | None:
    """jpeg, png, webp, bmp or None, from the first bytes."""
    head = bytes(payload[:16])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    return "bmp" if head.startswith(b"BM") else None


def image_size(payload: bytes | memoryview) -> tuple[int, int]:
    """(height, width) that an encoded image announces. Raises RecordIOError for an unknown format or a broken head."""
    kind = image_format(payload)
    if kind is None:
        raise RecordIOError("no JPEG, PNG, WebP or BMP image" if len(payload) else "no image: the payload is empty")
    try:
        height, width = {"jpeg": _jpeg, "png": _png, "webp": _webp, "bmp": _bmp}[kind](payload)
    except (struct.error, IndexError):
        raise RecordIOError(f"a {kind} image that ends inside its head") from None
    if height <= 0 or width <= 0:
        raise RecordIOError(f"a {kind} image of {height} x {width} pixels")
    return height, width


def _jpeg(payload: bytes | memoryview) -> tuple[int, int]:
    place = 2
    while True:
        if payload[place] != 0xFF:
            raise RecordIOError("a jpeg image whose head is broken")
        marker = payload[place + 1]
        if marker == 0xFF or marker in JPEG_WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
        elif marker in JPEG_START_OF_FRAME:
            return struct.unpack_from(">HH", payload, place + 5)
        else:
            place += 2 + struct.unpack_from(">H", payload, place + 2)[0]


def _png(payload: bytes | memoryview) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", payload, 16)
    return height, width


def _webp(payload: bytes | memoryview) -> tuple[int, int]:
    kind = bytes(payload[12:16])
    if kind == b"VP8X":
        low = struct.unpack_from("<HBHB", payload, 24)
        return 1 + low[2] + (low[3] << 16), 1 + low[0] + (low[1] << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", payload, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", payload, 26)
    return height & 0x3FFF, width & 0x3FFF


def _bmp(payload: bytes | memoryview) -> tuple[int, int]:
    width, height = struct.unpack_from("<ii", payload, 18)
    return abs(height), width


def decode(payload: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 [height, width, 3], BGR. Raises RecordIOError for what is no image, is broken, or exceeds `max_pixels`."""
    import cv2

    height, width = image_size(payload)
    if height * width > max_pixels:
        raise RecordIOError(f"an image of {height} x {width} pixels, above the limit of {max_pixels}")
    try:
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise RecordIOError(f"a {image_format(payload)} image that cannot be decoded")
    return image


def decode_whole(payload: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `decode`; a JPEG without its end marker is an error too, which some decoders fill in with grey."""
    image_size(payload)
    if image_format(payload) == "jpeg" and JPEG_END not in bytes(payload[-JPEG_TAIL:]):
        raise RecordIOError("a jpeg image that is cut short")
    return decode(payload, max_pixels)

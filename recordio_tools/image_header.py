"""Header check of encoded images: format and size of JPEG, PNG, WebP and BMP; decoding below a pixel limit.

OpenCV reads its own pixel limit from the environment once, when it is loaded, and the default is 2^30. Sizes are
therefore checked here before OpenCV sees the bytes. It also allocates what the length of a PNG chunk states, up to
4 GB, before it reads the chunk; the segments and chunks of the other formats it reads without doing so.
"""

import struct
from typing import TYPE_CHECKING

from recordio_tools.errors import RecordIOError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MAX_PIXELS = 50_000_000  # above any photograph of the supported sets; 150 MB decoded
EXTENSIONS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp"}
# Start-of-frame markers of JPEG: 0xC0..0xCF without DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_unpack_chunk = struct.Struct(">I4s").unpack_from  # length and type of a PNG chunk
_JPEG_END = b"\xff\xd9"
_JPEG_TAIL = 1024  # cameras may leave some bytes after the end marker


def image_format(payload: bytes | memoryview) -> str | None:
    """Returns jpeg, png, webp, bmp or None, from the first bytes."""
    head = bytes(payload[:16])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    return "bmp" if head.startswith(b"BM") else None


def image_size(payload: bytes | memoryview) -> tuple[int, int]:
    """Returns (height, width) from the header.

    Raises RecordIOError for another format, a damaged header, or a PNG with a chunk longer than the rest of the image.
    """
    kind = image_format(payload)
    if kind is None:
        raise RecordIOError("not a JPEG, PNG, WebP or BMP image" if len(payload) else "empty, not an image")
    try:
        height, width = _SIZES[kind](payload if kind in ("jpeg", "png") else bytes(payload[:32]))
    except RecordIOError:
        raise
    except (struct.error, IndexError, ValueError):
        raise RecordIOError(f"a {kind} image with a damaged header") from None
    if not (height and width):
        raise RecordIOError(f"a {kind} image of {height} x {width} pixels")
    return height, width


def decode(payload: bytes | memoryview, max_pixels: int = DEFAULT_MAX_PIXELS) -> "np.ndarray":
    """Returns uint8 [height, width, 3], BGR. Raises RecordIOError: no image, damaged, or more than `max_pixels`."""
    import cv2
    import numpy as np

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


def decode_whole(payload: bytes | memoryview, max_pixels: int = DEFAULT_MAX_PIXELS) -> "np.ndarray":
    """Decodes like `decode`, but refuses a JPEG without its end marker, which some decoders fill in with grey."""
    image_size(payload)
    if image_format(payload) == "jpeg" and _JPEG_END not in bytes(payload[-_JPEG_TAIL:]):
        raise RecordIOError("a jpeg image that is cut short")
    return decode(payload, max_pixels)


def _jpeg_size(payload: bytes | memoryview) -> tuple[int, int]:
    """Walks the segments to the frame header (ITU-T T.81, B.1 and B.2.2)."""
    offset = 2
    while True:
        if payload[offset] != 0xFF:
            raise ValueError("no marker")
        marker = payload[offset + 1]
        if marker == 0xFF:  # fill byte before a marker
            offset += 1
        elif marker in _JPEG_FRAMES:
            return struct.unpack_from(">HH", payload, offset + 5)
        elif 0xD0 <= marker <= 0xDA or marker <= 0x01:  # no such segment precedes the frame header
            raise ValueError("no frame header")
        else:
            offset += 2 + struct.unpack_from(">H", payload, offset + 2)[0]


def _png_size(payload: bytes | memoryview) -> tuple[int, int]:
    """Reads the first chunk and checks the length of every chunk (PNG specification, 5.3 and 11.2.1)."""
    if payload[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height = struct.unpack_from(">II", payload, 16)
    offset, end, kind = 8, len(payload), b""
    while offset < end and kind != b"IEND":
        left = end - offset - 12  # without length, type and checksum
        if left < 0:
            raise RecordIOError("a png image that is cut short")
        length, kind = _unpack_chunk(payload, offset)
        if length > left:
            raise RecordIOError(f"a png image that is cut short: a chunk of {length} bytes, {left} are left")
        offset += 12 + length
    return height, width


def _webp_size(head: bytes) -> tuple[int, int]:
    """Reads the header of any of the three kinds (WebP container specification; RFC 6386, 9.1; lossless, 3.4)."""
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if kind == b"VP8L" and head[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", head, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return height & 0x3FFF, width & 0x3FFF
    raise ValueError("no WebP header")


def _bmp_size(head: bytes) -> tuple[int, int]:
    """Reads either header of a bitmap; a negative height means rows from the top."""
    is_core = struct.unpack_from("<I", head, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if is_core else "<ii", head, 18)
    return abs(height), abs(width)


_SIZES = {"jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size, "bmp": _bmp_size}

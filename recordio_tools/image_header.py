"""Encoded images: their format and size from the first bytes, and decoding that never exceeds a pixel limit.

Height and width of an encoded image from its header alone, without decoding.

OpenCV's own pixel limit is read once from the environment when the library is loaded and its default is 2^30 pixels,
so a limit of ours has to be checked before OpenCV sees the bytes. Only the still formats below are let through.

Whether an encoded image moves, from its chunks alone: which frame counts would be a guess then.

Images of formats that are not read, told by their first bytes, so that their owners hear which they are.
"""

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


# Start-of-frame markers of JPEG: 0xC0..0xCF without DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image_size(payload: bytes | memoryview) -> tuple[int, int] | None:
    """(height, width) of a JPEG, PNG, WebP or BMP image; None where the header is none of these or is damaged."""
    head = bytes(payload[:32])
    try:
        if head.startswith(b"\xff\xd8"):
            return _jpeg_size(payload)
        if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", head, 16)
            return height, width
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _webp_size(head)
        if head.startswith(b"BM"):
            return _bmp_size(head)
    except (struct.error, IndexError):
        pass
    return None


def _jpeg_size(payload: bytes | memoryview) -> tuple[int, int] | None:
    """Walk the segments to the frame header (ITU-T T.81, B.1 and B.2.2)."""
    offset = 2
    while True:
        if payload[offset] != 0xFF:
            return None
        marker = payload[offset + 1]
        if marker == 0xFF:  # fill byte before a marker
            offset += 1
            continue
        if marker in _JPEG_FRAMES:
            return struct.unpack_from(">HH", payload, offset + 5)
        if 0xD0 <= marker <= 0xDA or marker <= 0x01:  # no segment of this kind comes before the frame header
            return None
        offset += 2 + struct.unpack_from(">H", payload, offset + 2)[0]


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """The three headers of a WebP file (WebP container specification; RFC 6386, 9.1; lossless bitstream, 3.4)."""
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = struct.unpack_from("<I", head, 21)[0]
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None


def _bmp_size(head: bytes) -> tuple[int, int] | None:
    """Either header of a bitmap; a negative height means rows from the top."""
    if struct.unpack_from("<I", head, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", head, 18)
    else:
        width, height = struct.unpack_from("<ii", head, 18)
    return abs(height), abs(width)


GIF_START = (b"GIF87a", b"GIF89a")


def is_animated(payload: bytes) -> bool:
    """True for a PNG, WebP or GIF of several frames; False for any other bytes, whole or not."""
    try:
        if payload.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_moves(payload)
        if payload.startswith(b"RIFF") and payload[8:16] == b"WEBPVP8X":
            return bool(payload[20] & 0x02)  # the container's animation flag
        if payload.startswith(GIF_START):
            return _gif_frames(payload) > 1
    except (struct.error, IndexError):
        pass
    return False


def _png_moves(payload: bytes) -> bool:
    """acTL, which makes it an animated PNG, must come before the first IDAT."""
    place = 8
    while True:
        length, kind = struct.unpack_from(">I4s", payload, place)
        if kind in (b"acTL", b"IDAT", b"IEND"):
            return kind == b"acTL"
        place += 12 + length


def _gif_frames(payload: bytes) -> int:
    """Image descriptors, at most two (GIF89a specification, 18 to 27)."""
    place, frames = 13 + _table_bytes(payload[10]), 0
    while frames < 2 and payload[place] in b"!,":
        if payload[place] == ord(","):
            frames += 1
            place += 11 + _table_bytes(payload[place + 9])
        else:
            place += 2
        while payload[place]:  # sub-blocks, up to the empty one
            place += 1 + payload[place]
        place += 1
    return frames


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


_STARTS = {
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
# Major brands: ISO/IEC 23008-12, 10.2 and B.4, where mif1 leaves the codec open; AVIF specification, 6.
_BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC")
_BRANDS |= {b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}


def other_format(payload: bytes) -> str | None:
    """The format's name; None for those that are read and for what is no image."""
    if payload[4:8] == b"ftyp":
        return _BRANDS.get(payload[8:12])
    return next((name for start, name in _STARTS.items() if payload.startswith(start)), None)

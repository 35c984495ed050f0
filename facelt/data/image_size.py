"""Height and width of an encoded image from its header alone, without decoding.

OpenCV's own pixel limit is read once from the environment when the library is loaded and its default is 2^30 pixels,
so a limit of ours has to be checked before OpenCV sees the bytes. Only the still formats below are let through.
"""

import struct

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

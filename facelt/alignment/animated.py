"""Whether an encoded image moves, from its chunks alone: which frame counts would be a guess then."""

import struct

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

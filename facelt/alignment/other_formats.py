"""Images of formats that are not read, told by their first bytes, so that their owners hear which they are."""

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

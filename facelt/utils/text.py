"""Text sanitizing: names from data made safe for terminals, XML and HTML."""

import unicodedata

_HIDDEN = ("Cc", "Cs", "Cn", "Co")  # control, surrogate, unassigned, private
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def sanitize(text: str) -> str:
    """Returns `text` with each control character, directional override and non-character replaced by U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if letter in _BIDI_CONTROLS or unicodedata.category(letter) in _HIDDEN else letter for letter in text
    )


def shorten(text: str, length: int = 26) -> str:
    """Returns sanitized `text`, cut to `length` characters with an ellipsis."""
    text = sanitize(text)
    return text if len(text) <= length else text[: length - 1] + "…"

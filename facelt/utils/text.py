"""Names from data as they may be shown: nothing invisible that steers a terminal, breaks XML or turns text around."""

import unicodedata

_HIDDEN = ("Cc", "Cs", "Cn", "Co")  # control, surrogate, unassigned, private
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # directional embedding and override


def visible(text: str) -> str:
    """`text` with each control character, directional override and non-character shown as U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if letter in _TURNING or unicodedata.category(letter) in _HIDDEN else letter for letter in text
    )


def short(text: str, length: int = 26) -> str:
    """`visible(text)`, cut to `length` with an ellipsis, for places without room; the tables have it whole."""
    text = visible(text)
    return text if len(text) <= length else text[: length - 1] + "…"

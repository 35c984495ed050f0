"""Exceptions whose message is one line for the user; sanitizing of names from data for terminals."""

import unicodedata

_HIDDEN = ("Cc", "Cs", "Cn", "Co")  # control, surrogate, unassigned, private
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class UserError(Exception):
    """Wrong or unusable input: a file, a key, a value or a record.

    The message is one line that names it and the remedy. Commands print it and exit with code 1.
    """


class RecordIOError(UserError, ValueError):
    """A record file, list or table that cannot be read as what it should be."""


def sanitize(text: str) -> str:
    """Returns `text` with each control character, directional override and non-character replaced by U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if letter in _BIDI_CONTROLS or unicodedata.category(letter) in _HIDDEN else letter for letter in text
    )

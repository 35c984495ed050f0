"""Text of names from data, made safe for terminals, XML and HTML (`sanitize`) and short enough for tables."""

from recordio_tools.errors import sanitize


def shorten(text: str, length: int = 26) -> str:
    """Returns sanitized `text`, cut to `length` characters with an ellipsis."""
    text = sanitize(text)
    return text if len(text) <= length else text[: length - 1] + "…"

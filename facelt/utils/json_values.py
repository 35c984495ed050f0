"""A report as plain JSON values, so that the page is drawn from exactly what the file holds."""

import json
import math
from pathlib import Path

import numpy as np


def plain(value: object, where: str = "report") -> object:
    """`value` with numpy scalars, arrays, tuples and paths turned into JSON's own kinds; NaN and infinity into None.

    Raises:
        TypeError: a kind of value that JSON cannot hold, with its place.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        # A file name of broken bytes arrives with lone surrogates, which no UTF-8 file can hold.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {plain(str(key)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} holds a {type(value).__name__}, which JSON cannot hold")


def json_text(report: dict) -> str:
    """The report as indented JSON; keys keep their order, so that equal reports are equal files."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(report: dict) -> str:
    """The report as JSON in a single line."""
    return json.dumps(plain(report), ensure_ascii=False, allow_nan=False)

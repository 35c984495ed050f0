"""Conversion of reports to JSON values and text."""

import json
import math
from pathlib import Path

import numpy as np


def to_json_values(value: object, where: str = "report") -> object:
    """Returns `value` with numpy scalars, arrays, tuples and paths as JSON types; NaN and infinity become None.

    Raises TypeError naming the place, which begins with `where`, of a value that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return to_json_values(value.tolist(), where)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {to_json_values(str(key)): to_json_values(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} holds a {type(value).__name__}, which JSON cannot hold")


def json_text(report: dict) -> str:
    """Returns a report as indented JSON; keys keep their order."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(report: dict) -> str:
    """Returns a report as JSON in one line."""
    return json.dumps(to_json_values(report), ensure_ascii=False, allow_nan=False)

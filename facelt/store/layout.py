"""What lies in an embedding store's folder, and the two text files every reader and writer agrees on.

    <kind>.npy         float16 or float32 [N,D], one for each kind the store holds
    reachability.npy   float32 [N], where the model has a memory
    items.csv          key, identity and any attribute columns, one line an image
    meta.json          schema, rows, kinds with their dimensions, dtype, and what the writer adds (model hash,
                       preprocessing)

N images, D feature.
"""

import csv
import gc
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facelt.errors import UserError

SCHEMA = "facelt.store/1"
KINDS = ("direct", "meta", "meta_unit")
# Kinds whose rows have length one; `meta` is shorter than one on purpose, so that familiarity counts.
UNIT_KINDS = frozenset({"direct", "meta_unit"})
# float16 rows of length one are off by at most 1e-3; more than this is no unit vector.
UNIT_TOLERANCE = 0.01
DTYPES = ("float16", "float32")
RESERVED_META = frozenset({"schema", "rows", "kinds", "dtype", "reachability"})

ITEMS = "items.csv"
META = "meta.json"
REACHABILITY = "reachability.npy"

Columns = dict[str, list[str]]


def items_text(keys: Sequence[str], identities: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> str:
    """The text of items.csv; the same items always give the same bytes, so that they can be fingerprinted.

    Raises UserError on an empty or repeated key, ValueError on columns of unequal length or a reserved column name.
    """
    for name, column in {"identity": identities, **attributes}.items():
        if len(column) != len(keys):
            raise ValueError(f"column {name!r} has {len(column)} values for {len(keys)} keys")
    if clash := {"key", "identity"} & set(attributes):
        raise ValueError(f"attribute columns may not be called {sorted(clash)}")
    check_keys(keys, "the list of images")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "identity", *attributes])
    writer.writerows(zip(keys, identities, *attributes.values(), strict=True))
    return text.getvalue()


def check_keys(keys: Sequence[str], where: str) -> None:
    """Raise UserError, naming `where` and the key, unless all keys are distinct and non-empty."""
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        repeated = next(key for key in keys if key in seen or seen.add(key))
        raise UserError(f"{where}: the key {repeated!r} occurs more than once; every image needs its own key")
    if "" in keys:
        raise UserError(f"{where}: entry {keys.index('')} has an empty key")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A million lines become as many small lists, which the collector would go through again and again for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_collector_paused()
def read_items(path: Path) -> Columns:
    """The columns of items.csv by name, `key` and `identity` first. Raises UserError naming the file and the line."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, None)
            if not header or header[:2] != ["key", "identity"] or len(set(header)) != len(header):
                raise UserError(f"{path}: the first line must name the columns key, identity and distinct attributes")
            rows = list(lines)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a store needs it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a CSV file in UTF-8 ({error})") from error
    ragged = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if ragged is not None:
        raise UserError(f"{path}: line {ragged} has {len(rows[ragged - 2])} fields, the header has {len(header)}")
    key_N, *columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    # Identities and attributes repeat: one text each, however many images have it.
    table = dict(zip(header, [list(key_N), *map(_shared, columns)], strict=True))
    check_keys(table["key"], str(path))
    return table


def _shared(text_N: Sequence[str]) -> list[str]:
    seen: dict[str, str] = {}
    return list(map(seen.setdefault, text_N, text_N))


def meta_text(rows: int, kinds: Mapping[str, int], dtype: str, reachability: bool, meta: Mapping[str, Any]) -> str:
    """The text of meta.json, keys sorted. Raises ValueError on an unknown kind or dtype or a reserved key in `meta`."""
    if not kinds or set(kinds) - set(KINDS) or any(dimension < 1 for dimension in kinds.values()):
        raise ValueError(f"kinds must map some of {KINDS} to a dimension, not {dict(kinds)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, not {dtype!r}")
    if clash := RESERVED_META & set(meta):
        raise ValueError(f"meta may not set {sorted(clash)}: the store sets them")
    own = {"schema": SCHEMA, "rows": rows, "kinds": dict(kinds), "dtype": dtype, "reachability": reachability}
    return json.dumps({**meta, **own}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json as a dict, its own part checked. Raises UserError naming the file and the key."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); a store needs it") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        found = meta.get("schema") if isinstance(meta, dict) else meta
        raise UserError(f"{path}: schema is {found!r}, this version reads {SCHEMA!r}")
    kinds = meta.get("kinds")
    if not isinstance(kinds, dict) or not kinds or set(kinds) - set(KINDS):
        raise UserError(f"{path}: kinds is {kinds!r}; it must map some of {', '.join(KINDS)} to a dimension")
    counts = {"rows": meta.get("rows"), **{f"kinds.{kind}": dimension for kind, dimension in kinds.items()}}
    for key, value in counts.items():
        if type(value) is not int or value < (0 if key == "rows" else 1):
            raise UserError(f"{path}: {key} is {value!r}; it must be a whole number")
    if type(meta.get("reachability")) is not bool:
        raise UserError(f"{path}: reachability is {meta.get('reachability')!r}; it must be true or false")
    return meta

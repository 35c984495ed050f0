"""Result files as MegaFace's development kit names and writes them: cmc_facescrub_megaface_ALGORITHM_SIZE_SET.json.

A file is an object; `cmc` holds two lists, ranks counted from 0 and the rate within each rank, and `roc` false and true
positive rates. K ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from facelt.errors import UserError
from facelt.whole_files import write_text


@dataclass(frozen=True)
class Curve:
    """Rates within each rank; `ranks` begin at 1 for the best answer."""

    ranks: list[int]
    rates: list[float]


def cmc_path(folder: Path, algorithm: str, size: int, number: int) -> Path:
    """Where the result of `algorithm` among `size` distractors, set `number`, lies; odd signs of its name as %XX."""
    return folder / f"cmc_facescrub_megaface_{quote(algorithm, safe='')}_{size}_{number}.json"


def write_cmc(path: Path, rate_K: Sequence[float]) -> None:
    """Write rates within ranks 1..K. Raises UserError where the disk refuses."""
    content = {"cmc": [list(range(len(rate_K))), [float(rate) for rate in rate_K]]}
    write_text(path, json.dumps(content, allow_nan=False))


def read_cmc(path: Path) -> Curve:
    """The CMC of a result file, the kit's own or one of `write_cmc`. Raises UserError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    cmc = content.get("cmc") if isinstance(content, dict) else None
    if not isinstance(cmc, list) or len(cmc) != 2 or not all(isinstance(part, list) and part for part in cmc):
        raise UserError(f'{path}: must hold an object with "cmc": [[rank, ...], [rate, ...]]')
    ranks, rates = cmc
    numbers = all(type(value) in (int, float) for value in (*ranks, *rates))
    if not numbers or len(ranks) != len(rates) or ranks != list(range(len(ranks))):
        raise UserError(f"{path}: cmc must give a rate for each of the ranks 0, 1, 2, ...")
    if not all(0 <= rate <= 1 for rate in rates) or rates != sorted(rates):
        raise UserError(f"{path}: cmc's rates must rise within 0 and 1")
    return Curve([int(rank) + 1 for rank in ranks], [float(rate) for rate in rates])

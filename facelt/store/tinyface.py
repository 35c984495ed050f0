"""TinyFace's lists (Cheng, Zhu and Gong, ACCV 2018): the images of probes and gallery with their identities.

    probe_img_ID_pairs.mat            probe_set, names; probe_ids
    gallery_match_img_ID_pairs.mat    gallery_set, names; gallery_ids
    Probe/, Gallery_Match/, Gallery_Distractor/   the images; any image of the last folder is a distractor

Both lists are MATLAB files of version 5. N images, P probes, G images of the gallery, distractors last.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facelt.errors import UserError
from facelt.store.matlab import read_matlab
from recordio_tools.bounded_io import read_regular_file
from recordio_tools.lists import IMAGE_SUFFIXES

PROBE_FOLDER, MATCH_FOLDER, DISTRACTOR_FOLDER = "Probe", "Gallery_Match", "Gallery_Distractor"
DISTRACTOR = -1
"""Identity of a distractor."""
_LISTS = {
    PROBE_FOLDER: ("probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
    MATCH_FOLDER: ("gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
}
_MAX_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class TinyfaceLists:
    """Listed images: keys `Probe/NAME` and `Gallery_Match/NAME`, [N], with their identities; the probes come first."""

    folder: Path
    keys: list[str]
    identity_N: np.ndarray
    probes: int

    @classmethod
    def read(cls, root: Path) -> "TinyfaceLists":
        """Reads both lists in `root` or in its folder Testing_Set.

        Raises UserError naming the file: none, no MATLAB file of version 5, other variables, names and identities of
        different numbers, a name that is no file name or is listed twice, an identity that is no whole number.
        """
        folder = root / "Testing_Set" if (root / "Testing_Set").is_dir() else Path(root)
        keys, identities, counts = [], [], []
        for images, (file, names_key, ids_key) in _LISTS.items():
            names, ids = _read_names(folder / file, names_key, ids_key)
            keys += [f"{images}/{name}" for name in names]
            identities.append(ids)
            counts.append(len(names))
        return cls(folder, keys, np.concatenate(identities), counts[0])

    @property
    def paths(self) -> list[Path]:
        """Both files."""
        return [self.folder / file for file, *_ in _LISTS.values()]


def distractor_keys(root: Path) -> list[str]:
    """Returns the keys of the images in the folder of distractors, sorted. Raises UserError if there is none."""
    folder = root / DISTRACTOR_FOLDER
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); name the folder of the images") from None
    if not names:
        raise UserError(f"{folder}: the folder contains no image ({', '.join(IMAGE_SUFFIXES)})")
    return [f"{DISTRACTOR_FOLDER}/{name}" for name in names]


def _read_names(path: Path, names_key: str, ids_key: str) -> tuple[list[str], np.ndarray]:
    variables = _load_matlab(path, (names_key, ids_key))
    names = list(variables[names_key])
    row = next((row for row, name in enumerate(names, 1) if not isinstance(name, str)), 0)
    if row or not names:
        what = f"entry {row} is not a name" if row else "it is empty"
        raise UserError(f"{path}: {names_key} must be a cell array of file names; {what}")
    seen = set()
    for name in names:
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise UserError(f"{path}: {names_key} lists {name[:120]!r}, which is not the name of a file in its folder")
        if name in seen:
            raise UserError(f"{path}: {names_key} lists {name[:120]!r} twice")
        seen.add(name)
    value_N = variables[ids_key]
    if value_N.dtype.kind not in "iuf" or not (np.isfinite(value_N).all() and (value_N == np.floor(value_N)).all()):
        raise UserError(f"{path}: {ids_key} must hold whole numbers")
    if len(value_N) != len(names):
        raise UserError(f"{path}: {names_key} has {len(names):,} names, {ids_key} has {len(value_N):,} identities")
    if (value_N < 0).any() or (value_N >= 2**53).any():
        raise UserError(f"{path}: {ids_key} must hold identities from 0 on")
    return names, value_N.astype(np.int64)


def _load_matlab(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        variables = read_matlab(read_regular_file(path, _MAX_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); TinyFace comes with it") from None
    except ValueError as error:
        raise UserError(
            f"{path}: damaged, or not a MATLAB file of version 5 ({error}); take it from TinyFace's archive"
        ) from None
    if missing := [name for name in names if name not in variables]:
        held = ", ".join(map(repr, variables))[:200] or "none"
        raise UserError(f"{path}: has no variable {missing[0]}; its variables are {held}")
    return variables

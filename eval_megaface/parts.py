"""What a run has finished, kept in its folder, so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval_megaface.coverage import fingerprint
from facelt.errors import UserError
from facelt.whole_files import replacing

Arrays = dict[str, np.ndarray]
# Part of every name: raised when what a part holds, or how it is computed, changes.
VERSION = 1


class Parts:
    """Results by all they depend on: another value, list or setting gives another name, so no part is ever stale.

    Looked for once, at the start: processes that share a run must agree on what there is. Only the one that `writes`
    adds to it.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes
        self._known = {path.name for path in folder.glob("*.npz")}

    def get(self, depends_on: Mapping[str, Any], compute: Callable[[], Arrays]) -> Arrays:
        """The arrays that depend on what is given (JSON), computed where they are not there yet.

        Raises UserError on a part that is damaged or cannot be written, and whatever `compute` raises.
        """
        text = json.dumps({"version": VERSION, **depends_on}, sort_keys=True)
        path = self._folder / f"{fingerprint(text)[:32]}.npz"
        if path.name in self._known:
            return _load(path)
        arrays = compute()
        if self._writes:
            _save(path, arrays)
        return arrays


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        # Whatever zip and numpy make of damaged bytes.
        raise UserError(f"{path}: is damaged ({error}); remove it and run again") from error


def _save(path: Path, arrays: Arrays) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)

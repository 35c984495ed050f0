"""Layouts of published image lists: listed paths mapped to where the files lie.

The lists of Places-LT name `data_256/<letter>/<scene>/x.jpg`; copies of the data also come as `train/<scene>/x.jpg`,
where a scene with a kind (apartment_building/outdoor) is one folder with a hyphen or two folders. Lists of ImageNet's
validation images name `val/<wnid>/x.JPEG`; its publishers lay them into one folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

Layout = Callable[[str], str | None]
"""Listed relative path -> relative path to open; None where the rule does not apply."""

_PROBES = 16


def _as_listed(path: str) -> str:
    return path


def _scene(path: str) -> tuple[str, str] | None:
    """(scene/kind, file name) of data_256/<letter>/<scene>[/<kind>]/<file>."""
    parts = path.split("/")
    return ("/".join(parts[2:-1]), parts[-1]) if parts[0] == "data_256" and len(parts) >= 4 else None


def _train_hyphen(path: str) -> str | None:
    found = _scene(path)
    return found and f"train/{found[0].replace('/', '-')}/{found[1]}"


def _train_folders(path: str) -> str | None:
    found = _scene(path)
    return found and f"train/{found[0]}/{found[1]}"


def _data_256(path: str) -> str | None:
    parts = path.split("/")
    scene = "/".join(parts[1:-1]).replace("-", "/")
    return f"data_256/{scene[0]}/{scene}/{parts[-1]}" if parts[0] == "train" and scene else None


def _val_flat(path: str) -> str | None:
    parts = path.split("/")
    return f"val/{parts[-1]}" if parts[0] == "val" and len(parts) == 3 else None


LAYOUTS: dict[str, Layout] = {
    "as listed": _as_listed,
    "train/<scene>-<kind>": _train_hyphen,
    "train/<scene>/<kind>": _train_folders,
    "data_256/<letter>/<scene>/<kind>": _data_256,
    "val/<file>": _val_flat,
}


def find_layout(root: Path, paths: Sequence[str]) -> str | None:
    """Name of the layout in which most of a few spread-out paths exist; the earlier one when equal, None for none."""
    probes = [paths[len(paths) * i // _PROBES] for i in range(_PROBES)] if len(paths) > _PROBES else list(paths)
    found = {
        name: sum((place := layout(path)) is not None and (root / place).is_file() for path in probes)
        for name, layout in LAYOUTS.items()
    }
    best = max(found, key=found.__getitem__)
    return best if found[best] else None

"""What classes are called, for whoever reads a table of them.

C classes.
"""

import posixpath
from collections.abc import Sequence
from pathlib import Path

from facelt.config import CifarData, DataConfig, ListData
from facelt.data.list_dataset import FileDataset
from facelt.engine.class_map import ClassMap
from facelt.engine.data import TrainingData
from facelt.engine.images import read_identities
from facelt.errors import UserError

CIFAR_NAMES = "classes.txt"


def class_names(data: TrainingData, config: DataConfig) -> list[str]:
    """A name for each class [C]: the folder that all its training images lie in, below what all folders share; of
    records the name in identities.csv beside the file; of CIFAR the line of classes.txt. Else its number.

    Raises UserError where one of these files is there and cannot be read.
    """
    numbers = [str(number) for number in range(data.num_classes)]
    if isinstance(config, ListData):
        found = _folders(data.train.dataset)
    elif isinstance(config, CifarData):
        found = dict(enumerate(_lines(config.root / CIFAR_NAMES)))
    else:
        rows = read_identities(config.train.with_name("identities.csv"))
        label_C = ClassMap.of(config, data.num_classes).label_C.tolist()
        found = {number: rows[str(label)]["name"] for number, label in enumerate(label_C) if str(label) in rows}
    return [found.get(number) or numbers[number] for number in range(data.num_classes)]


def folder_names(paths: Sequence[str]) -> list[str]:
    """The folder of each relative path, below what all of them share; empty where they all lie in one."""
    folders = [posixpath.dirname(path) for path in paths]
    shared = posixpath.commonpath(set(folders)) if folders else ""
    return [folder[len(shared) :].lstrip("/") for folder in folders]


def _folders(dataset: FileDataset) -> dict[int, str]:
    """The folder of each class whose images lie in a single one."""
    found: dict[int, set[str]] = {}
    for label, folder in zip(dataset.labels.tolist(), folder_names(dataset.paths), strict=True):
        found.setdefault(label, set()).add(folder)
    return {label: next(iter(folders)) for label, folders in found.items() if len(folders) == 1}


def _lines(path: Path) -> list[str]:
    """The lines of a file; none where it is absent."""
    if not path.exists():
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error

"""What the data of a recipe are made of, from lists and labels alone.

Shapes: N images of a split.
"""

import json
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from facelt.config import ListData, TrainConfig
from facelt.data.image_list import read_list
from facelt.engine.data import open_data, refuse_mixed
from facelt.metrics.accuracy import BANDS, SHOT_CONVENTIONS
from facelt.metrics.composition import composition


def dataset_figures(config: TrainConfig) -> dict:
    """Classes, and the composition of every split. The images of lists need not be there.

    Raises UserError naming the file at fault.
    """
    classes, labels = _labels(config)
    counts_C = np.bincount(labels["train"], minlength=classes)
    splits = {split: composition(counts_C, label_N) for split, label_N in labels.items()}
    return {"kind": config.data.kind, "classes": classes, "splits": splits}


def _labels(config: TrainConfig) -> tuple[int, dict[str, np.ndarray]]:
    """The number of classes and the labels of every split, int64 [N] each."""
    if isinstance(config.data, ListData):
        _, train_N = read_list(config.data.train, config.data.num_classes)
        classes = config.data.num_classes or int(train_N.max()) + 1
        others = {split: read_list(path, classes)[1] for split, path in config.data.lists.items() if split != "train"}
        labels = {"train": train_N, **others}
        refuse_mixed(config.data, labels)
        return classes, labels
    data = open_data(config.data, config.seed)
    evaluation = {name: split.labels for name, split in data.evaluation.items()}
    return data.num_classes, {"train": data.train.labels, **evaluation}


def show(figures: dict, *, as_json: bool) -> None:
    """Prints the figures to standard output."""
    if as_json:
        print(json.dumps(figures))
        return
    tell = Console().print
    spread = Table(title=f"{figures['classes']:,} classes (kind: {figures['kind']})")
    for column in ("", "images", "of these open", "classes", "largest", "smallest"):
        spread.add_column(column, justify="right" if column else "left")
    for split, found in figures["splits"].items():
        names = ("images", "open_images", "classes", "largest", "smallest")
        spread.add_row(split, *(_number(found[name]) for name in names))
    tell(spread)
    for convention in SHOT_CONVENTIONS:
        shots = Table(title=f"classes and images by training shots, {convention} convention")
        shots.add_column("")
        for band in BANDS:
            shots.add_column(f"{band}", justify="right")
        for split, found in figures["splits"].items():
            cells = map(partial(found["shots"][convention].__getitem__), BANDS)
            shots.add_row(split, *(f"{_number(cell['classes'])} / {_number(cell['images'])}" for cell in cells))
        tell(shots)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"

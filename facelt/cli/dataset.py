"""`facelt dataset`: image and class counts of every split, from lists and labels alone."""

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from facelt.utils.cli import ConfigArgument, choose_config


def dataset(
    config: Annotated[
        Path | None, typer.Option(help="YAML recipe or its name; only its `data` section and `seed` matter.")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Set any key: data.imbalance=50.")] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    recipe: ConfigArgument = None,
) -> None:
    """Count images, classes, and many-, medium- and few-shot classes of every split, without decoding any image."""
    from facelt.config.loading import load_config
    from facelt.config.train import TrainConfig
    from facelt.data.kind import dataset_stats

    settings = load_config(choose_config(config, recipe), TrainConfig, set_)
    stats = dataset_stats(settings.data, settings.seed)
    if json:
        print(json_.dumps(stats))
    else:
        _print_tables(stats)


def _print_tables(stats: dict) -> None:
    """Prints one table of image and class counts, and one of shot bands for each convention."""
    from rich.console import Console
    from rich.table import Table

    from facelt.metrics.classification import SHOT_BANDS, SHOT_CONVENTIONS

    console = Console()
    counts = Table(title=f"{stats['classes']:,} classes (kind: {stats['kind']})")
    counts.add_column("split")
    for column in ("images", "open-set images", "classes", "largest class", "smallest class"):
        counts.add_column(column, justify="right")
    for name, split in stats["splits"].items():
        fields = ("images", "open_images", "classes", "largest", "smallest")
        counts.add_row(name, *(_number(split[field]) for field in fields))
    console.print(counts)
    for convention in SHOT_CONVENTIONS:
        shots = Table(title=f"classes / images by shots of the class in training, {convention} convention")
        shots.add_column("split")
        for band in SHOT_BANDS:
            shots.add_column(f"{band}", justify="right")
        for name, split in stats["splits"].items():
            bands = [split["shots"][convention][band] for band in SHOT_BANDS]
            shots.add_row(name, *(f"{_number(band['classes'])} / {_number(band['images'])}" for band in bands))
        console.print(shots)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"

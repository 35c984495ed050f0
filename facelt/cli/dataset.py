"""`facelt dataset`: what the data of a recipe are made of, read from lists and labels alone."""

from pathlib import Path
from typing import Annotated

import typer


def dataset(
    config: Annotated[Path, typer.Option(help="A YAML recipe; only its section `data` counts.")],
    set_: Annotated[list[str], typer.Option("--set", help="Set any key: data.imbalance=50.")] = [],  # noqa: B006
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Images, classes and their spread over many, medium and few shots, for every split; no image is looked at."""
    from facelt.config.loading import load_config
    from facelt.config.train import TrainConfig
    from facelt.data.module import dataset_stats, show

    show(dataset_stats(load_config(config, TrainConfig, set_)), as_json=json)

"""`facelt train`, also `python -m facelt.train`: run the recipe of a configuration."""

from pathlib import Path
from typing import Annotated

import typer

from facelt.entry import keep_threads_awake, single_command


def train(
    config: Annotated[Path, typer.Option(help="The recipe, a YAML file.")],
    set_: Annotated[list[str], typer.Option("--set", help="Override a key: optim.lr=0.05, out=runs/mine.")] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder.")] = False,
) -> None:
    """Train a recogniser: every stage of the recipe, checkpoints and logs in the run's folder."""
    from facelt.config import TrainConfig, load_config

    recipe = load_config(config, TrainConfig, set_)
    keep_threads_awake(recipe.device)
    from facelt.engine.run import run

    folder = run(recipe, resume)
    typer.echo(f"finished: {folder}")


if __name__ == "__main__":
    single_command(train)

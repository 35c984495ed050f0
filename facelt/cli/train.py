"""`facelt train`, also `python -m facelt.train`: run the recipe of a configuration."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.utils.cli import set_openmp_wait_policy


def train(
    config: Annotated[Path, typer.Option(help="The recipe, a YAML file.")],
    set_: Annotated[list[str], typer.Option("--set", help="Override a key: optim.lr=0.05, out=runs/mine.")] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder, if any.")] = False,
    how: Annotated[Literal["auto"] | None, typer.Argument(hidden=True)] = None,  # of --resume auto
) -> None:
    """Train a recogniser: every stage of the recipe, checkpoints and logs in the run's folder."""
    if how and not resume:
        raise typer.BadParameter("it belongs behind --resume", param_hint=how)
    from facelt.config.loading import read_values, validate_config
    from facelt.config.train import TrainConfig

    values = read_values(config, set_)
    # OpenMP reads its policy when torch is loaded, and validating the recipe loads the methods and with them torch:
    # the device is read first.
    set_openmp_wait_policy(values.get("device", TrainConfig.model_fields["device"].default))
    recipe = validate_config(values, TrainConfig, config)
    from facelt.distributed.launch import Interrupted
    from facelt.training.run import run

    try:
        folder = run(recipe, resume)
    except Interrupted:
        said = f"stopped as asked, the state is saved: {recipe.out}; go on with --resume"
    else:
        said = f"finished: {folder}"
    is_first_rank = os.environ.get("RANK", "0") == "0"
    if is_first_rank:
        typer.echo(said)

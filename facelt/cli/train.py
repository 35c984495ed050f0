"""Command `facelt train`, also `python -m facelt.train`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.utils.cli import set_openmp_wait_policy


def train(
    config: Annotated[Path, typer.Option(help="Training recipe, a YAML file.")],
    set_: Annotated[list[str], typer.Option("--set", help="Override a key: optim.lr=0.05, out=runs/mine.")] = [],  # noqa: B006
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the run folder if it exists; also --resume auto.")
    ] = False,
    resume_mode: Annotated[Literal["auto"] | None, typer.Argument(hidden=True, metavar="auto")] = None,
) -> None:
    """Train a face recogniser: all stages of a recipe, with checkpoints and logs in the run folder."""
    if resume_mode and not resume:
        raise typer.BadParameter("only allowed after --resume", param_hint=resume_mode)
    from facelt.config.loading import read_layers
    from facelt.config.train import TrainConfig

    layers = read_layers(config, set_)
    # OpenMP reads its policy when torch is loaded, and validation loads the methods and with them torch.
    set_openmp_wait_policy(layers.values().get("device", TrainConfig.model_fields["device"].default))
    recipe = layers.validate(TrainConfig)
    from facelt.distributed.launch import Interrupted
    from facelt.training.run import run

    try:
        folder = run(recipe, resume)
    except Interrupted:
        message = f"interrupted; checkpoint saved in {recipe.out}, continue with --resume"
    else:
        message = f"finished: {folder}"
    if os.environ.get("RANK", "0") == "0":
        typer.echo(message)

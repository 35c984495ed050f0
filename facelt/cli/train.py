"""Command `facelt train`, also `python -m facelt.train`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.utils.cli import is_first_process, set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder


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
    from facelt.config.loading import read_values, validate_config
    from facelt.config.train import TrainConfig

    values = read_values(config, set_)
    # OpenMP reads its policy when torch is loaded, and validation loads the methods and with them torch.
    set_openmp_wait_policy(values.get("device", TrainConfig.model_fields["device"].default))
    recipe = validate_config(values, TrainConfig, config)
    from facelt.training.run import run
    from facelt.training.run_folder import RunFolder

    with lock_folder(recipe.out):
        was_finished = RunFolder(recipe.out).holds_all(recipe.stages)
        folder = run(recipe, resume)
    if is_first_process():
        typer.echo(f"nothing to do: {folder} is finished" if was_finished else f"finished: {folder}")

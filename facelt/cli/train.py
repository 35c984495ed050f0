"""Command `facelt train`, also `python -m facelt.train`."""

from pathlib import Path
from typing import Annotated

import typer

from facelt.utils.cli import choose_config, is_first_process, set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder


def train(
    config: Annotated[
        Path | None, typer.Option(help="Training recipe: a YAML file, or a name that `facelt recipes` lists.")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key: optim.lr=0.05, out=runs/mine.")] = [],  # noqa: B006
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the run folder if it exists; also --resume auto.")
    ] = False,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="CONFIG", help="The same as --config.", show_default=False)
    ] = None,
) -> None:
    """Train a face recogniser: all stages of a recipe, with checkpoints and logs in the run folder."""
    config = _recipe_of(config, words or [], resume)
    from facelt.config.loading import read_layers
    from facelt.config.train import TrainConfig

    layers = read_layers(config, set_)
    # OpenMP reads its policy when torch is loaded, and validation loads the methods and with them torch.
    set_openmp_wait_policy(layers.values().get("device", TrainConfig.model_fields["device"].default))
    recipe = layers.validate(TrainConfig)
    from facelt.training.run import run
    from facelt.training.run_folder import RunFolder

    with lock_folder(recipe.out):
        was_finished = RunFolder(recipe.out).holds_all(recipe.stages)
        folder = run(recipe, resume)
    if is_first_process():
        typer.echo(f"nothing to do: {folder} is finished" if was_finished else f"finished: {folder}")


def _recipe_of(option: Path | None, words: list[str], resume: bool) -> Path:
    """Returns the recipe; --resume may be followed by `auto`, which is no recipe. Raises typer.BadParameter."""
    if "auto" in words:
        if not resume:
            raise typer.BadParameter("only allowed after --resume", param_hint="auto")
        words = [word for word in words if word != "auto"]
    if len(words) > 1:
        raise typer.BadParameter("one recipe is trained at a time", param_hint=words[1])
    return choose_config(option, Path(words[0]) if words else None)

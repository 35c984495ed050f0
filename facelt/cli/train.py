"""Command `facelt train`, also `python -m facelt.train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facelt.utils.cli import choose_config, is_first_process, set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder

if TYPE_CHECKING:
    from facelt.training.dry_run import StageCost


def train(
    config: Annotated[
        Path | None, typer.Option(help="Training recipe: a YAML file, or a name that `facelt recipes` lists.")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key: optim.lr=0.05, out=runs/mine.")] = [],  # noqa: B006
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the run folder if it exists; also --resume auto.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory and traffic of every stage on one process; train nothing.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1 << 16, help="With --dry-run: the number of processes, by default 1.")
    ] = None,
    identities: Annotated[
        int | None,
        typer.Option(min=2, max=10_000_000, help="With --dry-run: the number of identities, if the data are absent."),
    ] = None,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="CONFIG", help="The same as --config.", show_default=False)
    ] = None,
) -> None:
    """Train a face recogniser: all stages of a recipe, with checkpoints and logs in the run folder."""
    config = _recipe_of(config, words or [], resume)
    for value, hint in ((processes, "--processes"), (identities, "--identities")):
        if value is not None and not dry_run:
            raise typer.BadParameter("only allowed with --dry-run", param_hint=hint)
    if dry_run and resume:
        raise typer.BadParameter("trains nothing, so there is nothing to resume", param_hint="--dry-run")
    from facelt.config.loading import read_layers
    from facelt.config.train import TrainConfig

    layers = read_layers(config, set_)
    # OpenMP reads its policy when torch is loaded, and validation loads the methods and with them torch.
    set_openmp_wait_policy(layers.values().get("device", TrainConfig.model_fields["device"].default))
    recipe = layers.validate(TrainConfig)
    if dry_run:
        from facelt.training.dry_run import dry_run as estimate

        _print_costs(estimate(recipe, processes or 1, identities), processes or 1)
        return
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


_COLUMNS = ("identities", "images", "network", "head", "memory", "momentum", "gradients", "activations", "exchanged")
_MEGABYTE = 1e6


def _print_costs(costs: "Sequence[StageCost]", processes: int) -> None:
    """Prints a table with a line for each stage: identities and images, then megabytes."""
    from rich.console import Console

    from facelt.report.formatting import EN_DASH, count
    from facelt.report.terminal import make_table

    def megabytes(value: int | None) -> str:
        return EN_DASH if value is None else f"{value / _MEGABYTE:,.1f}"

    ranks = "one process" if processes == 1 else f"the first of {processes:,} processes"
    table = make_table("stage", (*_COLUMNS[:-1], "total", "exchanged\na step"), title=f"Megabytes on {ranks}")
    for cost in costs:
        cells = [count(cost.identities), count(cost.images)]
        cells += [megabytes(getattr(cost, name)) for name in _COLUMNS[2:-1]]
        table.add_row(cost.stage, *cells, megabytes(cost.total), megabytes(cost.exchanged))
    Console(width=max(Console().width, 120)).print(table)
    print("images: of a micro-batch; activations: kept from forward to backward; total: without temporary tensors")
    if any(cost.activations is None for cost in costs):
        print(f"{EN_DASH} the stage takes no steps, or what they allocate depends on values")

"""The `facelt` command line; commands import heavy packages only when they run."""

from typing import Annotated

import typer

from eval_megaface.run import megaface
from facelt import __version__
from facelt.cli.align import align
from facelt.cli.audit import audit
from facelt.cli.bench import bench
from facelt.cli.dataset import dataset
from facelt.cli.demo import demo
from facelt.cli.embed import embed
from facelt.cli.evaluate import evaluate
from facelt.cli.export import export
from facelt.cli.figures import figures
from facelt.cli.gallery import gallery_app
from facelt.cli.ijb import ijb
from facelt.cli.recipes import recipes_app
from facelt.cli.store import store_app
from facelt.cli.tinyface import tinyface
from facelt.cli.train import train
from facelt.cli.verify import verify
from facelt.utils.cli import run_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(train, align, embed, evaluate, verify, megaface, ijb, tinyface),
    *(audit, dataset, bench, figures, export, demo),
):
    app.command()(command)
app.add_typer(gallery_app, name="gallery")
app.add_typer(store_app, name="store")
app.add_typer(recipes_app, name="recipes")


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"facelt {__version__}")
        raise typer.Exit


@app.callback()
def root_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train face recognisers on long-tailed data and measure them on unseen people."""


def main() -> None:
    """Runs the command line."""
    run_app(app)

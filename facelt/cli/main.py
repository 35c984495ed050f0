"""The `facelt` command line; commands import heavy packages only when they run."""

import typer

from eval_megaface.run import megaface
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
from facelt.cli.store import store_app
from facelt.cli.train import train
from facelt.cli.verify import verify
from facelt.utils.cli import run_app

app = typer.Typer(
    help="Train face recognisers on long-tailed data and measure them on unseen people.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, align, embed, evaluate, verify, megaface, audit, dataset, bench, figures, export, demo):
    app.command()(command)
app.add_typer(gallery_app, name="gallery")
app.add_typer(store_app, name="store")


def main() -> None:
    """Runs the command line."""
    run_app(app)

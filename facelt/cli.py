"""`facelt`: one command line over the entries; nothing heavy is imported before a command runs."""

import typer

from eval_megaface.run import megaface
from facelt.align import align
from facelt.audit import audit
from facelt.bench import bench
from facelt.dataset import dataset
from facelt.demo import demo
from facelt.embed import embed
from facelt.entry import run_app
from facelt.evaluate import evaluate
from facelt.export import export
from facelt.figures import figures
from facelt.gallery_cli import app as gallery
from facelt.train import train
from facelt.verify import verify

app = typer.Typer(
    help="Face recognition on long-tailed data, measured on people it has never seen.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, align, embed, evaluate, verify, megaface, audit, dataset, bench, figures, export, demo):
    app.command()(command)
app.add_typer(gallery, name="gallery")


def main() -> None:
    """Entry of the console script."""
    run_app(app)


if __name__ == "__main__":
    main()

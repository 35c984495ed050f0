"""`facelt embed` of models with the thin backbone."""

from facelt.cli.embed import embed
from facelt.utils.cli import single_command
from tests.training.thin import make_thin

if __name__ == "__main__":
    make_thin()
    single_command(embed)

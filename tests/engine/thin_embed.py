"""`facelt embed` of models with the thin backbone."""

from facelt.embed import embed
from facelt.entry import single_command
from tests.engine.thin import make_thin

if __name__ == "__main__":
    make_thin()
    single_command(embed)

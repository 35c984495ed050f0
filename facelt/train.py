"""`python -m facelt.train`: the training command as a module of its own."""

from facelt.cli.train import train
from facelt.utils.cli import single_command

if __name__ == "__main__":
    single_command(train)

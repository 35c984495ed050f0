"""Entry `python -m facelt.train`, for torchrun as well."""

from facelt.cli.train import train
from facelt.utils.cli import single_command

if __name__ == "__main__":
    single_command(train)

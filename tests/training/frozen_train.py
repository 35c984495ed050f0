"""`facelt train` with frozen batch-norm statistics and a signal in each launch by torchrun.

    frozen_train.py FOLDER NUMBER@STEPS,... ARGUMENTS...

The last rank sends itself signal NUMBER after STEPS steps; each restart takes the next of the list.
"""

import os
import sys
from pathlib import Path

import pytest

from facelt.cli.train import train
from facelt.utils.cli import single_command
from tests.training.frozen import freeze
from tests.training.thin import make_thin

if __name__ == "__main__":
    folder, signals, *arguments = sys.argv[1:]
    make_thin()
    signal_of_launch = [tuple(map(int, signal.split("@"))) for signal in signals.split(",")]
    launch = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    signal = signal_of_launch[launch] if launch < len(signal_of_launch) else None
    freeze(pytest.MonkeyPatch(), Path(folder), signal)
    single_command(train, arguments)

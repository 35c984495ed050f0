"""`facelt train` with batch norm's statistics frozen and a signal at each of its starts by torchrun.

    frozen_train.py FOLDER NUMBER@STEPS,... words of the command ...

The last rank sends itself the signal of that number after so many steps; the next start takes the next of the list.
"""

import os
import sys
from pathlib import Path

import pytest

from facelt.entry import single_command
from facelt.train import train
from tests.engine.frozen import freeze
from tests.engine.thin import make_thin

if __name__ == "__main__":
    folder, signals, *words = sys.argv[1:]
    make_thin()
    starts = [tuple(map(int, signal.split("@"))) for signal in signals.split(",")]
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    freeze(pytest.MonkeyPatch(), Path(folder), starts[start] if start < len(starts) else None)
    single_command(train, words)

"""`facelt train` with batch norm's statistics frozen, so that ranks can be compared with one process.

    frozen_train.py FOLDER SIGNAL STEP words of the command ...

Each rank notes the images of its steps in FOLDER/seen.<rank>, a line [stage, epoch, step, indices]. The last rank sends
itself SIGNAL after so many steps (0 for none), unless torchrun has started it again.
"""

import json
import os
import sys
from itertools import count
from pathlib import Path

from torch import nn

from facelt.engine.trainer import Trainer
from facelt.entry import single_command
from facelt.parallel import rank, world
from facelt.train import train
from tests.engine.thin import make_thin

if __name__ == "__main__":
    make_thin()
    folder, number, last, *words = sys.argv[1:]
    norm, step, taken = nn.modules.batchnorm._BatchNorm, Trainer._step, count(1)
    norm.train = lambda self, mode=True: nn.Module.train(self, False)

    def noted(self, batches, display):
        step(self, batches, display)
        with (Path(folder) / f"seen.{rank()}").open("a") as file:
            line = [self.stage.name, self.at.epoch, self.at.step, batches[0].index_B.tolist()]
            file.write(json.dumps(line) + "\n")
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if next(taken) == int(last) and rank() == world() - 1 and not again:
            os.kill(os.getpid(), int(number))

    Trainer._step = noted
    single_command(train, words)

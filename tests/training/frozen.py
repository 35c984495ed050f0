"""Runs with frozen batch-norm statistics, comparable between ranks and one process, that record their images."""

import json
import os
from itertools import count
from pathlib import Path

import pytest
from torch import nn

from facelt.config.train import TrainConfig
from facelt.distributed.comm import rank, world_size
from facelt.training.run import run
from facelt.training.trainer import Trainer


def freeze(patch: pytest.MonkeyPatch, seen: Path, signal: tuple[int, int] | None = None) -> None:
    """Freezes batch-norm statistics; each rank appends lines [stage, epoch, step, indices] to seen/<rank>.

    `signal` (number, steps): the last rank sends itself that signal after that number of steps.
    """
    norm, step, taken = nn.modules.batchnorm._BatchNorm, Trainer.train_step, count(1)
    patch.setattr(norm, "train", lambda self, mode=True: nn.Module.train(self, False))

    def noted(self, batches):
        line = json.dumps([self.stage.name, self.state.epoch, self.state.step, batches[0].index_B.tolist()])
        step(self, batches)
        with (seen / f"{rank()}").open("a") as file:
            file.write(line + "\n")
        if signal is not None and next(taken) == signal[1] and rank() == world_size() - 1:
            os.kill(os.getpid(), signal[0])

    patch.setattr(Trainer, "train_step", noted)


def run_frozen(values: dict, seen: Path) -> None:
    """Runs or resumes training on this rank."""
    with pytest.MonkeyPatch.context() as patch:
        freeze(patch, seen)
        run(TrainConfig.model_validate(values), resume=True)


def read_seen(seen: Path) -> dict[tuple, list[int]]:
    """Returns the images of each step, all ranks in rank order; of a repeated step, the last time."""
    by_rank = []
    for path in sorted(seen.iterdir()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        by_rank.append({tuple(step_key): indices for *step_key, indices in lines})
    return {step_key: [index for steps in by_rank for index in steps[step_key]] for step_key in by_rank[0]}

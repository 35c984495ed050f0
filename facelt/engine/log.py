"""Where a run's figures go: metrics.jsonl always, TensorBoard beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class SilentLog:
    """The log of the ranks that write none."""

    size = 0

    def truncate(self, size: int) -> None:
        pass

    def write(self, stage: str, global_step: int, figures: Mapping[str, object]) -> None:
        pass

    def close(self) -> None:
        pass


class RunLog(SilentLog):
    """One JSON object a line, and the same numbers as TensorBoard scalars."""

    def __init__(self, metrics: Path, tensorboard: Path) -> None:
        self._file = metrics.open("ab")
        self._board = SummaryWriter(str(tensorboard))

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Forgets what was logged after a checkpoint, because those steps are taken again."""
        self._file.truncate(min(size, self.size))

    def write(self, stage: str, global_step: int, figures: Mapping[str, object]) -> None:
        """Appends a line; numbers also become scalars named `stage/key`."""
        line = {"stage": stage, **figures}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        for key, value in figures.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{stage}/{key}", value, global_step)

    def close(self) -> None:
        self._file.close()
        self._board.close()

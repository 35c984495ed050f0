"""Where a run's figures go: metrics.jsonl always, TensorBoard beside it.

What a person sees of a run: a bar a stage on a terminal, a line an epoch elsewhere.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from facelt.distributed.comm import rank


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


class StageDisplay:
    """Shows steps, samples/s, loss and learning rate; a context manager."""

    def __init__(self, stage: str, steps: int, done: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=rank() != 0)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.console.quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=steps, completed=done, figures="")
        self._samples = 0
        self._since = time.perf_counter()

    def __enter__(self) -> "StageDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, samples: int) -> None:
        self._samples += samples
        self._bar.advance(self._task)

    def samples_per_second(self) -> float:
        """Since it was last asked."""
        now = time.perf_counter()
        rate = self._samples / max(now - self._since, 1e-9)
        self._samples, self._since = 0, now
        return rate

    def figures(self, loss: float, lr: float, rate: float) -> None:
        self._bar.update(self._task, figures=f"loss {loss:.4f}  lr {lr:.2g}  {rate:,.0f} samples/s")

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

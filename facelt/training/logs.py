"""Training logs: metrics.jsonl, TensorBoard, and the progress display."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from facelt.distributed.comm import rank


class NullLog:
    """Log of the ranks that write none."""

    size = 0

    def truncate(self, size: int) -> None:
        pass

    def write(self, stage: str, global_step: int, figures: Mapping[str, object]) -> None:
        pass

    def close(self) -> None:
        pass


class RunLog(NullLog):
    """Log of a run: one JSON object per line, and the same numbers as TensorBoard scalars."""

    def __init__(self, metrics: Path, tensorboard: Path) -> None:
        self._file = metrics.open("ab")
        self._board = SummaryWriter(str(tensorboard))

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, size: int) -> None:
        """Removes lines that were written after a checkpoint; their steps are repeated."""
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
    """Progress of a stage on rank 0's stderr: a bar on a terminal, printed lines everywhere."""

    def __init__(self, stage: str, steps: int) -> None:
        self._console = Console(stderr=True, quiet=rank() != 0)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=steps, figures="")
        self._samples = 0
        self._since = time.perf_counter()

    @contextmanager
    def start(self, completed: int) -> Iterator[None]:
        """Shows the bar, with `completed` steps done."""
        self._bar.reset(self._task, completed=completed)
        self._since = time.perf_counter()
        with self._bar:
            yield

    def advance(self, samples: int) -> None:
        """Counts one step of `samples` images."""
        self._samples += samples
        self._bar.advance(self._task)

    def samples_per_second(self) -> float:
        """Returns the rate since the last call."""
        now = time.perf_counter()
        rate = self._samples / max(now - self._since, 1e-9)
        self._samples, self._since = 0, now
        return rate

    def show(self, loss: float, lr: float, rate: float) -> None:
        """Shows figures behind the bar."""
        self._bar.update(self._task, figures=f"loss {loss:.4f}  lr {lr:.2g}  {rate:,.0f} samples/s")

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

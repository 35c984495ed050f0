"""Training logs: metrics.jsonl, TensorBoard, and the progress display."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
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
    """Progress of a stage on rank 0's stderr: a bar on a terminal, elsewhere a line at each `show`."""

    def __init__(self, stage: str, epochs: int, steps_per_epoch: int) -> None:
        self._stage, self._epochs, self._steps_per_epoch = stage, epochs, steps_per_epoch
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
        self._task = self._bar.add_task(stage, total=epochs * steps_per_epoch, figures="")
        self._samples = 0
        self._start_step = self._step = 0
        self._started = self._since = time.perf_counter()

    @contextmanager
    def start(self, completed: int) -> Iterator[None]:
        """Shows the bar, with `completed` steps done."""
        self._bar.reset(self._task, completed=completed)
        self._start_step = self._step = completed
        self._started = self._since = time.perf_counter()
        with self._bar:
            yield

    def advance(self, samples: int) -> None:
        """Counts one step of `samples` images."""
        self._samples += samples
        self._step += 1
        self._bar.advance(self._task)

    def samples_per_second(self) -> float:
        """Returns the rate since the last call."""
        now = time.perf_counter()
        rate = self._samples / max(now - self._since, 1e-9)
        self._samples, self._since = 0, now
        return rate

    def show(self, global_step: int, loss: float, lr: float, rate: float) -> None:
        """Shows figures of a step, counted over epochs from 0, behind the bar or as a line."""
        figures = f"loss {loss:.4f}  lr {lr:.2g}  {rate:,.0f} images/s"
        self._bar.update(self._task, figures=figures)
        if not self._console.is_terminal:
            epoch, step = divmod(global_step, self._steps_per_epoch)
            position = f"epoch {epoch + 1}/{self._epochs}  step {step + 1}/{self._steps_per_epoch}"
            self.print(f"{self._stage}: {position}  {figures}  ETA {self._remaining_time()}")

    def _remaining_time(self) -> timedelta:
        """Returns the time for the remaining steps of the stage at the mean speed since `start`, in whole seconds."""
        seconds_per_step = (time.perf_counter() - self._started) / max(self._step - self._start_step, 1)
        remaining = self._epochs * self._steps_per_epoch - self._step
        return timedelta(seconds=round(remaining * seconds_per_step))

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

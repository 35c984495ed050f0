"""Processes that work through a plan of benchmark rows, each row in a process of `facelt bench`."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from facelt.benchmarking.plan import Plan, PlannedRow
from facelt.benchmarking.run import read_result
from facelt.distributed.launch import graceful_shutdown, received_signal
from facelt.errors import Interrupted, UserError

PROGRAM = (sys.executable, "-m", "facelt")
_NICENESS = 10
_POLL_SECONDS = 0.2
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_MAX_LAST_LINE = 4096


@dataclass(frozen=True)
class _RunningRow:
    """A row with its process, and the file of its output."""

    row: PlannedRow
    process: subprocess.Popen
    log: Path


@dataclass
class Workers:
    """Runs the rows of a plan, up to `processes` at a time, as long as their estimates fit in `budget` minutes.

    `make_plan` returns the plan without the rows whose folders it is given: those that have ended. `options` are those
    of `facelt bench` for all rows. `echo` receives a line for each row that begins and ends.
    """

    make_plan: Callable[[Collection[Path]], Plan]
    processes: int
    budget: float | None
    is_nice: bool
    options: tuple[str, ...]
    echo: Callable[[str], None]
    _running: list[_RunningRow] = field(default_factory=list)
    _ended: set[Path] = field(default_factory=set)
    _failures: int = 0

    def run(self) -> None:
        """Works through the plan until no row is left that fits.

        A row that fails is left out, and the others are run; afterwards raises UserError. After SIGTERM or SIGINT
        stops the processes, which save checkpoints, and raises Interrupted.
        """
        start = time.monotonic()
        with graceful_shutdown(), self._stopped_at_the_end():
            plan = self.make_plan(self._ended)
            for reason in plan.left_out:
                self.echo(f"left out: {reason}")
            self.echo(f"estimates: {plan.basis}")
            while True:
                left = None if self.budget is None else self.budget - (time.monotonic() - start) / 60
                row = self._next_row(plan, left)
                if row is not None:
                    self._start(row)
                elif self._running:
                    self._wait()
                    plan = self.make_plan(self._ended)
                else:
                    break
        self._report_rest(plan, left)
        if self._failures:
            raise UserError(f"bench --all: {self._failures} of the rows failed, see above; run the same command again")

    def _next_row(self, plan: Plan, left: float | None) -> PlannedRow | None:
        """Returns the first row that fits and needs no stage that another row is to train, if a process is free."""
        if len(self._running) == self.processes:
            return None
        running = {process.row.config.out for process in self._running}
        in_training = {stage for process in self._running for stage in process.row.trains}
        for row in plan.rows:
            is_blocked = row.waits_for or row.trains & in_training or row.config.out in running
            if not is_blocked and (left is None or row.minutes <= left):
                return row
        return None

    def _start(self, row: PlannedRow) -> None:
        recipe, seed = row.benchmark.recipe.title, str(row.config.seed)
        log = row.config.out.with_name(f"{row.config.out.name}.log")
        environment = dict(os.environ)
        if self.processes > 1:  # an equal share of the cores
            environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // self.processes, 1)))
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*PROGRAM, "bench", recipe, "--seeds", seed, "--resume", *self.options],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    # The terminal's Ctrl-C reaches this process alone, which stops the others.
                    start_new_session=True,
                    preexec_fn=_child_setup(_NICENESS if self.is_nice else 0),
                )
        except OSError as error:
            raise UserError(f"{log}: cannot start the run of {row.title} ({error.strerror})") from None
        self._running.append(_RunningRow(row, process, log))
        self.echo(f"started: {row.title}, estimate {row.minutes:.1f} minutes, output in {log}")

    def _wait(self) -> None:
        """Waits until a process has ended and reports it. Raises Interrupted after a stop signal."""
        while True:
            if number := received_signal():
                raise Interrupted(number, "finished rows are recorded; run the same command again to continue")
            ended = [running for running in self._running if running.process.poll() is not None]
            if ended:
                break
            time.sleep(_POLL_SECONDS)
        for running in ended:
            self._running.remove(running)
            self._ended.add(running.row.config.out)
            self._report(running)

    def _report(self, running: _RunningRow) -> None:
        row, code = running.row, running.process.returncode
        record = None if code else read_result(row.config)
        if record is None:
            self._failures += 1
            self.echo(f"failed: {row.title}: {_last_line(running.log) or f'exit code {code}'} (see {running.log})")
            return
        minutes = "" if record.minutes is None else f", {record.minutes:.1f} minutes"
        accuracy = f"accuracy {100 * record.overall:.2f}% on the test split"
        self.echo(f"finished: {row.title}: {accuracy}{minutes}, estimate {row.minutes:.1f}")

    def _report_rest(self, plan: Plan, left: float | None) -> None:
        if not plan.rows or left is None:
            return
        row = plan.rows[0]
        self.echo(
            f"not started: {len(plan.rows)} rows do not fit in the {max(left, 0):.1f} minutes that are left of "
            f"--budget; the cheapest is {row.title}, estimate {row.minutes:.1f}"
        )

    @contextmanager
    def _stopped_at_the_end(self) -> Iterator[None]:
        """Stops the processes that still run when the block ends, by an exception, and waits for them."""
        try:
            yield
        finally:
            for running in self._running:
                running.process.send_signal(signal.SIGTERM)
            for running in self._running:
                running.process.wait()
                self.echo(f"stopped: {running.row.title}")


def _child_setup(niceness: int) -> Callable[[], None]:
    """Returns what a new process does before it becomes `facelt bench`: it is stopped by the death of this one."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def setup() -> None:
        os.nice(niceness)
        if libc is not None:
            libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)

    return setup


def _last_line(log: Path) -> str:
    """Returns the last line of a log that is not empty."""
    file: IO[bytes]
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _MAX_LAST_LINE, 0))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

"""Processes that work through a plan: pairs, failures, budgets and signals; small programs replace training."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from facelt.benchmarking.plan import Plan, PlannedRow
from facelt.benchmarking.workers import Workers
from facelt.errors import Interrupted, UserError
from tests.benchmarking.test_records import RUN

# Notes its start and end, sleeps, and writes a result; `bad` fails.
PROGRAM = """
import json, os, sys, time
title, options = sys.argv[2], dict(zip(sys.argv[3::2], sys.argv[4::2]))
def note(what):
    with open("LOG", "a") as file:
        file.write(json.dumps([title, what, os.nice(0), os.environ.get("OMP_NUM_THREADS"), time.time()]) + "\\n")
note("start")
if "bad" in title:
    sys.exit("error: out of memory")
time.sleep(60 if "slow" in title else 0.5)
os.makedirs("FOLDER/" + title, exist_ok=True)
with open("FOLDER/" + title + "/result.json", "w") as file:
    file.write('RECORD')
note("end")
"""


@pytest.fixture
def notes(tmp_path, monkeypatch) -> Callable[[], list[list]]:
    """notes() -> what the programs noted: title, event, niceness, threads, time. Replaces `facelt`."""
    log = tmp_path / "notes"
    program = PROGRAM.replace("LOG", str(log)).replace("FOLDER", str(tmp_path)).replace("RECORD", RUN.model_dump_json())
    monkeypatch.setattr("facelt.benchmarking.workers.PROGRAM", (sys.executable, "-S", "-c", program))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def work(tmp_path) -> Callable[..., list[str]]:
    """work((title, minutes, trains, waits_for), ...) -> the lines that were echoed."""

    def run(*rows: tuple, processes: int = 1, budget: float | None = None, nice: bool = False, echo=None) -> list[str]:
        planned = [
            PlannedRow(
                SimpleNamespace(recipe=SimpleNamespace(title=title)),
                SimpleNamespace(out=tmp_path / title, seed=0),
                minutes,
                frozenset(trains),
                frozenset(waits_for),
            )
            for title, minutes, trains, waits_for in rows
        ]
        lines: list[str] = []

        def plan(ended) -> Plan:
            trained = {stage for row in planned if row.config.out in ended for stage in row.trains}
            left = [row for row in planned if row.config.out not in ended]
            rows = [
                PlannedRow(row.benchmark, row.config, row.minutes, row.trains, row.waits_for - trained) for row in left
            ]
            return Plan(tuple(rows), (), "made up")

        Workers(plan, processes, budget, nice, (), lambda line: (lines.append(line), echo and echo(line))).run()
        return lines

    return run


def order(notes: list[list]) -> list[str]:
    return [f"{event} {title}" for title, event, *_ in notes]


def test_rows_run_one_after_the_other_in_the_order_of_the_plan(notes, work):
    lines = work(("a", 1, (), ()), ("b", 2, (), ()))
    assert order(notes()) == ["start a", "end a", "start b", "end b"]
    assert {(nice, threads) for _, _, nice, threads, _ in notes()} == {(os.nice(0), None)}
    assert lines[0] == "estimates: made up"
    assert lines[1].startswith("started: a, seed 0, estimate 1.0 minutes, output in ")
    assert lines[2] == "finished: a, seed 0: accuracy 30.00% on the test split, estimate 1.0"


def test_two_processes_run_pairs_that_share_the_cores(notes, work, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    work(("a", 1, (), ()), ("b", 1, (), ()), ("c", 1, (), ()), processes=2, nice=True)
    assert sorted(order(notes())[:2]) == ["start a", "start b"]
    assert {(nice, threads) for _, _, nice, threads, _ in notes()} == {(min(os.nice(0) + 10, 19), "3")}
    assert order(notes()).index("start c") >= 3


def test_a_row_waits_for_the_stage_that_another_one_trains(notes, work):
    first, same, later = ("a", 1, ["s"], ()), ("b", 1, ["s"], ()), ("c", 1, (), ["s"])
    work(first, same, later, processes=2)
    begun = order(notes())
    assert begun[:2] == ["start a", "end a"]
    assert sorted(begun[2:4]) == ["start b", "start c"]


def test_a_row_that_fails_is_reported_and_the_others_are_run(notes, work, tmp_path):
    lines: list[str] = []
    with pytest.raises(UserError, match="1 of the rows failed"):
        work(("bad", 1, (), ()), ("b", 1, (), ()), echo=lines.append)
    assert order(notes()) == ["start bad", "start b", "end b"]
    assert f"failed: bad, seed 0: error: out of memory (see {tmp_path / 'bad.log'})" in lines


def test_rows_that_do_not_fit_in_the_budget_are_not_started(notes, work):
    lines = work(("a", 1, (), ()), ("b", 300, (), ()), ("c", 400, (), ()), budget=200)
    assert order(notes()) == ["start a", "end a"]
    assert lines[-1].startswith("not started: 2 rows do not fit in the 200.0 minutes that are left of --budget; ")
    assert lines[-1].endswith("the cheapest is b, seed 0, estimate 300.0")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes(notes, work, number):
    started: list[str] = []

    def interrupt(line: str) -> None:
        started.extend([line] if line.startswith("started") else [])
        if len(started) == 2 and line.startswith("started"):
            while len(notes()) < 2:
                time.sleep(0.05)
            os.kill(os.getpid(), number)

    lines: list[str] = []
    begin = time.monotonic()
    with pytest.raises(Interrupted, match="run the same command again to continue") as stop:
        work(
            ("slow", 1, (), ()),
            ("slower", 1, (), ()),
            processes=2,
            echo=lambda line: (lines.append(line), interrupt(line)),
        )
    assert stop.value.signal_number == number
    assert time.monotonic() - begin < 30
    assert order(notes()) in (["start slow", "start slower"], ["start slower", "start slow"])
    assert lines[-2:] == ["stopped: slow, seed 0", "stopped: slower, seed 0"]


def test_the_processes_end_with_a_killed_parent(notes, tmp_path):
    """The kernel sends them SIGTERM, so that they save a checkpoint and the next call finds the folders unlocked."""
    parent = os.fork()
    if not parent:
        from facelt.benchmarking import workers

        row = SimpleNamespace(
            benchmark=SimpleNamespace(recipe=SimpleNamespace(title="slow")),
            config=SimpleNamespace(out=tmp_path / "slow", seed=0),
            minutes=1,
            title="slow",
        )
        own = workers.Workers(lambda ended: Plan((), (), ""), 1, None, False, (), lambda line: None)
        own._start(row)
        (tmp_path / "pid").write_text(str(own._running[0].process.pid))
        time.sleep(60)
        os._exit(0)
    while not notes():
        time.sleep(0.05)
    child = int(_text_of(tmp_path / "pid"))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(200):
        if not _is_running(child):
            return
        time.sleep(0.05)
    raise AssertionError("the process still runs")


def _text_of(path: Path) -> str:
    while not path.exists() or not path.read_text():
        time.sleep(0.05)
    return path.read_text()


def _is_running(process: int) -> bool:
    """Returns whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

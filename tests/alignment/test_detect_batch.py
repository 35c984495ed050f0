"""Detection workers: results equal those of one process, and workers exit with their parent."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facelt.alignment.detect import DetectionOptions, detect_all
from facelt.alignment.photographs import find_photographs
from facelt.alignment.run import align_photographs
from facelt.errors import UserError


def test_workers_give_the_same_files(yunet, real_data, tmp_path):
    photographs = find_photographs(real_data / "photos", people="file")[:9]
    for workers in (0, 2):
        align_photographs(photographs, tmp_path / str(workers), DetectionOptions(yunet, all_faces=True), workers)
    names = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*.*"))
    assert len(names) > 10
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_killed_worker_is_reported(yunet, real_data):
    others = multiprocessing.active_children()
    answers = detect_all(find_photographs(real_data / "photos"), DetectionOptions(yunet), workers=1)
    next(answers)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    worker.kill()
    with pytest.raises(UserError, match="an alignment worker was killed; use fewer --workers"):
        list(answers)


KEPT_BUSY = """
import multiprocessing, sys, time
from pathlib import Path
from facelt.alignment.photographs import find_photographs
from facelt.alignment.detect import DetectionOptions, detect_all
if __name__ == "__main__":
    answers = detect_all(find_photographs(Path(sys.argv[1])), DetectionOptions(sys.argv[2]), workers=1)
    next(answers)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_command_that_is_killed(yunet, real_data, root, tmp_path):
    (tmp_path / "busy.py").write_text(KEPT_BUSY)
    words = [sys.executable, tmp_path / "busy.py", real_data / "photos", yunet]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    ) as command:
        (worker,) = map(int, command.stdout.readline().split())
        assert is_running(worker)
        command.kill()
    waited = time.monotonic()
    while is_running(worker) and time.monotonic() < waited + 60:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    """Returns whether the process is alive; a zombie counts as exited."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

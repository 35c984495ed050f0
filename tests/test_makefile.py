"""Makefile: the Python version is checked first, and an incomplete environment or installation is not used.

Interpreters are scripts that write their arguments to a file, so that nothing is installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def project(root, tmp_path) -> Path:
    """A folder with the Makefile and a pyproject.toml."""
    shutil.copy(root / "Makefile", tmp_path / "Makefile")
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def write_python(path: Path, version: str, log: Path, *, has_pip: bool = True, pip_status: int = 0) -> None:
    """Writes an interpreter of a version that runs `-c PROGRAM`, makes environments, and records its other calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pretend = f"import sys; sys.version_info = ({version}, 0); sys.modules['pip'] = {'sys' if has_pip else None}\n"
    path.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exec '{sys.executable}' -S -E -c "{pretend}$2"
echo "$@" >> '{log}'
if [ "$2" = venv ]; then
  rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; cp "$0" "$4/bin/facelt"
fi
[ "$2" != pip ] || exit {pip_status}
"""
    )
    path.chmod(0o755)


def make(project: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *words], cwd=project, capture_output=True, text=True, timeout=60)


def calls(project: Path) -> list[str]:
    log = project / "calls"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("target", ["demo", "test", "gpu-check", "test-milvus", "test-insightface"])
def test_an_old_python_is_refused_before_an_environment_is_made(project, target):
    write_python(project / "python3.10", "3, 10", project / "calls")
    result = make(project, target, "PYTHON=./python3.10")
    assert result.returncode != 0
    assert "facelt needs Python 3.11 or newer; ./python3.10 is Python 3.10" in result.stderr
    assert f"make {target} PYTHON=python3.12" in result.stderr
    assert calls(project) == []
    assert not list(project.glob(".venv*"))


@pytest.mark.parametrize(("version", "has_pip"), [("3, 10", True), ("3, 12", False)])
def test_an_unusable_environment_is_made_again(project, version, has_pip):
    write_python(project / ".venv/bin/python", version, project / "calls", has_pip=has_pip)
    write_python(project / "python3.12", "3, 12", project / "calls")
    result = make(project, "demo", "PYTHON=./python3.12")
    assert result.returncode == 0, result.stderr
    assert calls(project)[0] == "-m venv --clear .venv"
    assert calls(project)[-1] == "demo"


def test_an_interrupted_installation_is_continued_and_a_complete_one_kept(project):
    write_python(project / "python3.12", "3, 12", project / "calls", pip_status=1)
    assert make(project, "demo", "PYTHON=./python3.12").returncode != 0
    assert [line.split()[1] for line in calls(project)] == ["venv", "pip"]
    # The environment is complete, the installation is not.
    write_python(project / ".venv/bin/python", "3, 12", project / "calls")
    shutil.copy(project / ".venv/bin/python", project / ".venv/bin/facelt")
    assert make(project, "demo", "PYTHON=./python3.12").returncode == 0
    assert [line.split()[1:2] for line in calls(project)] == [["venv"], ["pip"], ["pip"], []]
    # pip shows its progress.
    assert not any("quiet" in line for line in calls(project))
    assert make(project, "demo", "PYTHON=./python3.12").returncode == 0
    assert calls(project)[4:] == ["demo"]


def test_the_notebook_is_made_again_from_a_finished_demo_only(project):
    write_python(project / "python3.12", "3, 12", project / "calls")
    (project / "runs/demo").mkdir(parents=True)
    for expected in (["tests.config.reference_page"], ["tests.config.reference_page", "tests.notebook"]):
        (project / "calls").unlink(missing_ok=True)
        result = make(project, "docs", "PYTHON=./python3.12")
        assert result.returncode == 0, result.stderr
        assert [line.split()[1] for line in calls(project) if "-m tests." in line] == expected
        (project / "runs/demo/known_people").mkdir(exist_ok=True)
        (project / "runs/demo/known_people/report.json").touch()

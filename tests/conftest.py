"""Fixtures shared by all tests: where the reference outputs and the real data live."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """The folder of reference outputs and real data: FACELT_SHARED, by default ../shared beside the project."""
    return Path(os.environ.get("FACELT_SHARED", ROOT.parent / "shared")).resolve()


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference outputs of the authors' code and of MXNet."""
    folder = shared_folder() / "golden"
    if not folder.is_dir():
        pytest.skip(f"reference outputs are absent: {folder} (set FACELT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real faces and lists, for tests only."""
    folder = shared_folder() / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder} (set FACELT_SHARED)")
    return folder

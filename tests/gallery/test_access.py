"""Permissions of a gallery's files: the path and the missing permission are named, without a traceback."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from facelt.errors import UserError
from facelt.gallery.local import LocalGallery
from tests.gallery.conftest import some_samples

OTHER_USER = 65534


@contextmanager
def without_privileges():
    """Runs the block as another user if this one is root, whom no permission stops."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.setegid(OTHER_USER)
            os.seteuid(OTHER_USER)
        yield
    finally:
        if is_root:
            os.seteuid(0)
            os.setegid(0)


@pytest.fixture
def shared(model_spec):
    """The path of a gallery that every user may read and write; pytest's own folders admit their owner only."""
    folder = Path(tempfile.mkdtemp())
    gallery = LocalGallery.create(folder / "outer" / "gallery", model_spec)
    gallery.upsert(some_samples(6, 3))
    gallery.close()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    yield gallery.path
    for path in (folder, folder / "outer"):
        path.chmod(0o777)
    shutil.rmtree(folder)


def test_a_user_with_permissions_is_admitted(shared):
    probe_PD = some_samples(1, 1).embedding_ND
    with without_privileges():
        for write in (False, True):
            opened = LocalGallery(shared, write=write)
            assert opened.search(probe_PD, 1).candidates[0][0].key == "k0"
            opened.close()


@pytest.mark.parametrize(
    ("name", "mode", "write", "needed"),
    [
        ("..", 0o666, False, "search"),
        (".", 0o000, False, "read and write and search"),
        (".", 0o555, False, "write"),
        ("gallery.sqlite", 0o000, False, "read"),
        ("gallery.sqlite", 0o444, True, "write"),
        ("writer.lock", 0o444, True, "write"),
        ("index", 0o000, False, "read and search"),
        ("index", 0o555, True, "write"),
        ("index/bound.json", 0o222, False, "read"),
    ],
)
def test_the_path_and_the_missing_permission_are_named(shared, name, mode, write, needed):
    path = (shared / name).resolve()
    path.chmod(mode)
    try:
        advice = "belongs to the user root" if os.geteuid() == 0 else "chmod u[+]"
        with without_privileges(), pytest.raises(UserError, match=f"^{path}: needs {needed} permission; .*{advice}"):
            LocalGallery(shared, write=write).close()
    finally:
        path.chmod(0o777)


def test_a_gallery_cannot_be_created_where_the_user_may_not_write(shared, model_spec):
    shared.parent.chmod(0o555)
    with without_privileges(), pytest.raises(UserError, match=r"new: cannot be created \(Permission denied\)"):
        LocalGallery.create(shared.parent / "new", model_spec)

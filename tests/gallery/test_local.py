"""Local gallery: backend conformance, its files, and one writer with several readers."""

import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.backend import GalleryCounts
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples
from tests.gallery.conformance import Conformance
from tests.gallery.conftest import DIMENSION, some_samples

SECOND_WRITER = """
import sys
from facelt.gallery import LocalGallery
from facelt.errors import UserError
try:
    LocalGallery(sys.argv[1], write=True)
except UserError as error:
    print(error)
reader = LocalGallery(sys.argv[1])
print(*reader.count())
"""


class TestLocalGallery(Conformance):
    @pytest.fixture
    def backend(self, gallery):
        return gallery


def test_only_the_owner_reads_the_files(tmp_path, model_spec):
    before = os.umask(0)
    try:
        made = LocalGallery.create(tmp_path / "new" / "gallery", model_spec)
        made.upsert(some_samples(5, 2))
        made.snapshot(tmp_path / "copy")
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "bound.json"]
        assert {path.name for path in files} >= {"gallery.sqlite", "gallery.sqlite-wal", "writer.lock"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        for folder in (tmp_path / "new" / "gallery", tmp_path / "copy"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        made.close()
    finally:
        os.umask(before)


def test_the_second_writer_is_refused_with_the_first_ones_process(gallery):
    gallery.upsert(some_samples(6, 3))
    done = subprocess.run(
        [sys.executable, "-c", SECOND_WRITER, gallery.path], capture_output=True, text=True, timeout=60
    )
    assert f"process {os.getpid()} is writing to this gallery" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "3 6"


def test_a_reader_sees_what_the_writer_commits(gallery):
    samples = some_samples(40, 8)
    gallery.upsert(samples.select(slice(0, 10)))
    reader = LocalGallery(gallery.path)
    assert reader.search(samples.embedding_ND[:1], 1).compared == 10
    gallery.upsert(samples.select(slice(10, 40)))
    assert reader.search(samples.embedding_ND[25:26], 1).candidates[0][0].key == "k25"
    gallery.remove(keys=["k25"])
    assert reader.search(samples.embedding_ND[25:26], 1).candidates[0][0].key != "k25"
    assert reader.count() == GalleryCounts(8, 39)
    for forbidden in (
        lambda: reader.upsert(samples),
        lambda: reader.remove(keys=["k1"]),
        lambda: reader.set_setting("a", 1),
        lambda: reader.snapshot(gallery.path.with_name("copy")),
        reader.rebuild,
    ):
        with pytest.raises(UserError, match="read-only"):
            forbidden()
    reader.close()


def test_a_reader_searches_what_the_index_has_not_got_yet(gallery, monkeypatch):
    """A writer has committed but not yet updated the index, and holds the lock."""
    samples = some_samples(30, 5)
    gallery.upsert(samples.select(slice(0, 20)))
    with monkeypatch.context() as patch:
        patch.setattr(gallery._index, "sync", lambda *args, **options: None)
        gallery.upsert(samples.select(slice(20, 30)))
    reader = LocalGallery(gallery.path)
    result = reader.search(samples.embedding_ND, 2)
    assert [row[0].key for row in result.candidates] == samples.keys
    assert result.compared == 30
    reader.close()


def test_a_reader_waits_for_a_writer_that_removes_and_then_says_so(gallery, monkeypatch):
    samples = some_samples(10, 5)
    gallery.upsert(samples)
    with monkeypatch.context() as patch:
        patch.setattr(gallery._index, "sync", lambda *args, **options: None)
        gallery.remove(keys=["k3"])
    monkeypatch.setattr("facelt.gallery.local.WRITER_TIMEOUT_SECONDS", 0.1)
    reader = LocalGallery(gallery.path)
    with pytest.raises(UserError, match="out of date"):
        reader.search(samples.embedding_ND, 1)
    reader.close()


@pytest.mark.parametrize("kind", ["meta", "meta_unit"])
def test_each_kind_is_compared_in_its_own_way(tmp_path, kind):
    made = LocalGallery.create(tmp_path / "g", ModelSpec("m", "0" * 64, kind, 2))
    made.upsert(Samples(["long", "near"], ["long", "near"], np.array([[0.6, 0.6], [0.1, 0.0]])))
    (row,) = made.search(np.array([[0.5, 0.1]]), 2).candidates
    # Inner products 0.36 and 0.05, cosines 0.83 and 0.98.
    assert [candidate.person for candidate in row] == (["long", "near"] if kind == "meta" else ["near", "long"])
    assert row[0].score == pytest.approx(0.36 if kind == "meta" else 0.5 / np.hypot(0.5, 0.1), abs=1e-6)
    made.close()


def test_unit_embeddings_are_kept_to_the_last_bit(gallery):
    row_ND = some_samples(3000, 1).embedding_ND
    row_ND = (row_ND / np.linalg.norm(row_ND.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
    gallery.upsert(Samples([f"k{i}" for i in range(3000)], ["a"] * 3000, row_ND))
    np.testing.assert_array_equal(np.concatenate([part.embedding_ND for part in gallery.samples()]), row_ND)


def test_people_whose_samples_cancel_have_no_template(gallery):
    row_ND = np.eye(DIMENSION)[:2]
    gallery.upsert(Samples(["a", "b", "c"], ["both", "both", "one"], np.stack([row_ND[0], -row_ND[0], row_ND[1]])))
    (row,) = gallery.search(row_ND[:1], 2, templates=True).candidates
    assert [candidate.person for candidate in row] == ["one"]


def test_folders_that_are_no_gallery(tmp_path, model_spec):
    with pytest.raises(UserError, match=r"no gallery here .*; create one with `facelt gallery create`"):
        LocalGallery(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(UserError, match="is not empty"):
        LocalGallery.create(tmp_path / "other", model_spec)
    (tmp_path / "other" / "gallery.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match=r"gallery\.sqlite: file is not a database"):
        LocalGallery(tmp_path / "other")


def test_a_snapshot_within_the_gallery_is_refused(gallery):
    with pytest.raises(UserError, match="is inside the gallery"):
        gallery.snapshot(gallery.path / "index" / "copy")

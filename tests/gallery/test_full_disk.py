"""A full disk: nothing is lost or half-written, and the message names the file."""

import errno
import os
import resource
from contextlib import closing, contextmanager

import pytest

from facelt.errors import UserError
from facelt.gallery import mapped_index
from facelt.gallery.gallery import Gallery
from facelt.gallery.local import LocalGallery
from facelt.gallery.samples import Samples
from tests.gallery.conftest import some_samples


@contextmanager
def largest_file(size):
    """Makes the system refuse to write to any file beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def long_samples(count=200):
    samples = some_samples(count, 20)
    return Samples(samples.keys, samples.people, samples.embedding_ND, [{"note": "x" * 2000}] * count)


def keys_of(path):
    with closing(LocalGallery(path)) as reader:
        assert not reader.check_integrity()
        return [key for part in reader.samples() for key in part.keys]


def test_an_enrolment_that_fills_the_disk_keeps_whole_transactions_and_is_completed_by_the_same_command(
    gallery, monkeypatch
):
    monkeypatch.setattr("facelt.gallery.gallery.ENROL_ROWS", 50)
    samples = long_samples()
    gallery.close()
    with (
        Gallery.open(gallery.path, write=True) as opened,
        largest_file(400_000),
        pytest.raises(UserError, match=r"gallery\.sqlite: .*free some space.*\((50|100|150) of 200 samples") as raised,
    ):
        opened.enroll(samples)
    enrolled = keys_of(gallery.path)
    done = int(str(raised.value).split("(")[-1].split()[0])
    assert enrolled == samples.keys[:done]
    with Gallery.open(gallery.path, write=True) as opened:
        opened.enroll(samples)
        result = opened.identify(samples.embedding_ND, threshold=0.99)
    assert [probe.candidates[0].key for probe in result.probes] == samples.keys
    assert sorted(keys_of(gallery.path)) == sorted(samples.keys)


@pytest.mark.parametrize("rows_before", [0, 5])
def test_an_index_that_cannot_be_written_is_named_and_written_later(gallery, monkeypatch, rows_before):
    samples = some_samples(30, 10)
    gallery.upsert(samples.select(slice(0, rows_before)))

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(mapped_index, "_write_all", refuse)
        with pytest.raises(UserError, match=r"index: cannot be written \(No space left on device\); the database is"):
            gallery.upsert(samples.select(slice(rows_before, 30)))
    files = {path.name for path in (gallery.path / "index").iterdir()}
    assert len(files) <= 3
    # Neither this process nor the next one misses a sample.
    for opened in (gallery, None):
        opened = opened or LocalGallery(gallery.path, write=True)
        assert [row[0].key for row in opened.search(samples.embedding_ND, 1).candidates] == samples.keys
        opened.close()
    assert keys_of(gallery.path) == samples.keys


def test_a_gallery_that_cannot_be_created_leaves_nothing(tmp_path, model_spec):
    for folder in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with largest_file(50_000), pytest.raises(UserError, match=r"gallery\.sqlite: .*free some space"):
            LocalGallery.create(folder, model_spec)
        assert not folder.exists() or not any(folder.iterdir())
    LocalGallery.create(tmp_path / "new", model_spec).close()


def test_a_snapshot_that_fills_the_disk_is_neither_kept_nor_listed(gallery, tmp_path):
    gallery.upsert(long_samples())
    # Closing empties the log, so that the list of snapshots can be written.
    gallery.close()
    with closing(LocalGallery(gallery.path, write=True)) as writer:
        with largest_file(200_000), pytest.raises(UserError, match="free some space"):
            writer.snapshot(tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        assert writer.info()["snapshots"] == []
        assert not writer.remove(people=["person 1"]).unfinished
        writer.snapshot(tmp_path / "copy")
        expected = [part.keys for part in writer.samples()]
    with closing(LocalGallery(tmp_path / "copy")) as copy:
        assert [part.keys for part in copy.samples()] == expected

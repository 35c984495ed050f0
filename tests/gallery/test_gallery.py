"""The Gallery class: the documented example, refused input, threads and forked processes."""

import doctest
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.backend import GalleryCounts
from facelt.gallery.gallery import Gallery
from facelt.gallery.index import IndexSnapshot
from facelt.gallery.local import LocalGallery
from facelt.gallery.samples import Samples
from tests.gallery.conftest import DIMENSION, some_samples

OPEN_TO_WRITE = "import sys; from facelt.gallery import LocalGallery; LocalGallery(sys.argv[1], write=True).close()"


@pytest.fixture
def opened(gallery):
    return Gallery(gallery)


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(sys.modules[Gallery.__module__]) == (0, 6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "k0"}, "key 'k0' occurs more than once"),
        ({"value": np.nan}, "sample 'k9': its embedding is not finite"),
        ({"person": ""}, "person ''"),
        ({"note": {"x": {1}}}, "sample 'k9': its metadata cannot be stored"),
    ],
)
def test_a_mistake_near_the_end_enrols_no_one(opened, monkeypatch, row, message):
    monkeypatch.setattr("facelt.gallery.gallery.ENROL_ROWS", 4)
    samples = some_samples(10, 5)
    keys, people, notes = list(samples.keys), list(samples.people), [{}] * 10
    keys[9], people[9], notes[9] = row.get("key", "k9"), row.get("person", "a"), row.get("note", {})
    samples.embedding_ND[9] *= row.get("value", 1)
    with pytest.raises(UserError, match=message):
        opened.enroll(Samples(keys, people, samples.embedding_ND, notes))
    assert opened.count() == GalleryCounts(0, 0)


def test_a_bad_probe_is_named_by_its_place_among_all(opened, monkeypatch):
    monkeypatch.setattr("facelt.gallery.gallery.PROBE_ROWS", 4)
    opened.enroll(some_samples(5, 5))
    probe_PD = some_samples(10, 1).embedding_ND
    probe_PD[9, 0] = np.inf
    with pytest.raises(UserError, match="probe 9: its embedding is not finite"):
        opened.identify(probe_PD, threshold=0.5)
    with pytest.raises(UserError, match="probe 9: its embedding is not finite"):
        opened.calibrate(probe_PD, ["person 1"] * 2 + ["stranger"] * 8, 0.5)


def test_arguments_that_cannot_be_meant(opened):
    opened.enroll(some_samples(5, 5))
    probe_PD = some_samples(2, 1).embedding_ND
    with pytest.raises(ValueError, match="top is 0"):
        opened.identify(probe_PD, threshold=0.5, top=0)
    with pytest.raises(UserError, match="threshold is NaN"):
        opened.identify(probe_PD, threshold=float("nan"))
    with pytest.raises(ValueError, match="reachability_P has 1 entries for 2 probes"):
        opened.identify(probe_PD, threshold=0.5, reachability_P=np.ones(1))
    with pytest.raises(ValueError, match="identities has 3 entries for 2 probes"):
        opened.calibrate(probe_PD, ["a", "b", "c"], 0.5)


def test_people_below_the_threshold_cost_no_further_search(opened, monkeypatch):
    """One person with many samples; the other people are below the threshold, or are requested as well."""
    random = np.random.default_rng(0)
    centre_D = random.standard_normal(DIMENSION)
    crowd_ND = centre_D + 0.1 * random.standard_normal((8, DIMENSION))
    # At right angles to the centre.
    other_ND = random.standard_normal((20, DIMENSION))
    other_ND -= np.outer(other_ND @ centre_D, centre_D) / (centre_D @ centre_D)
    people = ["crowd"] * 8 + [f"person {i}" for i in range(20)]
    opened.enroll(Samples([f"k{i}" for i in range(28)], people, np.concatenate([crowd_ND, other_ND])))
    searches = []
    nearest = IndexSnapshot.nearest
    monkeypatch.setattr(IndexSnapshot, "nearest", lambda *arguments: searches.append(arguments) or nearest(*arguments))
    (answer,) = opened.identify(centre_D[None], threshold=0.5, top=2).probes
    assert [candidate.person for candidate in answer.candidates] == ["crowd"]
    assert len(searches) == 2
    (answer,) = opened.identify(other_ND[:1], threshold=0.99, top=2).probes
    assert [candidate.person for candidate in answer.candidates] == ["person 0"]
    assert len(searches) == 3
    (answer,) = opened.identify(centre_D[None], threshold=-1, top=2).probes
    assert len(answer.candidates) == 2
    assert len(searches) == 5


def test_threads_share_one(opened):
    samples = some_samples(200, 50)
    opened.enroll(samples)

    def work(number):
        if number % 8 == 0:
            opened.enroll(some_samples(5, 5, seed=number, prefix=f"new{number}-"))
        elif number % 8 == 4:
            assert opened.remove(keys=[f"k{150 + number}"]).samples == 1
        result = opened.identify(samples.embedding_ND[:20], threshold=0.99)
        return [answer.candidates[0].key for answer in result.probes], opened.count().samples >= 190

    with ThreadPoolExecutor(8) as pool:
        for keys, is_whole in pool.map(work, range(48)):
            assert keys == samples.keys[:20]
            assert is_whole
    assert opened.count().samples == 200 + 6 * 5 - 6
    assert not opened.backend.check_integrity()


def test_threads_with_a_reader_each(gallery):
    samples = some_samples(100, 50)
    gallery.upsert(samples)

    def work(_):
        with Gallery.open(gallery.path) as reader:
            return [answer.candidates[0].key for answer in reader.identify(samples.embedding_ND, threshold=0.99).probes]

    with ThreadPoolExecutor(8) as pool:
        assert all(keys == samples.keys for keys in pool.map(work, range(32)))


def test_a_forked_process_must_open_the_gallery_again(gallery):
    samples = some_samples(10, 5)
    gallery.upsert(samples)
    reading, writing = os.pipe()
    stopping, stop = os.pipe()
    child = os.fork()
    if not child:
        try:
            gallery.search(samples.embedding_ND, 1)
        except UserError as error:
            os.write(writing, str(error).encode())
        gallery.close()
        own = LocalGallery(gallery.path)
        os.write(writing, f" own: {own.count().samples}".encode())
        own.close()
        os.close(writing)
        os.close(stop)
        os.read(stopping, 1)
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            assert (
                pipe.read()
                == f"{gallery.path}: opened by process {os.getpid()}; open it again in the forked process own: 10"
            )
        # Closing in the child does not release the parent's lock, and the child holds no lock.
        gallery.upsert(some_samples(3, 3, prefix="more"))
        command = [sys.executable, "-c", OPEN_TO_WRITE, gallery.path]
        assert "is writing to this gallery" in subprocess.run(command, capture_output=True, text=True).stderr
        gallery.close()
        assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    finally:
        os.close(stop)
        os.waitpid(child, 0)
        os.close(stopping)

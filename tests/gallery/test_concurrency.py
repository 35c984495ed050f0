"""Concurrent readers and a writer: samples that are never removed are found in every search, with their person."""

import os
import signal

import numpy as np
import pytest

from facelt.gallery.index import IndexSnapshot
from facelt.gallery.local import LocalGallery
from facelt.search.exact import BadRow
from tests.gallery.conftest import some_samples

STEADY = some_samples(200, 200, prefix="steady")
SEARCHES = 40


def write_for_ever(path, pipe):
    gallery = LocalGallery(path, write=True)
    os.write(pipe, b"+")
    for step in range(10**6):
        # Before, between and after the permanent samples, so that removals move rows.
        gallery.upsert(some_samples(30, 10, seed=step + 1, prefix=f"step{step}-"))
        if step % 3 == 2:
            gallery.remove(people=[f"person {who}" for who in range(0, 10)][: 5 + step % 5])


def test_a_reader_during_writes(gallery):
    gallery.upsert(some_samples(50, 50, seed=10**6, prefix="first"))
    people = [f"steady {i}" for i in range(200)]
    STEADY.people[:] = people
    gallery.upsert(STEADY)
    gallery.close()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            write_for_ever(gallery.path, writing)
        finally:
            os._exit(1)
    try:
        assert os.read(reading, 1) == b"+"
        reader = LocalGallery(gallery.path)
        revisions = set()
        for _ in range(SEARCHES):
            revisions.add(reader.info()["revision"])
            result = reader.search(STEADY.embedding_ND, 3)
            assert [row[0].key for row in result.candidates] == STEADY.keys
            assert [row[0].person for row in result.candidates] == people
            assert all(np.diff([candidate.score for candidate in row]).max() <= 0 for row in result.candidates)
        assert len(revisions) > 1
        reader.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_search_that_meets_the_zeros_of_a_removal_is_made_again(gallery, monkeypatch):
    gallery.upsert(some_samples(20, 20))
    whole, calls = IndexSnapshot.nearest, []

    def met_zeros(self, query_PD, t):
        calls.append(t)
        if len(calls) == 1:
            raise BadRow("database", 7, "has is zero")
        return whole(self, query_PD, t)

    monkeypatch.setattr(IndexSnapshot, "nearest", met_zeros)
    result = gallery.search(some_samples(20, 20).embedding_ND[:3], 1)
    assert [row[0].key for row in result.candidates] == ["k0", "k1", "k2"]
    assert len(calls) > 1


def test_a_probe_that_cannot_be_scored_is_still_reported(gallery, monkeypatch):
    gallery.upsert(some_samples(20, 20))

    def bad(self, query_PD, t):
        raise BadRow("query", 0, "has is zero")

    monkeypatch.setattr(IndexSnapshot, "nearest", bad)
    with pytest.raises(BadRow, match="row 0 of the query"):
        gallery.search(some_samples(1, 1).embedding_ND, 1)

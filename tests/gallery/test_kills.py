"""Crash safety of galleries: a short run of benchmarks/gallery_kills.py."""

import pytest

from benchmarks.gallery_kills import MODEL_SPEC, Operation, expected_samples, run_kills, stored_samples
from facelt.gallery.gallery import Gallery


def test_no_kill_loses_or_revives_a_sample(tmp_path):
    counts = run_kills(tmp_path, kills=12, seed=3)
    assert counts["kills"] == 12
    assert counts["kills within an operation"] > 3


def test_the_check_would_see_a_lost_sample(tmp_path):
    """The expected samples are those that the operations leave in a gallery."""
    gallery = Gallery.create(tmp_path / "gallery", MODEL_SPEC)
    enrolled = {}
    for number in range(8):
        operation = Operation(3, number)
        operation.carry_out(gallery, tmp_path)
        enrolled = operation.after(enrolled)
    assert stored_samples(gallery.backend) == expected_samples(enrolled)
    gallery.remove(keys=[next(iter(enrolled))])
    assert stored_samples(gallery.backend) != expected_samples(enrolled)
    gallery.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("benchmarks.gallery_kills.LONGEST_SECONDS", 0.15)

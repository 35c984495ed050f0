"""Integrity of a gallery: every change that another program makes to its content is found and named."""

import hashlib
import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.gallery import Gallery
from facelt.gallery.local import LocalGallery
from facelt.gallery.samples import Samples
from facelt.gallery.sqlite import SCHEMA_VERSION
from tests.gallery.conftest import some_samples


def noted_samples(count=12, people=4):
    samples = some_samples(count, people)
    notes = [{"note": f"seen at gate {i}"} for i in range(count)]
    return Samples(samples.keys, samples.people, samples.embedding_ND, notes, [{"store": "visitors"}] * count)


@pytest.fixture
def filled(gallery, tmp_path):
    """The path of a closed gallery with notes, two thresholds and a snapshot."""
    with closing(gallery), Gallery(gallery) as opened:
        opened.enroll(noted_samples())
        strangers = some_samples(60, 30, seed=7, prefix="s")
        identities = [f"stranger {i % 30}" for i in range(60)]
        for templates in (False, True):
            opened.calibrate(strangers.embedding_ND, identities, 0.1, templates=templates)
        opened.snapshot(tmp_path / "copy")
    return gallery.path


def change(path, statement, *values):
    """Changes the database as another program would."""
    with closing(sqlite3.connect(path / "gallery.sqlite")) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


def defects_of(path):
    with closing(LocalGallery(path)) as reader:
        return "\n".join(reader.check_integrity())


def test_a_changed_digit_of_a_threshold_is_found_and_never_used(filled):
    assert not defects_of(filled)
    with closing(sqlite3.connect(filled / "gallery.sqlite")) as connection:
        (text,) = connection.execute("SELECT value FROM settings WHERE name = 'threshold-samples'").fetchone()
    offset = text.index('"threshold": ') + len('"threshold": 0.1')
    other = "5" if text[offset] != "5" else "6"
    change(
        filled,
        "UPDATE settings SET value = ? WHERE name = 'threshold-samples'",
        text[:offset] + other + text[offset + 1 :],
    )
    message = r"gallery\.sqlite: is damaged: the setting threshold-samples was changed .* facelt gallery calibrate"
    assert "the setting threshold-samples was changed" in defects_of(filled)
    probe_PD = some_samples(3, 3).embedding_ND
    with Gallery.open(filled, write=True) as opened:
        with pytest.raises(UserError, match=message):
            opened.identify(probe_PD)
        assert opened.identify(probe_PD, templates=True).probes
        opened.calibrate(some_samples(60, 30, seed=7).embedding_ND, [f"s{i}" for i in range(60)], 0.1)
        assert opened.identify(probe_PD).probes
    assert not defects_of(filled)


@pytest.mark.parametrize(
    ("statement", "defect"),
    [
        ("UPDATE people SET name = 'persom 2' WHERE name = 'person 2'", "names, notes or dates differ"),
        ("UPDATE samples SET key = 'K3' WHERE key = 'k3'", "names, notes or dates differ"),
        ("UPDATE samples SET metadata = replace(metadata, 'gate 5', 'gate 6') WHERE key = 'k5'", "notes or dates"),
        ("UPDATE samples SET provenance = replace(provenance, 'v', 'w') WHERE key = 'k5'", "notes or dates"),
        ("UPDATE samples SET enrolled = replace(enrolled, '20', '19') WHERE key = 'k5'", "notes or dates"),
        ("UPDATE samples SET person = 3 WHERE key = 'k0'", "embeddings differ"),
        ("UPDATE settings SET name = 'threshold-tamplates' WHERE name = 'threshold-templates'", "list of settings"),
        ("DELETE FROM settings WHERE name = 'threshold-templates'", "list of settings"),
        ("UPDATE snapshots SET path = replace(path, 'copy', 'cope')", "list of settings, snapshots"),
        ("INSERT INTO removing VALUES ('person 1', NULL)", "pending removals"),
        ("UPDATE state SET samples = samples - 1", "counts or digests were changed"),
        ("UPDATE state SET gallery = replace(gallery, substr(gallery, 1, 1), 'x')", "counts or digests were changed"),
        ("DELETE FROM state", "0 states instead of one"),
    ],
)
def test_a_changed_letter_is_found(filled, statement, defect):
    change(filled, statement)
    assert defect in defects_of(filled)


@pytest.mark.parametrize(
    ("statement", "defect"),
    [
        ("UPDATE settings SET name = 'contrast' WHERE name = 'contract'", "its model specification is missing"),
        ("UPDATE settings SET value = replace(value, 'oltr', 'alto') WHERE name = 'contract'", "contract was changed"),
    ],
)
def test_a_gallery_without_its_model_is_not_opened(filled, statement, defect):
    change(filled, statement)
    for write in (False, True):
        with pytest.raises(UserError, match=rf"gallery\.sqlite: is damaged: .*{defect}.*; restore a snapshot"):
            LocalGallery(filled, write=write)


def test_a_swap_of_two_notes_is_found(filled):
    for statement in (
        "UPDATE samples SET metadata = (SELECT metadata FROM samples WHERE key = 'k1') WHERE key = 'k2'",
        """UPDATE samples SET metadata = '{"note": "seen at gate 2"}' WHERE key = 'k1'""",
    ):
        change(filled, statement)
    assert "notes or dates differ" in defects_of(filled)


def test_a_changed_record_is_not_covered_up_by_the_next_change(filled):
    change(filled, "UPDATE snapshots SET path = '/elsewhere'")
    with (
        closing(LocalGallery(filled, write=True)) as writer,
        pytest.raises(UserError, match=r"gallery\.sqlite: is damaged: its list of settings.*restore a snapshot"),
    ):
        writer.upsert(some_samples(2, 2, prefix="new"))
    assert "list of settings, snapshots" in defects_of(filled)


def test_the_digest_of_texts_is_the_sum_over_what_is_enrolled(gallery):
    samples = noted_samples()
    gallery.upsert(samples)
    gallery.upsert(Samples(["k3", "new"], ["Zo\u00eb", "person 1"], samples.embedding_ND[:2]))
    gallery.remove(people=["person 2"], keys=["k1"])
    gallery.close()
    with closing(sqlite3.connect(gallery.path / "gallery.sqlite")) as connection:
        names = dict(connection.execute("SELECT id, name FROM people"))
        rows = connection.execute("SELECT id, key, person, metadata, provenance, enrolled FROM samples").fetchall()
        (stored,) = connection.execute("SELECT text_digest FROM state").fetchone()
    assert len(rows) == 9
    total = 0
    for number, key, person, *texts in rows:
        record = json.dumps([number, key, names[person], *texts])
        total += int(hashlib.sha256(record.encode()).hexdigest(), 16)
    assert int(stored, 16) == total % 2**256


def test_a_gallery_of_the_previous_schema_is_converted_by_the_next_writer(filled, tmp_path):
    with closing(sqlite3.connect(filled / "gallery.sqlite")) as connection, connection:
        for column in ("text_digest", "record_digest", "state_digest"):
            connection.execute(f"ALTER TABLE state DROP COLUMN {column}")
        connection.execute("ALTER TABLE settings DROP COLUMN digest")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
    with pytest.raises(UserError, match=r"earlier version of facelt; convert it with `facelt gallery rebuild"):
        LocalGallery(filled)
    samples = noted_samples()
    with Gallery.open(filled, write=True) as opened:
        assert not opened.backend.check_integrity()
        assert opened.calibration().wanted == 0.1
        result = opened.identify(samples.embedding_ND, threshold=0.99)
        assert [probe.candidates[0].key for probe in result.probes] == samples.keys
        opened.enroll(some_samples(2, 2, prefix="new"))
    assert not defects_of(filled)
    change(filled, "UPDATE people SET name = 'persom 2' WHERE name = 'person 2'")
    assert "names, notes or dates differ" in defects_of(filled)


def test_a_snapshot_has_its_digests(filled, tmp_path):
    with closing(LocalGallery(tmp_path / "copy", write=True)) as copy:
        assert not copy.check_integrity()
        assert copy.info()["snapshots"] == []
        np.testing.assert_array_equal(
            np.concatenate([part.metadata for part in copy.samples()]), noted_samples().metadata
        )


def content_of(gallery):
    """All that a user can see of a gallery."""
    samples = [
        (part.keys, part.people, part.metadata, part.provenance, part.embedding_ND.tobytes())
        for part in gallery.samples()
    ]
    settings = [gallery.setting(f"threshold-{kind}") for kind in ("samples", "templates")]
    return samples, list(gallery.people()), settings, gallery.info()["snapshots"], str(gallery.model_spec)


FLIPS = 150


def flipped(content, random, offsets):
    """Yields copies of a file's bytes with one flipped bit each, at random offsets."""
    for offset, bit in zip(random.choice(offsets, FLIPS, replace=False), random.integers(0, 8, FLIPS), strict=True):
        changed = bytearray(content)
        changed[offset] ^= 1 << bit
        yield bytes(changed)


@pytest.mark.parametrize("name", ["gallery.sqlite", "index/bound.json"])
def test_a_flipped_bit_is_found_or_changes_nothing_that_a_user_sees(filled, name):
    """Without a traceback, in one line that names the file and says what to do."""
    with closing(LocalGallery(filled)) as reader:
        expected = content_of(reader)
    path = filled / name
    content = path.read_bytes()
    random = np.random.default_rng(11)
    # Most of a small database is empty pages.
    offsets = np.flatnonzero(np.frombuffer(content, np.uint8))
    num_found = 0
    for changed in flipped(content, random, offsets):
        path.write_bytes(changed)
        try:
            with closing(LocalGallery(filled)) as reader:
                defects = reader.check_integrity()
                if not defects:
                    assert content_of(reader) == expected
        except UserError as error:
            defects = [str(error)]
        for defect in defects:
            assert defect.startswith(f"{path}: "), defect
            assert "\n" not in defect
            assert any(advice in defect for advice in ("restore a snapshot", "facelt gallery rebuild")), defect
        num_found += bool(defects)
    assert num_found > 0.5 * FLIPS


@pytest.mark.parametrize("templates", [False, True])
@pytest.mark.parametrize("is_locked", [False, True])
def test_a_lost_person_is_reported_instead_of_waiting_for_a_writer(filled, templates, is_locked):
    probe_PD = some_samples(12, 4).embedding_ND
    change(filled, "DELETE FROM people WHERE name = 'person 1'")
    with closing(LocalGallery(filled, write=True)) as writer, closing(LocalGallery(filled)) as reader:
        if not is_locked:
            writer.close()
        with pytest.raises(UserError, match=r"gallery\.sqlite: is damaged: the person of the sample 'k1' is missing"):
            reader.search(probe_PD, 4, templates=templates)
        assert "refers to a missing person" in "\n".join(reader.check_integrity())


def test_an_index_that_contradicts_the_database_after_its_rebuilding_is_reported(filled, monkeypatch):
    with closing(LocalGallery(filled)) as reader:
        monkeypatch.setattr(reader, "_sample_candidates", lambda *arguments: None)
        with pytest.raises(UserError, match=r"gallery\.sqlite: contradicts the index .*; run facelt gallery verify"):
            reader.search(some_samples(1, 1).embedding_ND, 1)

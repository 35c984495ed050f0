"""Removal: no file of a gallery or of its snapshots still contains a removed sample."""

import base64
import os
import re
import signal
from contextlib import closing

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery import free_space
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples
from facelt.gallery.sqlite import Database
from tests.gallery.conftest import DIMENSION, bytes_in, some_samples


def stored(row_D):
    return (row_D / np.linalg.norm(row_D.astype(np.float64))).astype("<f4").tobytes()


@pytest.fixture
def named(gallery):
    """A gallery of 400 samples with long random names, so that database pages are split and merged."""
    random = np.random.default_rng(2)
    row_ND = random.standard_normal((400, DIMENSION)).astype(np.float32)
    people = [f"name-{random.integers(2**62):020d}" for _ in range(200)] * 2
    keys = [f"photo-{random.integers(2**62):020d}.jpg" for _ in range(400)]
    notes = [{"note": f"note-{random.integers(2**62):020d}"} for _ in range(400)]
    samples = Samples(keys, people, row_ND, notes)
    for start in range(0, 400, 50):
        gallery.upsert(samples.select(slice(start, start + 50)))
    return samples


def test_no_byte_is_left_in_any_file(gallery, named, tmp_path):
    gallery.search(named.embedding_ND[:2], 1, templates=True)
    gallery.snapshot(tmp_path / "copy")
    copy = LocalGallery(tmp_path / "copy")
    copy.search(named.embedding_ND[:2], 1)
    copy.close()
    holding = bytes_in(tmp_path)
    needles = [[person.encode(), stored(row)] for person, row in zip(named.people, named.embedding_ND, strict=True)]
    assert all(len(holding(needle)) >= 3 for needle in needles[5][1:])
    # Templates: the mean of a person's two samples.
    unit = [np.frombuffer(stored(named.embedding_ND[row]), "<f4").astype(np.float64) for row in (5, 205)]
    assert holding(stored(np.mean(unit, axis=0)))
    removed_people = named.people[::3][:60]
    assert not gallery.remove(people=removed_people).unfinished
    for who, key, note, needle in zip(named.people, named.keys, named.metadata, needles, strict=True):
        if who in removed_people:
            for text in (*needle, key.encode(), note["note"].encode()):
                assert not holding(text), (who, text)
        else:
            assert holding(needle[1])
    assert not holding(stored(np.mean(unit, axis=0)))


def test_a_removal_that_was_cut_short_is_ended_by_the_next_writer(gallery, named, tmp_path, monkeypatch):
    gallery.snapshot(tmp_path / "copy")
    monkeypatch.setattr(gallery, "_finish_removal", list)
    monkeypatch.setattr(gallery._index, "sync", lambda *args: None)
    gallery.remove(keys=named.keys[:3])
    gallery.close()
    holding = bytes_in(tmp_path)
    assert holding(stored(named.embedding_ND[1]))
    LocalGallery(gallery.path, write=True).close()
    assert not holding(stored(named.embedding_ND[1]))
    assert not holding(named.keys[1].encode())


def test_a_moved_person_is_removed_from_older_snapshots(gallery, tmp_path):
    samples = some_samples(4, 2)
    gallery.upsert(samples)
    gallery.snapshot(tmp_path / "copy")
    gallery.upsert(Samples(["k0"], ["renamed"], samples.embedding_ND[:1]))
    gallery.remove(people=["renamed"])
    assert not bytes_in(tmp_path)(stored(samples.embedding_ND[0]))


def test_a_person_whose_samples_got_another_name_is_removed_from_older_snapshots(gallery, tmp_path):
    samples = some_samples(4, 2)
    gallery.upsert(samples)
    gallery.snapshot(tmp_path / "copy")
    gallery.upsert(Samples(samples.keys, ["renamed"] * 4, samples.embedding_ND))
    assert bytes_in(tmp_path / "copy")(b"person 1")
    removed = gallery.remove(people=["person 1"])
    assert (removed.samples, removed.missing_people, removed.unfinished) == (0, ["person 1"], [])
    assert not bytes_in(tmp_path)(b"person 1")
    assert gallery.count() == (1, 4)


def test_a_snapshot_that_was_out_of_reach_is_reached_by_the_same_removal(gallery, tmp_path):
    samples = some_samples(6, 3)
    gallery.upsert(samples)
    gallery.snapshot(tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "away")
    assert gallery.remove(keys=["k1"]).unfinished
    (tmp_path / "away").rename(tmp_path / "copy")
    assert bytes_in(tmp_path)(stored(samples.embedding_ND[1]))
    assert not gallery.remove(keys=["k1"]).unfinished
    assert not bytes_in(tmp_path)(stored(samples.embedding_ND[1]))


def test_no_byte_is_left_after_many_small_changes(gallery, tmp_path):
    """Pages are split, merged and filled again; secure_delete alone leaves some copies behind."""
    random = np.random.default_rng(1)
    enrolled, removed_texts = {}, set()

    def name(kind):
        return f"{kind}-{random.integers(2**62):020d}"

    for _ in range(20):
        added = {name("key"): (name("name"), name("note"), int(random.integers(3000))) for _ in range(100)}
        renewed = {key: (enrolled[key][0], name("note"), 10) for key in list(enrolled)[::9]}
        removed_texts |= {enrolled[key][1] for key in renewed}
        changed = added | renewed
        keys, (people, *_) = list(changed), zip(*changed.values(), strict=True)
        notes = [{"note": note + length * "x"} for _, note, length in changed.values()]
        gallery.upsert(Samples(keys, people, random.standard_normal((len(keys), DIMENSION)), notes, notes))
        enrolled |= changed
        removed = random.choice(list(enrolled), 90, replace=False).tolist()
        gallery.remove(keys=removed)
        removed_texts |= {text for key in removed for text in (key, *enrolled.pop(key)[:2])}
    leftovers = {
        text.decode()
        for path in tmp_path.rglob("*")
        if path.is_file()
        for text in re.findall(rb"(?:key|name|note)-\d{20}", path.read_bytes())
    }
    assert leftovers == {text for key, (who, note, _) in enrolled.items() for text in (key, who, note)}
    assert len(removed_texts) > 4000


WINDOW = 8


def windows(*contents):
    """The sorted distinct windows of successive WINDOW bytes of each content."""
    return np.unique(
        np.concatenate([np.frombuffer(content[: len(content) // WINDOW * WINDOW], "<u8") for content in contents])
    )


def present_windows(folder, wanted):
    """The windows that are in a file of a folder, at any offset."""
    # Few windows share their low bits with a wanted one, so nearly all are discarded by one look-up.
    low_bits = (1 << 22) - 1
    is_candidate = np.zeros(low_bits + 1, bool)
    is_candidate[wanted & low_bits] = True
    result = set()
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for shift in range(min(WINDOW, len(content))):
            window_N = np.frombuffer(content, "<u8", (len(content) - shift) // WINDOW, shift)
            window_N = window_N[is_candidate[window_N & low_bits]]
            nearest_N = wanted[np.searchsorted(wanted, window_N).clip(max=len(wanted) - 1)]
            result |= set(window_N[nearest_N == window_N].tolist())
    return result


@pytest.mark.parametrize(("kind", "people"), [("direct", 12_000), ("meta", 600), ("meta_unit", 600)])
def test_no_eight_bytes_are_left_of_ten_thousand_people(tmp_path, kind, people):
    """Embeddings, keys, names, notes and templates, after removals of one, of many, and with enrolments in between."""
    random = np.random.default_rng(5)
    enrolled, removals = people * 3 // 4, people * 5 // 6

    def texts():
        return [base64.b64encode(random.bytes(24)).decode() for _ in range(people)]

    keys, names, notes, origins = (texts() for _ in range(4))
    row_ND = random.standard_normal((people, DIMENSION)).astype(np.float32)
    # A few rows are longer than a page.
    long = [[text * (300 if row % 500 == 7 else 1) for row, text in enumerate(column)] for column in (notes, origins)]
    metadata, provenance = ([{"": text[:8150]} for text in column] for column in long)
    samples = Samples(keys, names, row_ND, metadata, provenance)
    with closing(LocalGallery.create(tmp_path / "gallery", ModelSpec("model", "0" * 64, kind, DIMENSION))) as gallery:
        for start in range(0, enrolled, enrolled // 3):
            gallery.upsert(samples.select(slice(start, start + enrolled // 3)))
    stored_rows = {}

    def remember(gallery):
        for part in gallery.samples():
            stored_rows.update(zip(part.keys, map(bytes, part.embedding_ND), strict=True))

    def bytes_of(rows):
        return windows(
            *(text[row].encode() for row in rows for text in (keys, names, notes, origins)),
            *(stored_rows[keys[row]] for row in rows),
        )

    order = random.permutation(enrolled).tolist()
    with closing(LocalGallery(tmp_path / "gallery", write=True)) as gallery:
        remember(gallery)
        gallery.search(row_ND[:1], 1, templates=True)
        gallery.snapshot(tmp_path / "copy")
        assert len(present_windows(tmp_path, bytes_of(order[:5]))) == len(bytes_of(order[:5]))
        removed = order[:5]
        for row in removed:
            assert gallery.remove(people=[names[row]]).unfinished == []
        assert not present_windows(tmp_path, bytes_of(removed))
        gallery.upsert(samples.select(slice(enrolled, people)))
        # No page that holds old bytes in memory is written again.
        assert not present_windows(tmp_path, bytes_of(removed))
        remember(gallery)
    rest = random.permutation([*order[5:], *range(enrolled, people)])[: removals - 5].tolist()
    with closing(LocalGallery(tmp_path / "gallery", write=True)) as gallery:
        for part in (rest[: people // 12], rest[people // 12 : removals // 2], rest[removals // 2 :]):
            assert gallery.remove(people=[names[row] for row in part[::2]]).unfinished == []
            assert gallery.remove(keys=[keys[row] for row in part[1::2]]).unfinished == []
            removed += part
            assert not present_windows(tmp_path, bytes_of(removed))
        assert not gallery.check_integrity()
        assert gallery.count() == (people - removals, people - removals)
        left = {
            key: bytes(row_D)
            for part in gallery.samples()
            for key, row_D in zip(part.keys, part.embedding_ND, strict=True)
        }
        assert left == {keys[row]: stored_rows[keys[row]] for row in set(range(people)) - set(removed)}
    assert len(removed) == removals
    assert not present_windows(tmp_path, bytes_of(removed))
    with closing(LocalGallery(tmp_path / "copy")) as copy:
        assert not copy.check_integrity()


def test_no_page_with_old_bytes_stays_in_memory(gallery, named):
    """It would be written again with them: after a removal the pages are read from the file."""
    database = gallery._store._database
    gallery.remove(keys=named.keys[:1])
    note = named.metadata[7]["note"].encode()
    offset = database.path.read_bytes().index(note)
    os.pwrite(database._descriptor.number, b"read", offset)
    notes = [metadata["note"] for part in gallery.samples() for metadata in part.metadata]
    assert "read" + note.decode()[4:] in notes


@pytest.mark.parametrize("call", range(6))
def test_a_process_killed_during_the_erasure_leaves_it_to_the_next_writer(gallery, named, tmp_path, call):
    """Killed at a write of zeros, and before and after each change of the database."""
    gallery.snapshot(tmp_path / "copy")
    gallery.close()
    removed = range(0, 400, 3)
    if not (child := os.fork()):
        try:
            writer = LocalGallery(gallery.path, write=True)
            die_at_call(call)
            writer.remove(keys=[named.keys[row] for row in removed])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with closing(LocalGallery(gallery.path)) as reader:
        expected = {key for row, key in enumerate(named.keys) if row not in removed}
        assert {key for part in reader.samples() for key in part.keys} == expected
    with closing(LocalGallery(gallery.path, write=True)) as writer:
        assert not writer.check_integrity()
        assert writer._store._database.changed_pages is not None
    wanted = windows(
        *(stored(named.embedding_ND[row]) for row in removed),
        *(named.metadata[row]["note"].encode()[8:] for row in removed),
    )
    kept = windows(*(named.metadata[row]["note"].encode()[8:] for row in range(400) if row not in removed))
    assert not present_windows(tmp_path, np.setdiff1d(wanted, kept))


def die_at_call(call):
    """Makes this process kill itself at a step of the erasure: the first two are those of the snapshot."""
    steps = 0

    def dying(work):
        def run(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps > call:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **options)

        return run

    Database.truncate_log = dying(Database.truncate_log)
    free_space.os.pwrite = dying(os.pwrite)
    Database.forget_changes = dying(Database.forget_changes)


def test_a_gallery_of_an_earlier_version_is_read_whole_by_its_first_removal(gallery, named, tmp_path):
    """It has no record of the revision at which its free space was zero."""
    database = gallery._store._database
    with gallery._store.write_transaction():
        gallery._store._forget_zeroed()
    gallery.close()
    with closing(LocalGallery(gallery.path, write=True)) as writer:
        database = writer._store._database
        writer.upsert(some_samples(3, 1, prefix="new"))
        assert database.changed_pages is None
        writer.remove(people=named.people[:3])
        assert database.changed_pages == set()
        writer.upsert(some_samples(3, 1, prefix="newer"))
        assert database.changed_pages
    assert not bytes_in(tmp_path)(named.people[1].encode())
    with closing(LocalGallery(gallery.path, write=True)) as writer:
        assert writer._store._is_zeroed()


def test_compacting_returns_the_space_of_removed_people(gallery, named, tmp_path):
    gallery.remove(people=named.people[10:200])
    expected = [part.keys for part in gallery.samples()]
    before, after = gallery.compact()
    assert after < before
    assert (gallery.path / "gallery.sqlite").stat().st_size == after
    assert [part.keys for part in gallery.samples()] == expected
    assert not gallery.check_integrity()
    gallery.remove(people=named.people[:1])
    holding = bytes_in(tmp_path)
    assert not any(holding(named.people[row].encode()) for row in (0, 10, 199))
    assert holding(named.people[1].encode())


def test_compacting_with_a_concurrent_reader_is_refused_and_completed_later(gallery, named, tmp_path):
    gallery._store._database.execute("PRAGMA busy_timeout = 50")
    with closing(LocalGallery(gallery.path)) as reader, reader._store.read_transaction():
        reader.count()
        with pytest.raises(UserError, match="a reader prevents the log from being truncated; repeat the command"):
            gallery.compact()
    gallery.remove(people=named.people[:1])
    assert not bytes_in(tmp_path)(named.people[0].encode())


def test_a_disk_that_is_too_full_to_wipe_is_reported_and_the_gallery_stays_usable(gallery, tmp_path, monkeypatch):
    samples = some_samples(6, 3)
    gallery.upsert(samples)
    run = Database.execute

    def full(self, statement, *arguments, **options):
        if "wal_checkpoint" in statement:
            raise UserError(f"{self.path}: database or disk is full")
        return run(self, statement, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "execute", full)
        (message,) = gallery.remove(people=["person 1"]).unfinished
        assert "disk is full; bytes of removed samples may remain" in message
        gallery.close()
        again = LocalGallery(gallery.path, write=True)
        again.upsert(some_samples(2, 1, seed=5, prefix="new"))
        assert again.search(samples.embedding_ND[1:2], 1).candidates[0][0].key != "k1"
        assert any("may hold bytes of removed samples" in text for text in again.check_integrity())
        again.close()
    LocalGallery(gallery.path, write=True).close()
    assert not bytes_in(tmp_path)(stored(samples.embedding_ND[1]))


def test_snapshots_that_cannot_be_reached_are_named(gallery, model_spec, tmp_path):
    gallery.upsert(some_samples(6, 3))
    for name in ("gone", "other"):
        gallery.snapshot(tmp_path / name)
    for name in ("gone", "other"):
        (tmp_path / name).rename(tmp_path / f"{name}-moved")
    LocalGallery.create(tmp_path / "other", model_spec).close()
    removed = gallery.remove(people=["person 1"])
    assert removed.samples == 2
    assert len(removed.unfinished) == 2
    assert "gone: no gallery here" in removed.unfinished[0]
    assert "other: is a different gallery now" in removed.unfinished[1]


def test_a_concurrent_reader_delays_the_wiping_which_is_reported(gallery, tmp_path, monkeypatch):
    samples = some_samples(6, 3)
    gallery.upsert(samples)
    reader = LocalGallery(gallery.path)
    gallery._store._database.execute("PRAGMA busy_timeout = 50")
    with reader._store.read_transaction():
        reader.count()
        removed = gallery.remove(people=["person 1"])
        assert "prevents the log" in removed.unfinished[0]
    reader.close()
    assert gallery._store.state().unscrubbed
    gallery.close()
    LocalGallery(gallery.path, write=True).close()
    assert not bytes_in(tmp_path)(stored(samples.embedding_ND[1]))


def test_the_database_refuses_samples_without_a_person(gallery):
    gallery.upsert(some_samples(2, 1))
    with pytest.raises(UserError, match="FOREIGN KEY"), gallery._store.write_transaction():
        gallery._store._database.execute("DELETE FROM people")
    assert gallery.count().samples == 2

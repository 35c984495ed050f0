"""Search index: rebuilt from the sample store whenever its files are missing, stale or damaged."""

import json
import os
import shutil

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery import mapped_index
from facelt.gallery.local import LocalGallery
from facelt.gallery.samples import Samples
from tests.gallery.conftest import plain_people, same_people, some_samples

SAMPLES = some_samples(50, 10)


@pytest.fixture
def filled(gallery):
    gallery.upsert(SAMPLES)
    return gallery


def rows_file(gallery):
    (path,) = (gallery.path / "index").glob("rows-*.f32")
    return path


def flip_a_byte(gallery):
    with rows_file(gallery).open("r+b") as file:
        file.seek(700)
        byte = file.read(1)[0]
        file.seek(700)
        file.write(bytes([byte ^ 0x41]))


def flip_a_byte_and_set_the_time_back(gallery):
    before = rows_file(gallery).stat()
    flip_a_byte(gallery)
    os.utime(rows_file(gallery), ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_names(gallery):
    (path,) = (gallery.path / "index").glob("ids-*.i64")
    ids = np.fromfile(path, "<i8").reshape(-1, 2)
    ids[[3, 4]] = ids[[4, 3]]
    path.write_bytes(ids.tobytes())


def cut(gallery):
    os.truncate(rows_file(gallery), 100)


def point_elsewhere(gallery):
    path = gallery.path / "index" / "bound.json"
    bound = json.loads(path.read_text())
    shutil.copy(rows_file(gallery), gallery.path / "rows")
    path.write_text(json.dumps(bound | {"files": {**bound["files"], "rows": "../rows"}}))


def claim_another_revision(gallery):
    path = gallery.path / "index" / "bound.json"
    bound = json.loads(path.read_text())
    path.write_text(json.dumps(bound | {"binding": bound["binding"] | {"digest": "0" * 64}}))


def remove_it(gallery):
    shutil.rmtree(gallery.path / "index")


def spoil_json(gallery):
    (gallery.path / "index" / "bound.json").write_text("[1, 2")


@pytest.mark.parametrize(
    "harm",
    [
        *(flip_a_byte, flip_a_byte_and_set_the_time_back, swap_names, cut),
        *(point_elsewhere, claim_another_revision, remove_it, spoil_json),
    ],
)
def test_a_damaged_index_is_rebuilt(filled, harm):
    filled.close()
    harm(filled)
    reader = LocalGallery(filled.path)
    assert reader.check_integrity()
    probe_PD = SAMPLES.embedding_ND + 0.1
    same_people(reader.search(probe_PD, 10).candidates, plain_people(SAMPLES, probe_PD, 10))
    assert not reader.check_integrity()
    reader.close()


def test_harm_while_it_is_open_is_seen(filled):
    filled.search(SAMPLES.embedding_ND, 1)
    flip_a_byte(filled)
    same_people(filled.search(SAMPLES.embedding_ND, 3).candidates, plain_people(SAMPLES, SAMPLES.embedding_ND, 3))


def test_rows_that_are_not_those_enrolled_are_never_an_answer(filled, monkeypatch):
    """Even if timestamps and hashes were forged to match."""
    filled.close()
    (path,) = (filled.path / "index").glob("rows-*.f32")
    rows = np.fromfile(path, "<f4").reshape(50, -1)
    rows[:] = rows[::-1].copy()
    path.write_bytes(rows.tobytes())
    reader = LocalGallery(filled.path)
    with monkeypatch.context() as patch:
        patch.setattr(mapped_index.MappedIndex, "is_current", lambda self: True)
        same_people(reader.search(SAMPLES.embedding_ND, 2).candidates, plain_people(SAMPLES, SAMPLES.embedding_ND, 2))
    reader.close()


def test_a_copied_gallery_is_taken_without_building(filled, tmp_path):
    filled.close()
    shutil.copytree(filled.path, tmp_path / "copy")
    name = rows_file(filled).name
    copy = LocalGallery(tmp_path / "copy")
    copy.search(SAMPLES.embedding_ND, 1)
    assert (tmp_path / "copy" / "index" / name).exists()
    copy.close()


def test_changes_are_made_in_place(filled):
    """Many rows in several chunks, removed at the front, in the middle and at the end."""
    name = rows_file(filled).name
    random = np.random.default_rng(1)
    enrolled = dict(zip(SAMPLES.keys, zip(SAMPLES.people, SAMPLES.embedding_ND, strict=True), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped_index, "CHUNK_ROWS", 8)
        filled.rebuild()
        name = rows_file(filled).name
        for step in range(12):
            if step % 3 == 2:
                more = some_samples(9, 4, seed=step, prefix=f"step{step}-")
                filled.upsert(more)
                enrolled |= dict(zip(more.keys, zip(more.people, more.embedding_ND, strict=True), strict=True))
            else:
                removed = random.choice(list(enrolled), 5, replace=False).tolist()
                filled.remove(keys=removed)
                enrolled = {key: entry for key, entry in enrolled.items() if key not in removed}
            assert not filled.check_integrity()
        assert rows_file(filled).name == name
        people, rows = zip(*enrolled.values(), strict=True)
        left = Samples(list(enrolled), people, np.stack(rows))
        same_people(filled.search(SAMPLES.embedding_ND, 4).candidates, plain_people(left, SAMPLES.embedding_ND, 4))
        filled.remove(keys=list(enrolled))
        assert filled.search(SAMPLES.embedding_ND, 4).candidates == [[]] * 50
        assert not filled.check_integrity()


def test_what_a_killed_writer_left_is_cleared(filled):
    filled.close()
    stray = filled.path / "index" / "rows-deadbeef.f32"
    stray.write_bytes(b"left")
    LocalGallery(filled.path, write=True).close()
    assert not stray.exists()


def test_harm_to_the_truth_is_named_and_nothing_is_answered_from_it(filled):
    filled.close()
    path = filled.path / "gallery.sqlite"
    needle = (SAMPLES.embedding_ND[20] / np.linalg.norm(SAMPLES.embedding_ND[20].astype(np.float64))).astype("<f4")
    content = path.read_bytes()
    assert needle.tobytes() in content
    path.write_bytes(content.replace(needle.tobytes(), needle[::-1].tobytes()))
    path.chmod(0o644)
    reader = LocalGallery(filled.path)
    defects = "\n".join(reader.check_integrity())
    assert "differ from those enrolled" in defects
    assert "is readable by other users" in defects
    with pytest.raises(UserError, match="differ from those enrolled"):
        reader.search(SAMPLES.embedding_ND[20:21], 1)
    reader.close()

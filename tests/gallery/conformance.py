"""Conformance tests of gallery backends; a test module provides the fixture `backend`, empty, of model `contract`.

test_local.py runs them on a local gallery, test_milvus.py on Milvus.
"""

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.backend import GalleryCounts
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples
from tests.gallery.conftest import DIMENSION, plain_people, same_people, some_samples


class Conformance:
    """Base of each backend's test class."""

    def test_an_empty_gallery_has_no_candidates(self, backend, model_spec):
        assert backend.model_spec == model_spec
        assert backend.count() == GalleryCounts(0, 0)
        result = backend.search(np.ones((2, DIMENSION)), 3)
        assert result.candidates == [[], []]
        assert result.exact
        assert list(backend.people()) == []

    @pytest.mark.parametrize("templates", [False, True])
    def test_people_come_in_the_order_of_a_plain_search(self, backend, templates):
        samples = some_samples(120, 25)
        backend.upsert(samples)
        probe_PD = np.random.default_rng(9).standard_normal((7, DIMENSION))
        result = backend.search(probe_PD, 6, templates=templates)
        assert result.exact
        assert result.compared == (25 if templates else 120)
        same_people(result.candidates, plain_people(samples, probe_PD, 6, templates=templates))
        ranking = backend.search(probe_PD, 100, templates=templates)
        same_people(ranking.candidates, plain_people(samples, probe_PD, 100, templates=templates))

    def test_a_candidate_names_the_sample(self, backend):
        samples = some_samples(30, 10)
        backend.upsert(samples)
        (row,) = backend.search(3 * samples.embedding_ND[17:18], 1).candidates
        assert (row[0].person, row[0].key) == ("person 7", "k17")
        assert row[0].score == pytest.approx(1.0, abs=1e-6)
        (mean,) = backend.search(samples.embedding_ND[17:18], 1, templates=True).candidates
        assert mean[0].key is None

    def test_one_person_with_nearly_all_samples_hides_no_one(self, backend):
        random = np.random.default_rng(4)
        centre_D = random.standard_normal(DIMENSION)
        crowd_ND = centre_D + 0.01 * random.standard_normal((80, DIMENSION))
        others_ND = random.standard_normal((4, DIMENSION))
        row_ND = np.concatenate([crowd_ND, others_ND]).astype(np.float32)
        people = ["crowd"] * 80 + ["a", "b", "c", "d"]
        samples = Samples([f"s{i}" for i in range(84)], people, row_ND)
        backend.upsert(samples)
        same_people(backend.search(centre_D[None], 3).candidates, plain_people(samples, centre_D[None], 3))

    def test_a_sample_of_the_same_key_takes_the_place_of_the_old_one(self, backend):
        first, second = some_samples(6, 3), some_samples(6, 3, seed=1)
        backend.upsert(first)
        backend.upsert(Samples(["k0", "k9"], ["new", "person 1"], second.embedding_ND[:2]))
        assert dict(backend.people()) == {"new": 1, "person 0": 1, "person 1": 3, "person 2": 2}
        assert backend.count() == GalleryCounts(4, 7)
        (row,) = backend.search(second.embedding_ND[:1], 1).candidates
        assert (row[0].person, row[0].key) == ("new", "k0")
        (old,) = backend.search(first.embedding_ND[:1], 1).candidates
        assert old[0].key != "k0"

    def test_removal_by_person_and_by_key(self, backend):
        samples = some_samples(12, 4)
        backend.upsert(samples)
        backend.search(samples.embedding_ND, 2, templates=True)
        removed = backend.remove(people=["person 1", "absent"], keys=["k2", "k99"])
        assert (removed.samples, list(removed.missing_people), list(removed.missing_keys)) == (4, ["absent"], ["k99"])
        assert not removed.unfinished
        indices = [i for i in range(12) if i % 4 != 1 and i != 2]
        left = Samples([f"k{i}" for i in indices], [f"person {i % 4}" for i in indices], samples.embedding_ND[indices])
        for templates in (False, True):
            result = backend.search(samples.embedding_ND, 4, templates=templates).candidates
            same_people(result, plain_people(left, samples.embedding_ND, 4, templates=templates))
        assert backend.count() == GalleryCounts(3, 8)
        assert backend.remove(people=["person 1"]).samples == 0

    def test_the_last_sample_takes_its_person_along(self, backend):
        backend.upsert(some_samples(3, 3))
        backend.remove(keys=["k1"])
        assert dict(backend.people()) == {"person 0": 1, "person 2": 1}

    def test_hostile_names_are_names(self, backend):
        names = [
            "x' OR '1'='1",
            'say "hi" \\',
            "../../etc/passwd",
            "=1+1",
            "{p}",
            "Zo\u00eb \u674e",
            " ",
            "unknown",
            "%",
        ]
        row_ND = some_samples(len(names), 1).embedding_ND
        backend.upsert(Samples([f"{name}#key" for name in names], names, row_ND))
        assert dict(backend.people()) == dict.fromkeys(names, 1)
        result = backend.search(row_ND, 1).candidates
        assert [row[0].person for row in result] == names
        assert [row[0].key for row in result] == [f"{name}#key" for name in names]
        assert backend.remove(people=[names[0]]).samples == 1
        assert backend.count().people == len(names) - 1
        assert backend.remove(keys=[f"{name}#key" for name in names[1:]]).samples == len(names) - 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda row_ND: row_ND * [[1], [0]], "sample 'k1'.*is zero"),
            (lambda row_ND: row_ND * [[1], [np.nan]], "sample 'k1'.*not finite"),
            (lambda row_ND: row_ND * [[np.inf], [1]], "sample 'k0'.*not finite"),
            (lambda row_ND: row_ND[:, 1:], "2 x 15"),
            (lambda row_ND: row_ND.astype(str), "must be numbers"),
        ],
    )
    def test_bad_embeddings_are_refused_at_the_door(self, backend, change, message):
        row_ND = change(some_samples(2, 1).embedding_ND)
        with pytest.raises(UserError, match=message):
            backend.upsert(Samples(["k0", "k1"], ["a", "b"], row_ND))
        assert backend.count() == GalleryCounts(0, 0)
        with pytest.raises(UserError):
            backend.search(row_ND, 1)

    @pytest.mark.parametrize("name", ["", "x" * 513, "nul\0", "half \ud800"])
    def test_names_that_no_database_holds_are_refused(self, backend, name):
        row_ND = some_samples(1, 1).embedding_ND
        with pytest.raises(UserError, match="key"):
            backend.upsert(Samples([name], ["a"], row_ND))
        with pytest.raises(UserError, match="person"):
            backend.upsert(Samples(["a"], [name], row_ND))

    def test_a_key_twice_is_refused(self, backend):
        with pytest.raises(UserError, match="'k' occurs more than once"):
            backend.upsert(Samples(["k", "k"], ["a", "b"], some_samples(2, 1).embedding_ND))

    def test_settings(self, backend):
        assert backend.setting("threshold") is None
        backend.set_setting("threshold", {"value": 0.5, "name": "'\""})
        backend.set_setting("threshold", {"value": 0.25, "name": "'\""})
        assert backend.setting("threshold") == {"value": 0.25, "name": "'\""}

    def test_a_snapshot_is_a_gallery_of_the_same(self, backend, model_spec, tmp_path):
        samples = some_samples(9, 3)
        notes = [{"age": i} for i in range(9)]
        backend.upsert(Samples(samples.keys, samples.people, samples.embedding_ND, notes, [{"from": "x"}] * 9))
        backend.snapshot(tmp_path / "copy")
        copy = LocalGallery(tmp_path / "copy")
        assert copy.model_spec == model_spec
        assert copy.count() == backend.count()
        indices = {
            key: (who, note)
            for part in copy.samples()
            for key, who, note in zip(part.keys, part.people, part.metadata, strict=True)
        }
        assert indices == {f"k{i}": (f"person {i % 3}", {"age": i}) for i in range(9)}
        assert copy.search(samples.embedding_ND, 3) == backend.search(samples.embedding_ND, 3)
        copy.close()
        with pytest.raises(UserError, match="copy"):
            backend.snapshot(tmp_path / "copy")

    def test_another_model_is_refused_with_both_names(self, model_spec):
        other = ModelSpec("iresnet50/plain", "cd" * 32, "meta", DIMENSION)
        with pytest.raises(UserError, match=r"meta of 16 by 'iresnet50/plain'.*direct of 16 by 'resnet10/oltr'"):
            model_spec.refuse_other(other, "store")

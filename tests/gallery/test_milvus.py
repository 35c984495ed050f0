"""Milvus gallery: backend conformance, by default on Milvus Lite (`make test-milvus`).

MILVUS_URI selects another server; collections `facelt_test_*` are created and dropped there.
"""

import os
import secrets
import subprocess
import sys

import pytest

from facelt.errors import UserError
from facelt.gallery.gallery import Gallery
from tests.gallery.conformance import Conformance
from tests.gallery.conftest import some_samples

pytest.importorskip("pymilvus", reason="pymilvus is absent: make test-milvus")
URI = os.environ.get("MILVUS_URI")
if URI is None:
    pytest.importorskip("milvus_lite", reason="milvus-lite is absent: make test-milvus, or MILVUS_URI")

from facelt.gallery.milvus import MilvusGallery  # noqa: E402


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return URI or str(tmp_path_factory.mktemp("milvus") / "lite.db")


@pytest.fixture
def where(uri):
    name = f"facelt_test_{secrets.token_hex(4)}"
    yield f"{uri}#{name}"
    from pymilvus import MilvusClient

    client = MilvusClient(uri)
    for collection in client.list_collections():
        if collection.startswith(name):
            client.drop_collection(collection)
    client.close()


@pytest.fixture
def backend(where, model_spec):
    made = MilvusGallery.create(where, model_spec)
    yield made
    made.close()


class TestMilvusGallery(Conformance):
    """Conformance on a Milvus server."""


def test_it_is_opened_by_its_name(where, model_spec):
    with Gallery.create(f"milvus:{where}", model_spec) as made:
        made.enroll(some_samples(5, 2))
    with Gallery.open(f"milvus:{where}", write=True) as opened:
        assert opened.model_spec == model_spec
        assert opened.count() == (2, 5)
        result = opened.identify(some_samples(5, 2).embedding_ND, threshold=0.9)
        assert [answer.candidates[0].key for answer in result.probes] == [f"k{i}" for i in range(5)]
    with pytest.raises(UserError, match="exists already"):
        Gallery.create(f"milvus:{where}", model_spec)


def test_another_process_continues_with_the_gallery(tmp_path):
    """A restarted server has its collections on disk only."""
    pytest.importorskip("milvus_lite", reason="milvus-lite is absent: make test-milvus")
    command = [sys.executable, "-c", "from facelt.cli.main import main; main()", "gallery"]
    where = f"milvus:{tmp_path / 'lite.db'}#staff"
    table = "key,person,e0,e1\nk0,Ada,1,0\nk1,Bo,0,1\n"
    (tmp_path / "people.csv").write_text(table)
    people = [where, tmp_path / "people.csv", "--model", "m"]
    for words, output in (
        (["create", where, "--model", "m", "--weights-sha256", "0" * 64, "--dimension", "2"], "created"),
        (["enroll", *people], "people: 2\nsamples: 2"),
        (["identify", *people, "--threshold", "0.5"], "k0: Ada 1.000"),
        (["remove", where, "--person", "Ada"], "samples removed: 1"),
        (["info", where], "people: 1"),
    ):
        done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=120)
        assert output in done.stdout, done.stderr
        assert not done.stderr


def test_a_server_that_is_not_there_is_one_line(model_spec, capfd):
    with pytest.raises(UserError, match=r"milvus:http://127\.0\.0\.1:1: .* server unavailable"):
        Gallery.open("milvus:http://127.0.0.1:1")
    assert "Traceback" not in capfd.readouterr().err


def test_people_below_the_floor_need_not_be_looked_for(backend):
    samples = some_samples(40, 8)
    backend.upsert(samples)
    probe_PD = samples.embedding_ND[:4]
    full_rankings = backend.search(probe_PD, 8).candidates
    for floor in (0.3, 0.999):
        above_floor = backend.search(probe_PD, 8, floor=floor).candidates
        for candidates, ranking in zip(above_floor, full_rankings, strict=True):
            assert candidates == ranking[: len(candidates)]
            assert len(candidates) >= max(1, sum(candidate.score >= floor for candidate in ranking))


def test_names_that_are_none(uri, model_spec):
    with pytest.raises(
        UserError, match="no gallery 'facelt_test_absent' here; create one with `facelt gallery create`"
    ):
        MilvusGallery(f"{uri}#facelt_test_absent")
    with pytest.raises(UserError, match="is not a valid collection name"):
        MilvusGallery(f"{uri}#drop table")


def test_an_approximate_index_is_reported(backend):
    backend.upsert(some_samples(300, 100))
    client, name = backend._collections._client, backend._name
    client.release_collection(name)
    client.drop_index(name, index_name="row")
    index = client.prepare_index_params()
    index.add_index("row", index_type="HNSW", metric_type="IP", index_name="row", params={"M": 8, "efConstruction": 64})
    client.create_index(name, index)
    client.load_collection(name)
    probe_PD = some_samples(3, 3).embedding_ND
    with pytest.raises(UserError, match="not FLAT"):
        backend.search(probe_PD, 2)
    result = backend.search(probe_PD, 2, exact=False)
    assert not result.exact
    assert result.candidates[0][0].key == "k0"

"""Search engines: equal ids and scores, with ties and repeated rows; selection by name."""

import sys
import types

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.search import engine, factory
from facelt.search import exact as exact_module
from facelt.search.factory import open_engine
from facelt.search.faiss_engine import FaissEngine, FaissScorer, GpuScorer
from facelt.search.search import open_search
from facelt.search.top_k import count_above, top_k


def crowded(random, rows, dimension):
    """Returns rows near a few centres, some twice, so that many scores are close or equal."""
    centre_CD = random.standard_normal((3, dimension))
    row_ND = centre_CD[random.integers(0, 3, rows)] + 10.0 ** random.uniform(-6, 0) * random.standard_normal(
        (rows, dimension)
    )
    return row_ND[random.integers(0, rows, rows)].astype(np.float32)


def exact(query_PD, database_GD, cosine):
    """Returns the similarities in float64."""
    q, g = query_PD.astype(np.float64), database_GD.astype(np.float64)
    if cosine:
        q, g = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (q, g))
    return q @ g.T


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 150),
    k=st.integers(1, 12),
    dimension=st.integers(2, 24),
    cosine=st.booleans(),
    block_values=st.integers(24, 2000),
    scores=st.integers(1, 400),
)
# More rows within 1e-12 of the k-th score than a search fetches beyond k.
@example(seed=2263, rows=78, k=8, dimension=2, cosine=True, block_values=118, scores=1)
def test_all_engines_agree(engines, seed, rows, k, dimension, cosine, block_values, scores):
    random = np.random.default_rng(seed)
    database_GD = crowded(random, rows, dimension)
    query_PD = np.concatenate([database_GD[:2], crowded(random, 5, dimension)])
    prefixes = [rows, int(random.integers(0, rows + 1))]
    threshold = float(random.uniform(-0.5, 1))
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_module, "MAX_BLOCK_VALUES", block_values)
        patch.setattr(engine, "MAX_TILE_SCORES", scores)
        for name, backend in engines.items():
            results[name] = (
                *top_k(query_PD, database_GD, k, prefixes, cosine=cosine, engine=backend),
                count_above(query_PD, database_GD, threshold, engine=backend),
            )
    score_SPK, id_SPK, count_P = results["faiss"]
    for other in results.values():
        np.testing.assert_array_equal(other[0], score_SPK)
        np.testing.assert_array_equal(other[1], id_SPK)
        np.testing.assert_array_equal(other[2], count_P)
    plain_PG = exact(query_PD, database_GD, cosine)
    for size, score_PK, id_PK in zip(prefixes, score_SPK, id_SPK, strict=True):
        kept = min(k, size)
        expected_PK = -np.sort(-plain_PG[:, :size], axis=1)[:, :kept]
        np.testing.assert_allclose(score_PK[:, :kept], expected_PK, rtol=1e-9, atol=1e-9)
        assert (id_PK[:, kept:] == -1).all()
        np.testing.assert_allclose(
            np.take_along_axis(plain_PG, id_PK[:, :kept], axis=1), score_PK[:, :kept], rtol=1e-9, atol=1e-9
        )
        tied_PK = score_PK[:, 1:kept] == score_PK[:, : max(0, kept - 1)]
        assert (np.diff(id_PK[:, :kept], axis=1)[tied_PK] > 0).all()


def test_bfloat16_scores_alone_would_be_wrong(engines):
    # Differences far below bfloat16's 8 bits decide the order.
    random = np.random.default_rng(3)
    row_D = random.standard_normal(64)
    database_GD = (row_D + 1e-4 * random.standard_normal((5000, 64))).astype(np.float32)
    _, id_SPK = top_k(row_D[None].astype(np.float32), database_GD, 20, cosine=True, engine=engines["torch bfloat16"])
    plain_G = exact(row_D[None].astype(np.float32), database_GD, True)[0]
    np.testing.assert_array_equal(id_SPK[0, 0], np.argsort(-plain_G, kind="stable")[:20])


@pytest.mark.parametrize("name", ["faiss", "torch float32", "torch bfloat16"])
def test_rows_that_get_ever_better(engines, name):
    # The worst order for a floor: every block is above all before it.
    random = np.random.default_rng(4)
    query_PD = random.standard_normal((3, 8)).astype(np.float32)
    database_GD = query_PD.mean(axis=0) * np.linspace(0.1, 9, 4000, dtype=np.float32)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_module, "MAX_BLOCK_VALUES", 8 * 300)
        score_SPK, id_SPK = top_k(query_PD, database_GD, 5, engine=engines[name])
    plain_PG = exact(query_PD, database_GD, False)
    np.testing.assert_array_equal(id_SPK[0], np.argsort(-plain_PG, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(score_SPK[0], -np.sort(-plain_PG, axis=1)[:, :5], rtol=1e-12)


def test_a_faiss_with_gpus_searches_there(monkeypatch):
    import faiss

    calls = []

    def knn_gpu(resources, query_PD, block_BD, k, *, metric, device):
        calls.append((resources, k, device))
        return faiss.knn(query_PD, block_BD, k, metric=metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    monkeypatch.setenv("LOCAL_RANK", "1")
    random = np.random.default_rng(5)
    query_PD, database_GD = (random.standard_normal((rows, 8)).astype(np.float32) for rows in (4, 3000))
    gpu = FaissEngine()
    assert isinstance(gpu.open(query_PD), GpuScorer)
    results = top_k(query_PD, database_GD, 5, engine=gpu), count_above(query_PD, database_GD, 0.2, engine=gpu)
    assert {(resources, device) for resources, _, device in calls} == {("resources", 1)}
    monkeypatch.undo()
    cpu = FaissEngine()
    assert isinstance(cpu.open(query_PD), FaissScorer)
    expected = top_k(query_PD, database_GD, 5, engine=cpu), count_above(query_PD, database_GD, 0.2, engine=cpu)
    np.testing.assert_array_equal(results[0][1], expected[0][1])
    np.testing.assert_array_equal(results[1], expected[1])


@pytest.mark.parametrize(("fast", "chosen"), [(True, "torch"), (False, "faiss")])
def test_a_large_search_is_torch_s_where_it_is_fast(monkeypatch, fast, chosen):
    monkeypatch.setattr("facelt.search.torch_engine._has_bfloat16", lambda device: fast)
    assert open_search("auto", factory.WORTH_TORCH).engine.name == chosen
    assert open_search("auto", factory.WORTH_TORCH - 1).engine.name == "faiss"
    assert open_search("faiss", factory.WORTH_TORCH).engine.name == "faiss"


@pytest.mark.parametrize(
    ("capabilities", "seconds", "fast"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, (2.0, 1.0), True),
        ({"avx512_bf16": True}, (1.0, 2.0), True),
        ({"avx512_bf16": True}, (2.0, 1.0), False),
        ({}, (1.0, 2.0), False),
    ],
)
def test_bfloat16_is_chosen_where_its_products_are_the_faster_ones(monkeypatch, capabilities, seconds, fast):
    import torch

    from facelt.search import torch_engine

    times = dict(zip((torch.bfloat16, torch.float32), seconds, strict=True))
    assert torch_engine._product_seconds(torch.float32) > 0
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch_engine, "_product_seconds", times.__getitem__)
    assert torch_engine.TorchEngine("cpu").bfloat16 is fast


def test_engines_by_name(monkeypatch):
    assert open_engine("auto").name == open_engine("faiss").name == "faiss"
    assert open_engine("torch").name == "torch"
    assert open_search("torch").engine.name == "torch"
    find_spec = factory.importlib.util.find_spec
    monkeypatch.setattr(
        factory.importlib, "util", types.SimpleNamespace(find_spec=lambda name: name != "faiss" and find_spec(name))
    )
    assert open_engine("auto").name == "torch"
    with pytest.raises(UserError, match=r"search.engine: 'faiss' is not installed; pip install 'facelt\[cpu\]'"):
        open_engine("faiss")
    monkeypatch.setattr(factory.importlib, "util", types.SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(UserError, match="neither faiss nor torch is installed"):
        open_engine("auto")


def test_faiss_search_loads_no_torch(root):
    import subprocess

    code = "import sys, numpy as np; sys.modules['torch'] = None\n"
    code += "from facelt.search.search import open_search\n"
    code += "search = open_search(); rows = np.eye(3, dtype=np.float32)\n"
    code += "print(search.top_k(rows, rows, 1, [3], cosine=True)[1].ravel(), search.count_above(rows, rows, 0.5))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["[0", "1", "2]", "[1", "1", "1]"], done.stderr


@settings(max_examples=100, deadline=None)
@given(st.floats(-3e38, 3e38), st.booleans())
def test_floors_are_rounded_down(floor, bfloat16):
    import torch

    from facelt.search.torch_engine import _rounded_down

    low_P = _rounded_down(np.array([floor]), bfloat16=bfloat16)
    assert low_P.dtype == np.float32
    assert low_P[0] <= floor
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    value = torch.from_numpy(low_P).to(dtype)
    assert value.item() == low_P[0]
    # No larger value of the type is at most the floor.
    assert torch.nextafter(value, torch.tensor([torch.inf], dtype=dtype)).item() > floor

"""Search split over two processes: results equal those of one; both stop at a row that cannot be scored."""

import subprocess
import sys

import numpy as np
import pytest

from facelt.search.factory import open_engine
from facelt.search.search import Search, open_search

PROGRAM = """
import sys
import numpy as np
import torch.distributed as dist
from facelt.search.exact import BadRow
from facelt.search.search import open_search

arrays = np.load(sys.argv[1])
search = open_search(sys.argv[2])
query_PD, database_GD = arrays["query_PD"], arrays["database_GD"]
score_SPK, id_SPK = search.top_k(query_PD, database_GD, 7, arrays["prefixes"].tolist(), cosine=True)
count_P = search.count_above(query_PD, database_GD, 0.3)
database_GD[-2] = 0
try:
    search.count_above(query_PD, database_GD, 0.3)
    said = "nothing"
except BadRow as error:
    said = str(error)
np.savez(f"{sys.argv[3]}/{search.rank}.npz", score_SPK=score_SPK, id_SPK=id_SPK, count_P=count_P, said=said,
    is_first=search.is_first)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["faiss", "torch"])
def test_two_ranks_equal_one(root, tmp_path, name):
    random = np.random.default_rng(6)
    database_GD = random.standard_normal((301, 12)).astype(np.float32)
    # Ties across the border of the shards.
    database_GD[200:] = database_GD[:101]
    query_PD, prefixes = database_GD[:9].copy(), np.array([0, 4, 140, 160, 301])
    np.savez(tmp_path / "in.npz", query_PD=query_PD, database_GD=database_GD, prefixes=prefixes)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "program.py"), str(tmp_path / "in.npz"), name, str(tmp_path)]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    single = Search(open_engine("faiss"))
    score_SPK, id_SPK = single.top_k(query_PD, database_GD, 7, prefixes.tolist(), cosine=True)
    count_P = single.count_above(query_PD, database_GD, 0.3)
    for rank in range(2):
        arrays = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_array_equal(arrays["score_SPK"], score_SPK)
        np.testing.assert_array_equal(arrays["id_SPK"], id_SPK)
        np.testing.assert_array_equal(arrays["count_P"], count_P)
        assert str(arrays["said"]) == "row 299 of the database has length zero"
        assert bool(arrays["is_first"]) == (rank == 0)


def test_one_process_is_not_split(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert type(open_search("faiss")) is Search

"""Result cache: an interrupted run resumes, and never with a result of other inputs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from eval_megaface import protocol
from eval_megaface.protocol import ResultCache
from facelt.errors import UserError
from facelt.search.search import Search


@pytest.fixture
def searches(monkeypatch):
    """Records the searches."""
    calls = []
    for name in ("top_k", "count_above"):
        plain = getattr(Search, name)

        def counted(self, *arguments, plain=plain, name=name, **named):
            calls.append(name)
            return plain(self, *arguments, **named)

        monkeypatch.setattr(Search, name, counted)
    return calls


def test_a_second_run_searches_nothing(small, searches):
    report = small.run()
    assert searches == ["count_above", "top_k"]
    assert small.run() == report
    # Other intervals, ranks or groups need no other search.
    assert small.run("interval.level=0.8", "ranks=[2]")["cmc"] == report["cmc"]
    assert searches == ["count_above", "top_k"]


def test_an_interrupted_run_resumes(small, searches, monkeypatch):
    complete = small.run(out=str(small.root / "whole"))
    searches.clear()
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "hit_ranks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            small.run()
    assert searches == ["count_above", "top_k"]
    assert small.run() | {"title": ""} == complete | {"title": ""}
    assert searches == ["count_above", "top_k", "top_k"]


def test_a_report_is_replaced_on_demand_and_its_searches_are_kept(small, searches, cli, refused):
    words, out = ("megaface", small.write_config()), small.root / "out"
    assert cli(*words)[0] == 0
    (out / "tables/comparison.csv").write_text("of another run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    parts = sorted(path.name for path in (out / "parts").iterdir())
    assert "out: exists already and is not empty; " in refused(*words, "--set", "ranks=[2]")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert cli(*words, "--set", "ranks=[2]", "--overwrite")[0] == 0
    assert {row["rank"] for row in json.loads((out / "report.json").read_text())["rows"]} == {2}
    assert sorted(path.name for path in (out / "parts").iterdir()) == parts
    assert not (out / "tables/comparison.csv").exists()
    assert searches == ["count_above", "top_k"]


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("noise.mode=raw", ["count_above", "top_k"]),
        ("shots.threshold=0.4", ["count_above"]),
        ("noise.mode=insightface", ["count_above", "top_k"]),
        ("suite.sizes=[30]", ["top_k"]),
    ],
)
def test_another_setting_searches_again(small, searches, override, again):
    small.run()
    searches.clear()
    small.run(override)
    assert searches == again


@pytest.mark.parametrize(
    ("name", "again"), [("probes", ["count_above", "top_k"]), ("distractors", ["top_k"]), ("train", ["count_above"])]
)
def test_another_value_searches_again(small, searches, name, again):
    small.run()
    searches.clear()
    path = small.root / name / "direct.npy"
    stamp = path.stat()
    array = np.lib.format.open_memmap(path, mode="r+")
    array[1, 3] += 1e-3
    array.flush()
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    small.run()
    assert searches == again


def test_a_damaged_part_is_named(small):
    small.run()
    part = next((small.root / "out/parts").iterdir())
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"{part.name}: is damaged .* remove it"):
        small.run()


def test_parts_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*npz"):
        ResultCache(tmp_path / "file/parts").save({"a": 1}, {"x_N": np.ones(2)})
    reader = ResultCache(tmp_path / "parts", writes=False)
    assert reader.save({"a": 1}, {"x_N": np.ones(2)})["x_N"].tolist() == [1, 1]
    assert not (tmp_path / "parts").exists()


def test_two_processes_equal_one(small, root, tmp_path):
    config = str(small.write_config(search={"engine": "torch"}, verification=True, open_set={}))
    program = ["eval_megaface/run.py", "--config", config, "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command, out in (([*torchrun, *program], "two"), ([sys.executable, *program], "one")):
        done = subprocess.run(
            [*command, str(tmp_path / out)], cwd=root, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report: ") == 1
    single, split = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    for report in (single, split):
        del report["run"]
        for rate in (*report["verification"]["rates"], *report["open_set"]["rates"]):
            del rate["seconds"]
    assert single == split

"""Embedding under torchrun: the workers' store equals that of one process, byte by byte."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from facelt.cli.embed import embed as embed_command
from facelt.distributed.rendezvous import WorkerGroup
from facelt.store.writer import StoreWriter
from facelt.utils.cli import single_command
from recordio_tools.face_set import FaceRecord

DRIVER = Path(__file__).with_name("thin_embed.py")


def words(run: Path, images: Path, out: Path, batch: int) -> list[str]:
    given = {"checkpoint": run, "images": images, "out": out, "batch": batch, "workers": 0}
    return [str(word) for key, value in given.items() for word in (f"--{key}", value)]


def embed(given: list[str]) -> str:
    """Runs `facelt embed` in this process, one of a worker group; returns its output."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        with pytest.raises(SystemExit, match="0"):
            single_command(embed_command, given)
    return output.getvalue()


def refusal(given: list[str]) -> tuple[int, str]:
    """Returns exit code and stderr of `facelt embed` in this process."""
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(error):
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        with pytest.raises(SystemExit) as end:
            single_command(embed_command, given)
    return int(end.value.code or 0), error.getvalue()


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


# 42 images are nine batches of five, or one of fifty: then one process has nothing to do.
@pytest.mark.parametrize("batch", [5, 50])
def test_two_processes_write_the_store_of_one(finished_run, tiny_faces, rank_pool, tmp_path, batch):
    single, double = (words(finished_run, tiny_faces, tmp_path / name, batch) for name in ("one", "two"))
    (alone,) = rank_pool.run(embed, 1, single, group=False)
    assert alone == f"42 images embedded (direct, meta, meta_unit): {tmp_path / 'one'}\n"
    # The first one speaks for both.
    assert rank_pool.run(embed, 2, double, group=False) == [alone.replace("one", "two"), ""]
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert not (tmp_path / "two.partial").exists()


def test_two_processes_skip_the_same_images_as_one(finished_run, tiny_faces, rank_pool, tmp_path):
    """The limit holds for the sum: each process meets fewer unusable images than allowed."""
    with FaceRecord(tiny_faces) as record:
        for number, key in enumerate(record.image_keys[:20].tolist()):
            path = tmp_path / f"images/{number:02}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"nothing" if number in (4, 5, 17) else bytes(record.read(key).payload))
    single, double, few = (
        [*words(finished_run, tmp_path / "images", tmp_path / name, 4), "--max-bad-images", limit]
        for name, limit in (("one", "3"), ("two", "3"), ("two", "2"))
    )
    (alone,) = rank_pool.run(embed, 1, single, group=False)
    assert alone == f"17 images embedded, 3 left out (direct, meta, meta_unit): {tmp_path / 'one'}\n"
    (code, error), other = rank_pool.run(refusal, 2, few, group=False)
    assert (code, other) == (1, (0, ""))
    assert "3 images cannot be used, --max-bad-images allows 2: 04.png: " in error
    assert not (tmp_path / "two").exists()
    assert rank_pool.run(embed, 2, double, group=False) == [alone.replace("one", "two"), ""]
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert not (tmp_path / "two.partial").exists()


def test_torchrun_processes_write_the_store_of_one(finished_run, tiny_faces, rank_pool, tmp_path):
    single, double = (words(finished_run, tiny_faces, tmp_path / name, 5) for name in ("one", "two"))
    rank_pool.run(embed, 1, single, group=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parents[2])}
    command = [*torchrun, str(DRIVER), *double]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"42 images embedded (direct, meta, meta_unit): {tmp_path / 'two'}\n"
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize(("items", "batch", "world"), [(42, 5, 2), (42, 5, 3), (3, 5, 4), (100, 1, 7), (5, 5, 2)])
def test_shards_are_whole_batches_and_cover_all_items(items, batch, world):
    shares = [WorkerGroup(rank, world).shard_range(items, batch) for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(items))
    assert all(share.start % batch == 0 or not share for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) < 2 * batch
    assert WorkerGroup().shard_range(items, batch) is None


def test_a_store_is_finished_only_when_all_shards_are_written(tmp_path):
    import numpy as np

    from facelt.errors import UserError

    keys, rows = list("abcdef"), np.eye(6, dtype=np.float32)
    shares = (range(0, 4), range(4, 6))

    def writer(share: range | None) -> StoreWriter:
        return StoreWriter(tmp_path / "store", keys, keys, {"direct": 6}, {}, share=share)

    first, second = map(writer, shares)
    first.write(0, {"direct": rows[:4]})
    with pytest.raises(ValueError, match="rows of another share are missing"):
        first.finish()
    second.write(4, {"direct": rows[4:5]})
    with pytest.raises(ValueError, match="more than the store's"):
        second.write(5, {"direct": rows[:2]})
    # Both resume where they stopped; the first has nothing left to write.
    first, second = map(writer, shares)
    assert (first.rows_done, second.rows_done) == (4, 5)
    for other in (None, range(0, 3), range(3, 6)):
        with pytest.raises(UserError, match="begun by another number of processes"):
            writer(other)
    second.write(5, {"direct": rows[5:]})
    first.finish()
    assert sorted(files(tmp_path / "store")) == ["direct.npy", "items.csv", "meta.json"]
    assert np.array_equal(np.load(tmp_path / "store/direct.npy"), rows.astype(np.float16))

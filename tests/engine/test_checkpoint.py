"""Checkpoints: what is read back, and files that are damaged or want to run something."""

import os

import pytest
import torch

from facelt.engine.checkpoint import Checkpoint
from facelt.errors import UserError


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        epoch=3,
        step=7,
        method={"weight": torch.arange(6.0).reshape(2, 3)},
        optimisers=[{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "name": "head"}]}],
        random_state=torch.get_rng_state(),
        log_bytes=123,
        best={"validation_accuracy": 0.5, "epoch": 2.0},
        bad_images={"train.rec:4": "damaged"},
    )


def test_a_checkpoint_comes_back_as_it_was(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt")
    loaded = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert (loaded.epoch, loaded.step, loaded.log_bytes) == (3, 7, 123)
    assert (loaded.best, loaded.bad_images) == (checkpoint.best, checkpoint.bad_images)
    assert torch.equal(loaded.method["weight"], checkpoint.method["weight"])
    assert torch.equal(loaded.random_state, checkpoint.random_state)
    assert torch.equal(loaded.optimisers[0]["state"][0]["momentum_buffer"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_write_that_fails_leaves_the_old_one(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    before = path.read_bytes()

    def full(state, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be written \(No space left"):
        checkpoint.save(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_file_cut_short_is_refused(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a usable checkpoint"):
            Checkpoint.load(path)


def test_a_changed_byte_is_refused_or_was_of_no_account(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), len(whole) // 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            loaded = Checkpoint.load(path)
        except UserError:
            refused += 1
        else:
            assert (loaded.epoch, loaded.step, loaded.best) == (3, 7, checkpoint.best)
            assert torch.equal(loaded.method["weight"], checkpoint.method["weight"])
            assert torch.equal(loaded.random_state, checkpoint.random_state)
    assert refused > 100


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 1}, {"surprise": 1}, torch.ones(2)], ids=["list", "too little", "unknown", "tensor"]
)
def test_other_contents_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "the format before"])
def test_nothing_in_a_checkpoint_is_run(tmp_path, archive):
    trace = tmp_path / "ran"
    torch.save({"epoch": Canary(trace)}, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError, match="not a usable checkpoint"):
        Checkpoint.load(tmp_path / "checkpoint.pt")
    assert not trace.exists()
    # The same file does run something for a reader that trusts it, so the canary is alive.
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert trace.exists()


def test_a_checkpoint_of_another_model_is_refused(train, plain_stage, tmp_path, interrupt):
    with pytest.raises(interrupt("classify", 3)):
        train(tmp_path / "run", stages=plain_stage())
    path = tmp_path / "run/plain/checkpoint.pt"
    saved = Checkpoint.load(path)
    saved.method["head.weight"] = torch.zeros(3, 3)
    saved.save(path)
    with pytest.raises(UserError, match="does not belong to this run"):
        train(tmp_path / "run", resume=True, stages=plain_stage())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="remove it to start the stage again"):
        train(tmp_path / "run", resume=True, stages=plain_stage())
    path.unlink()
    train(tmp_path / "run", resume=True, stages=plain_stage())

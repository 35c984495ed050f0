"""Checkpoints: round trip, retention, damaged files, and no code execution."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from facelt.errors import UserError
from facelt.training.checkpoint import Checkpoints

FACTS = {"epoch": 3, "step": 7, "best": {"validation_accuracy": 0.5}, "bad_images": {"train.rec:4": "damaged"}}
TENSORS = {
    "method.weight": torch.arange(6.0).reshape(2, 3),
    "method.counter": torch.tensor(4),
    "method.filled_C": torch.tensor([True, False]),
    "momentum.weight": torch.rand(3, 2).t(),
    "random.0": torch.get_rng_state(),
}


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """Steps 10 and 20; the tensors of the first are one less."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(10, {**TENSORS, "method.weight": TENSORS["method.weight"] - 1}, {}, {**FACTS, "step": 6})
    checkpoints.save(20, TENSORS, {}, FACTS)
    return checkpoints


def restore(checkpoints: Checkpoints, warnings: list[str] | None = None):
    messages = [] if warnings is None else warnings
    empty = {name: torch.zeros_like(value) for name, value in TENSORS.items()}
    return checkpoints.restore(lambda facts: empty, {}, messages.append)


def test_round_trip_of_the_newest(checkpoints):
    facts, tensors = restore(checkpoints)
    assert {name: facts[name] for name in FACTS} == FACTS
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000010", "step-00000020"]


def test_restore_without_checkpoints(tmp_path):
    assert restore(Checkpoints(tmp_path / "absent", keep=2)) is None


def test_the_newest_are_kept(checkpoints):
    for step in (30, 100_000_000):
        checkpoints.save(step, TENSORS, {}, FACTS)
        assert len(checkpoints.paths()) == 2
    assert [path.name for path in checkpoints.paths()] == ["step-100000000", "step-00000030"]


def test_a_save_that_fails_leaves_the_old_ones(checkpoints, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"step-00000030: cannot read or write the checkpoint \(No space left"):
            checkpoints.save(30, TENSORS, {}, FACTS)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000010", "step-00000020"]
    assert restore(checkpoints)[0]["step"] == 7


@pytest.mark.parametrize("reached", ["nothing", "tensors", "all but the name"])
def test_a_killed_save_is_ignored(checkpoints, reached):
    whole = checkpoints.paths()[0]
    half = checkpoints.folder / ".step-00000030.new"
    if reached == "nothing":
        half.mkdir()
    else:
        shutil.copytree(whole, half)
        if reached == "tensors":
            (half / "state.json").unlink()
    assert restore(checkpoints)[0]["step"] == 7
    checkpoints.save(30, TENSORS, {}, {**FACTS, "step": 8})
    assert restore(checkpoints)[0]["step"] == 8
    assert not half.exists()


def damage_one(checkpoints, name: str, change) -> None:
    (path,) = checkpoints.paths()[0].glob(name)
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name", ["state.json", "*.safetensors"])
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_or_changed_file_is_skipped(checkpoints, name, share):
    def cut(content: bytes) -> bytes:
        return content[: int(share * len(content))]

    def flipped(content: bytes) -> bytes:
        offset = int(share * len(content))
        return content[:offset] + bytes([content[offset] ^ 0x5A]) + content[offset + 1 :]

    whole = shutil.copytree(checkpoints.folder, checkpoints.folder.with_name("whole"))
    for change in (cut, flipped):
        warnings: list[str] = []
        damage_one(checkpoints, name, change)
        facts, tensors = restore(checkpoints, warnings)
        assert facts["step"] == 6
        assert torch.equal(tensors["method.weight"], TENSORS["method.weight"] - 1)
        assert len(warnings) == 1
        assert "step-00000020: not a usable checkpoint" in warnings[0]
        # What cannot be used does not count among those kept.
        assert [path.name for path in checkpoints.paths()] == ["step-00000010"]
        shutil.rmtree(checkpoints.folder)
        shutil.copytree(whole, checkpoints.folder)


def test_a_missing_and_a_foreign_file_are_damage(checkpoints):
    newest, oldest = checkpoints.paths()
    save_file({"method.weight": torch.zeros(2, 3)}, newest / "shard-00009-model-00001-of-00001.safetensors")
    warnings: list[str] = []
    assert restore(checkpoints, warnings)[0]["step"] == 6
    assert "shard-00009" in warnings[0]
    next(oldest.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="no usable checkpoint; remove this folder to restart the stage"):
        restore(checkpoints)


def test_a_file_outside_the_folder_is_not_read(checkpoints, tmp_path):
    content = next(checkpoints.paths()[0].glob("*.safetensors"))
    shutil.move(content, tmp_path / "elsewhere.safetensors")
    path = checkpoints.paths()[0] / "state.json"
    state = json.loads(json.loads(path.read_text())["state"])
    state["files"] = {"../../elsewhere.safetensors": state["files"][content.name]}
    text = json.dumps(state)
    path.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "state": text}))
    warnings: list[str] = []
    assert restore(checkpoints, warnings)[0]["step"] == 6
    assert "lies outside its folder" in warnings[0]


class Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_reading_executes_no_code(checkpoints, tmp_path):
    trace = tmp_path / "ran"
    content = pickle.dumps(Canary(trace))
    newest = checkpoints.paths()[0]
    for path in (newest / ".metadata", newest / "__0_0.distcp", checkpoints.paths()[1] / ".metadata"):
        path.write_bytes(content)
    assert restore(checkpoints)[0]["step"] == 7
    damage_one(checkpoints, "*.safetensors", lambda _: content)
    assert restore(checkpoints)[0]["step"] == 6
    assert not trace.exists()
    # The same bytes do run something for a reader that trusts them, so the canary is alive.
    pickle.loads(content)
    assert trace.exists()


@pytest.mark.parametrize("change", [{"method.weight": torch.zeros(3, 3)}, {"method.other": torch.zeros(2)}])
def test_another_models_checkpoint_is_refused(checkpoints, change):
    targets = {**TENSORS, **change}
    with pytest.raises(UserError, match="checkpoint mismatch") as caught:
        checkpoints.restore(lambda facts: targets, {}, print)
    assert "\n" not in str(caught.value)


def test_a_run_skips_a_damaged_checkpoint_and_ends_bit_exact(
    train, plain_stage, finished_run, tmp_path, interrupt, metrics, assert_same_weights, capsys
):
    with pytest.raises(interrupt("classify", 7)):
        train(tmp_path / "run", checkpoint_every=2)
    newest, _ = sorted((tmp_path / "run/plain/checkpoints").iterdir(), reverse=True)
    (newest / "state.json").write_text("{}")
    folder = train(tmp_path / "run", resume=True, checkpoint_every=2)
    assert f"{newest}: not a usable checkpoint" in capsys.readouterr().err
    assert metrics(folder) == metrics(finished_run)
    for stage in ("plain", "oltr"):
        assert_same_weights(folder / stage / "model.safetensors", finished_run / stage / "model.safetensors")

"""Own stack frames between a command and its work, read from the real stack of a small run."""

import traceback
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
import yaml

from eval_megaface.run import main as megaface_command
from eval_megaface.run import megaface
from facelt.cli.audit import audit
from facelt.cli.gallery import identify
from facelt.cli.train import train
from facelt.stats import intervals

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = tuple(ROOT / name for name in ("facelt", "recordio_tools", "eval_megaface"))


def own_frames(stack: traceback.StackSummary, entry: Callable) -> list[str]:
    """Returns the own frames of a stack as `file:function`, from the command function `entry` to the innermost one."""
    own = [frame for frame in stack if any(Path(frame.filename).is_relative_to(folder) for folder in PACKAGES)]
    code = entry.__code__
    start = next(
        index for index, frame in enumerate(own) if (frame.filename, frame.name) == (code.co_filename, code.co_name)
    )
    return [f"{Path(frame.filename).relative_to(ROOT)}:{frame.name}" for frame in own[start:]]


@pytest.fixture
def record_stack(monkeypatch) -> Callable[..., list[traceback.StackSummary]]:
    """record_stack(owner, name) -> a list that receives the stack of every call of that function."""

    def record(owner: object, name: str) -> list[traceback.StackSummary]:
        stacks: list[traceback.StackSummary] = []
        original = getattr(owner, name)

        def recorded(*arguments, **options):
            stacks.append(traceback.extract_stack())
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, recorded)
        return stacks

    return record


def test_train_reaches_backward_in_4_frames_of_3_files(cli, recipe, tmp_path, record_stack):
    values = recipe(tmp_path / "run")
    values["stages"] = [{**values["stages"][0], "epochs": 1}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    stacks = record_stack(torch.Tensor, "backward")
    code, _, error = cli("train", "--config", tmp_path / "recipe.yaml")
    assert code == 0, error
    frames = own_frames(stacks[-1], train)
    assert len(frames) <= 4, frames
    assert len({frame.partition(":")[0] for frame in frames}) <= 3, frames


def test_audit_reaches_the_interval_limits_in_6_frames(cli, tmp_path, record_stack):
    people = "abcd"
    pairs = [
        f"{left},{right},{0.9 if left == right else 0.1},{int(left == right)}" for left in people for right in people
    ]
    (tmp_path / "scores.csv").write_text("\n".join(["id1,id2,score,label", *pairs]))
    (tmp_path / "people.csv").write_text("identity,group\na,x\nb,x\nc,y\nd,y\n")
    files = ("--scores", tmp_path / "scores.csv", "--attributes", tmp_path / "people.csv", "--out", tmp_path / "report")
    stacks = record_stack(intervals, "wilson_limits")
    code, _, error = cli("audit", *files, "--by", "group", "--threshold-at", "score=0.5")
    assert code == 0, error
    assert stacks
    for stack in stacks:
        frames = [*own_frames(stack, audit), "wilson_limits"]
        assert len(frames) <= 6, frames


def test_megaface_reaches_faiss_in_7_frames(golden, tmp_path, record_stack):
    folder = golden / "megaface"
    features = {name: str(folder / "features" / name) for name in ("facescrub", "megaface")}
    model = {"probes": features["facescrub"], "distractors": features["megaface"], "algorithm": "golden"}
    suite = {"root": str(folder), "facescrub_list": "facescrub_features_list.json", "megaface_lists": "."}
    values = {"suite": suite, "models": {"golden": model}, "noise": {"mode": "raw"}, "search": {"engine": "faiss"}}
    values["out"] = str(tmp_path / "out")
    (tmp_path / "megaface.yaml").write_text(yaml.safe_dump(values))
    stacks = record_stack(pytest.importorskip("faiss"), "knn")
    with pytest.raises(SystemExit) as caught:
        megaface_command(["--config", str(tmp_path / "megaface.yaml")])
    assert caught.value.code == 0
    frames = max((own_frames(stack, megaface) for stack in stacks), key=len)
    assert len(frames) <= 7, frames


def test_identify_reaches_faiss_in_7_frames(cli, tmp_path, record_stack):
    rows_ND = np.eye(4, dtype=np.float32)
    np.save(tmp_path / "rows.npy", rows_ND)
    (tmp_path / "rows.csv").write_text("key,person\n" + "".join(f"k{i},p{i}\n" for i in range(4)))
    gallery = tmp_path / "gallery"
    model = ("--model", "m", "--weights-sha256", "0" * 64, "--dimension", 4)
    inputs = (tmp_path / "rows.npy", "--table", tmp_path / "rows.csv", "--model", "m")
    assert cli("gallery", "create", gallery, *model)[0] == 0
    assert cli("gallery", "enroll", gallery, *inputs)[0] == 0
    stacks = record_stack(faiss, "knn")
    code, out, error = cli("gallery", "identify", gallery, *inputs, "--threshold", "0.5")
    assert code == 0, error
    assert "k0: p0 1.000" in out
    assert stacks
    for stack in stacks:
        frames = own_frames(stack, identify)
        assert len(frames) <= 7, frames

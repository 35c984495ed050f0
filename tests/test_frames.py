"""Own stack frames between a command and its work, read from the real stack of a small run."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from facelt.cli.train import train

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

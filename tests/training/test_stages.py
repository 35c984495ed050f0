"""Stage options: teachers, own optimiser, frozen statistics, and stages without steps."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.registry import METHODS
from facelt.config.train import OptimConfig, TrainConfig
from facelt.errors import UserError
from facelt.inference.model import load_model
from facelt.methods.classify import Classify, ClassifySettings
from facelt.training.run import run

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class WithTeachers(Classify):
    """Keeps its teachers, and scales the direction of its logits by a setting: only 1 keeps the order of classes."""

    given_teachers: tuple = ()
    kept: torch.Tensor | None = None

    def set_teachers(self, teachers):
        type(self).given_teachers = tuple(teachers)

    @property
    def tunable_values(self):
        return () if self.kept is None else (-1.0, 1.0, 0.0)

    def set_value(self, value):
        with torch.no_grad():
            self.head.weight.copy_(self.kept * value)
            self.head.bias.zero_()

    def load_stage(self, state):
        super().load_stage(state)
        self.kept = self.head.weight.detach().clone()


@pytest.fixture
def with_teachers(monkeypatch):
    monkeypatch.setitem(METHODS, "classify", WithTeachers)
    monkeypatch.setattr(ClassifySettings, "num_teachers", range(3))
    return WithTeachers


def second(finished_run, **changes):
    """A second stage from the finished run's first one."""
    method = {"name": "classify", "keep_head": True}
    return {"name": "second", "init_from": str(finished_run / "plain"), "method": method, "epochs": 1, **changes}


def weights(folder, stage="second"):
    return load_file(folder / stage / "model.safetensors")


def test_a_kept_head_trains_and_a_frozen_one_does_not(train, finished_run, tmp_path):
    before = weights(finished_run, "plain")
    frozen = weights(train(tmp_path / "frozen", stages=[second(finished_run, freeze=["head"])]))
    moved = weights(train(tmp_path / "moved", stages=[second(finished_run)]))
    fresh = weights(train(tmp_path / "fresh", stages=[second(finished_run, method={"name": "classify"})]))
    assert torch.equal(before["head.weight"], frozen["head.weight"])
    assert not torch.equal(before["network.backbone.conv1.weight"], frozen["network.backbone.conv1.weight"])
    near, far = ((before["head.weight"] - after["head.weight"]).norm() for after in (moved, fresh))
    assert 0 < near < far


def test_a_head_of_another_shape_is_refused_before_anything_moves(train, finished_run, tmp_path):
    method = {"name": "classify", "keep_head": True, "head": "cosine"}
    kept = train(tmp_path / "same", stages=[second(finished_run, method={**method, "head": "linear"})])
    assert kept.exists()
    stages = [{"name": "first", "method": {"name": "classify", "head": "cosine"}, "epochs": 1}]
    stages.append(
        {"name": "second", "init_from": "first", "method": {"name": "classify", "keep_head": True}, "epochs": 1}
    )
    with pytest.raises(UserError, match="no head like this one"):
        train(tmp_path / "other", stages=stages)


def test_frozen_statistics(train, finished_run, tmp_path):
    before = weights(finished_run, "plain")
    names = [name for name in before if name.endswith(STATISTICS)]
    for batch_norm, same in (("frozen", True), ("train", False)):
        after = weights(train(tmp_path / batch_norm, stages=[second(finished_run, batch_norm=batch_norm)]))
        assert all(torch.equal(before[name], after[name]) for name in names) == same
        assert not torch.equal(before["network.backbone.conv1.weight"], after["network.backbone.conv1.weight"])


def test_a_stage_starts_from_the_weighted_mean_of_stages(train, finished_run, tmp_path):
    plain = str(finished_run / "plain")
    third = second(finished_run, name="third", method={"name": "classify"})
    shares = {plain: 0.5, "third": 0.2}
    averaged = second(finished_run, name="averaged", init_from="second", average_with=shares, epochs=0)
    folder = train(tmp_path / "run", stages=[second(finished_run), third, averaged])
    sources = {"second": 0.3, "third": 0.2}
    states = [(weights(folder, name), share) for name, share in sources.items()] + [
        (weights(finished_run, "plain"), 0.5)
    ]
    for name, value in weights(folder, "averaged").items():
        if name.startswith("network.") and value.is_floating_point():
            torch.testing.assert_close(value, sum(share * state[name] for state, share in states))
        else:
            assert torch.equal(value, states[0][0][name])


def test_networks_that_differ_are_not_averaged(train, recipe, finished_run, tmp_path):
    plain = str(finished_run / "plain")
    for shares, message in (
        ({str(finished_run / "oltr"): 0.5}, "cannot be averaged with that of .*plain.*: unexpected entry 'attention"),
        ({str(tmp_path / "nowhere"): 0.5}, "nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "run", stages=[second(finished_run, average_with=shares)])
        assert not (tmp_path / "run").exists()
    for changes, message in (
        ({"average_with": {"unknown": 0.5}}, "'second' starts from 'unknown'; allowed: the FOLDER/STAGE"),
        ({"average_with": {plain: 0.5}, "init_from": None}, "average_with: needs init_from"),
        ({"average_with": {plain: 0.5, "x/y": 0.5}}, "average_with: the weights add up to 1, which leaves none"),
        ({"average_with": {plain: 0.0}}, "greater than 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            TrainConfig.model_validate(recipe(tmp_path, stages=[second(finished_run, **changes)]))


def test_a_stage_with_its_own_optimiser(train, finished_run, tmp_path):
    own = {"lr": 0.02, "batch": 12, "nesterov": True}
    folder = train(tmp_path / "run", stages=[second(finished_run, optim=own, schedule={"name": "constant"})])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["lr"] for line in lines if "lr" in line} == {0.02}
    # 32 training images make two steps of 12 and four of 8.
    assert max(line["step"] for line in lines if line["stage"] == "second") == 2
    with pytest.raises(ValidationError, match="nesterov"):
        OptimConfig(nesterov=True, momentum=0.0)


def test_teachers_are_frozen_and_loaded_from_the_named_stages(train, with_teachers, finished_run, tmp_path):
    stages = [{"name": "first", "method": {"name": "classify"}, "epochs": 1}]
    stages.append(second(finished_run, teachers=["first", str(finished_run / "oltr")]))
    folder = train(tmp_path / "run", stages=stages)
    first, oltr = with_teachers.given_teachers
    assert isinstance(first, Classify)
    assert type(oltr) is METHODS["dynamic_meta"]
    for teacher, path in ((first, folder / "first"), (oltr, finished_run / "oltr")):
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        expected = load_model(path, torch.device("cpu")).method.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())


def test_a_method_without_teachers_refuses_one(train, finished_run, tmp_path):
    with pytest.raises(ValidationError, match="teachers: classify with these settings needs 0, 1 given"):
        train(tmp_path / "run", stages=[second(finished_run, teachers=[str(finished_run / "plain")])])


def test_a_missing_teacher_is_named(train, with_teachers, recipe, finished_run, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        train(tmp_path / "missing", stages=[second(finished_run, teachers=[str(tmp_path / "nowhere")])])
    assert not (tmp_path / "missing").exists()
    with pytest.raises(ValidationError, match="has the teacher 'unknown'"):
        TrainConfig.model_validate(recipe(tmp_path, stages=[second(finished_run, teachers=["unknown"])]))


@pytest.mark.parametrize(
    ("method", "teacher", "reason"),
    [
        ({"name": "lfme"}, {}, "is not an expert: lfme needs stages of the method classify with shots"),
        ({"name": "lfme"}, {"method": {"name": "dynamic_meta"}}, "is not an expert"),
        ({"name": "classify", "move_foreground": {}}, {}, "has no linear classifier on the averaged map"),
        (
            {"name": "classify", "move_foreground": {}},
            {"method": {"name": "classify", "head": "cosine"}, "embedding": "none"},
            "has no linear classifier",
        ),
    ],
)
def test_an_unsuitable_teacher_is_refused_before_training(recipe, tmp_path, method, teacher, reason):
    stages = [{"name": "first", "method": {"name": "classify"}, "epochs": 1} | teacher]
    stages.append({"name": "second", "method": method, "epochs": 1, "teachers": ["first"]})
    with pytest.raises(ValidationError, match=f"'second' has the teacher 'first', which {reason}"):
        TrainConfig.model_validate(recipe(tmp_path, stages=stages))


def test_an_unsuitable_teacher_of_another_run_is_refused_before_training(train, finished_run, tmp_path):
    teacher = str(finished_run / "plain")
    stage = {"name": "second", "method": {"name": "lfme"}, "epochs": 1, "teachers": [teacher]}
    with pytest.raises(UserError, match=f"'second' has the teacher '{teacher}', which is not an expert"):
        train(tmp_path / "run", stages=[stage])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_stage_without_steps_picks_the_best_setting(train, with_teachers, finished_run, tmp_path, keep):
    folder = train(tmp_path / "run", stages=[second(finished_run, epochs=0, keep=keep)])
    card = json.loads((folder / "second/card.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tried = {line["setting"]: line["validation_accuracy"] for line in lines if "setting" in line}
    assert set(tried) == {-1.0, 1.0, 0.0}
    assert tried[card["best"]["setting"]] == max(tried.values()) == card["best"]["validation_accuracy"]
    expected = weights(finished_run, "plain")["head.weight"] * card["best"]["setting"]
    assert torch.equal(weights(folder)["head.weight"], expected)
    assert not (folder / "second/best.safetensors").exists()


def test_without_validation_images_a_method_keeps_its_own_setting(recipe, with_teachers, finished_run, tmp_path):
    values = recipe(tmp_path / "run", stages=[second(finished_run, epochs=0)])
    values["data"]["validation_fraction"] = 0.0
    folder = run(TrainConfig.model_validate(values))
    assert torch.equal(weights(folder)["head.weight"], weights(finished_run, "plain")["head.weight"])

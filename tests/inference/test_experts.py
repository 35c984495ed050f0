"""Multi-expert runs: a teacher, its student, a router on the student, and predictions of each expert."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from facelt.cli.main import app
from facelt.config.train import TrainConfig
from facelt.data.batch import BadImageTracker
from facelt.data.kind import Split
from facelt.distributed.comm import rank, world_size
from facelt.distributed.ddp import wrap_ddp
from facelt.errors import UserError
from facelt.inference.model import load_model
from facelt.inference.predict import Predictor, predict_all
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network
from facelt.training.run import run

CPU = torch.device("cpu")
NARROW = {"split": "layer1", "width": 0.75}


def expert_predictions(model, split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [N], each expert's predictions [K,N] and those of their average [N]."""
    predictor = Predictor.of(model, 4, 0, BadImageTracker(0))
    result = predict_all(predictor, split, ("label", "prediction", "expert_predictions"))
    return result.label_N.numpy(), result.expert_prediction_NK.T.numpy(), result.prediction_N.numpy()


@pytest.fixture(scope="module")
def experts_run(recipe, tmp_path_factory):
    """The folder of a run with all multi-expert methods."""
    values = recipe(tmp_path_factory.mktemp("experts") / "run")
    values["model"] = {"backbone": "resnet32"}
    values["optim"] = {"lr": 0.05, "batch": 16}
    shared = {"epochs": 1, "embedding": "none"}
    ride = {"name": "ride", "distillation": {}}
    three = {"count": 3, **NARROW}
    values["stages"] = [
        {"name": "teacher", "method": {"name": "ride"}, "branches": {"count": 4, **NARROW}, **shared},
        {"name": "student", "teachers": ["teacher"], "method": ride, "branches": three, **shared},
        {"name": "router", "init_from": "student", "method": {"name": "ride_router"}, "branches": three, **shared},
        {
            "name": "independent",
            "method": {"name": "independent", "average": "probabilities"},
            "branches": {"count": 2, "split": "none"},
            **shared,
        },
    ]
    return run(TrainConfig.model_validate(values))


@pytest.mark.parametrize("stage", ["student", "router", "independent"])
def test_each_experts_predictions_are_those_of_its_branch_alone(experts_run, stage):
    model = load_model(experts_run / stage, CPU)
    data = model.config.data.open(model.config.seed)
    split = data.evaluation["validation"]
    label_N, expert_KN, together_N = expert_predictions(model, split)
    assert label_N.tolist() == split.labels.tolist()
    with torch.no_grad():
        for row, member in enumerate(split.members.tolist()):
            image = torch.from_numpy(split.dataset[(member, 0)].image_HW3).permute(2, 0, 1)[None] / 127.5 - 1
            feature_KD = model.method.network(image)[0]
            for expert, head in enumerate(model.method.heads):
                cosine_C = torch.nn.functional.normalize(head.weight) @ feature_KD[expert]
                assert expert_KN[expert, row] == cosine_C.argmax().item()
            assert together_N[row] == model.method.logits(image).argmax().item()
    assert expert_KN.shape == (len(model.method.heads), len(split.members))


def test_the_router_leaves_the_student_as_it_is_and_counts_its_experts(experts_run):
    student, router = (load_model(experts_run / stage, CPU).method.state_dict() for stage in ("student", "router"))
    for name, value in router.items():
        if not name.startswith("router."):
            assert torch.equal(value, student[name]), name
    lines = [json.loads(line) for line in (experts_run / "metrics.jsonl").read_text().splitlines()]
    counted = [line["experts_per_image"] for line in lines if "experts_per_image" in line]
    assert len(counted) == 1
    assert 1 <= counted[0] <= 3
    counts = [line["experts_used"] for line in lines if "experts_used" in line]
    assert len(counts) > 0
    assert all(1 <= count <= 3 for count in counts)


def test_a_split_without_an_image_and_a_method_without_experts(experts_run, finished_run):
    model = load_model(experts_run / "student", CPU)
    data = model.config.data.open(model.config.seed)
    split = data.evaluation["validation"]
    nothing = Split(split.dataset, split.members[:0])
    label_N, expert_KN, together_N = expert_predictions(model, nothing)
    assert (label_N.shape, expert_KN.shape, together_N.shape) == ((0,), (3, 0), (0,))
    assert expert_KN.dtype == np.int64
    plain = load_model(finished_run / "plain", CPU)
    with pytest.raises(UserError, match="Classify has no experts: train a method with several, such as independent"):
        expert_predictions(plain, split)


def gradients_of_a_step() -> dict[str, torch.Tensor]:
    """Gradients of a network whose two branches see different images, sharded over the ranks."""
    torch.manual_seed(0)
    network = build_network(
        "resnet32", image_size=(8, 8), attention=False, embedding="none", branches=BranchSpec(2, "layer1")
    ).eval()
    run_network = wrap_ddp(network, CPU) or network
    random = torch.Generator().manual_seed(1)
    image_KB388 = torch.randn(2, 4, 3, 8, 8, generator=random)
    weight_BKD = torch.randn(4, 2, network.dim, generator=random)
    own = slice(4 * rank() // world_size(), 4 * (rank() + 1) // world_size())
    (run_network(*image_KB388[:, own]) * weight_BKD[own]).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_ranks_put_the_gradients_of_a_step_with_several_inputs_together(rank_pool):
    alone = gradients_of_a_step()
    for together in rank_pool.run(gradients_of_a_step, 2):
        for name, gradient in alone.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(together[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_the_command_counts_what_experts_win_and_lose_together(experts_run, finished_run):
    words = ["evaluate", "--workers", "0", "--json", "--experts", "--checkpoint"]
    done = CliRunner().invoke(app, [*words, str(experts_run / "independent")])
    assert done.exit_code == 0, done.exception
    counts = json.loads(done.stdout)["experts"]
    model = load_model(experts_run / "independent", CPU)
    data = model.config.data.open(model.config.seed)
    split = data.evaluation["validation"]
    label_N, expert_KN, together_N = expert_predictions(model, split)
    lost = [
        sum(expert == label != both for label, expert, both in zip(label_N, expert_N, together_N, strict=True))
        for expert_N in expert_KN
    ]
    assert (counts["images"], counts["lost"]) == (len(label_N), lost)
    refused = CliRunner().invoke(app, [*words, str(finished_run)])
    assert refused.exit_code == 1
    assert "has no experts" in str(refused.exception)

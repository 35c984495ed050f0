"""Dry runs: costs against torch's own tracker and the formulas of docs/scaling.md, and refusals in one line."""

import gc
from dataclasses import replace

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from facelt.config.loading import load_config
from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.inference.model import build_method
from facelt.methods.base import StepContext, TrainBatch
from facelt.training.dry_run import dry_run
from tests.methods.minimal import BRANCHES, WITHOUT_STEPS, stages

# Stages of these methods fit classifiers in a step, with as many images as there are.
BY_VALUES = {"model_regression", "meta_model_net"}
BATCH, DIM, IDENTITIES = 16, 8, 1000


@pytest.fixture
def config(recipe, tmp_path):
    """config(method or stages) -> a configuration whose data do not exist."""

    def config(chosen: str | list[dict], **changes) -> TrainConfig:
        data = {"kind": "record", "train": tmp_path / "absent.rec", "image_size": [32, 32]}
        values = {"out": tmp_path / "run", "data": data, "model": {"backbone": "resnet10", "dim": DIM}, **changes}
        values["optim"] = {"batch": BATCH, **changes.get("optim", {})}
        return TrainConfig.model_validate({**values, "stages": stages(chosen) if isinstance(chosen, str) else chosen})

    return config


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_costs(name, config):
    # Of at most 19 images each, so that the one expert of the recipe is enough.
    optim = {"batch": 4} if name == "semi_siamese" else {}
    model = {"backbone": "resnet32" if name in BRANCHES else "resnet10", "dim": DIM}
    cost = dry_run(config(name, optim=optim, model=model), 2, 18)[-1]
    assert cost.identities == 9
    assert min(cost.network, cost.head) > 0
    assert (cost.activations is None) == (name in WITHOUT_STEPS | BY_VALUES)
    if cost.activations is not None:
        assert min(cost.activations, cost.gradients, cost.exchanged, cost.momentum) > 0


def tracked(config: TrainConfig) -> dict[str, int]:
    """Bytes by kind that torch's tracker finds alive between forward and backward pass of the last stage."""
    stage = config.stages[-1]
    with FakeTensorMode(allow_non_fake_inputs=True):
        # The tracker needs gradients of all parameters.
        method = build_method(config, stage, IDENTITIES).requires_grad_(True)
        method.bf16 = config.precision == "bf16"
        inputs = TrainBatch(torch.empty(BATCH, 3, 32, 32), torch.empty(BATCH, dtype=torch.int64))
        tracker = MemTracker()
        tracker.track_external(method, inputs.image_B3HW)
        with pytest.MonkeyPatch.context() as patch, tracker:
            # It reads the labels, which are fake here.
            patch.setattr("facelt.distributed.class_shards.ClassRange.check_labels", lambda *_: None)
            output = method.step([inputs], StepContext(0, 1, 0, 1))
            gc.collect()
            snapshot = tracker.get_tracker_snapshot("current")[torch.device("cpu")]
            del output
    return {kind.name if hasattr(kind, "name") else str(kind): value for kind, value in snapshot.items()}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", ["classify", "dynamic_meta"])
def test_activations_are_those_of_torchs_tracker_within_a_tenth(method, precision, config):
    chosen = config(method, precision=precision)
    cost = dry_run(chosen, 1, IDENTITIES)[-1]
    alive = tracked(chosen)
    assert cost.network + cost.head + cost.memory == alive["PARAM"] + alive["BUFFER"]
    # The images are not made by the step. In bf16 only their copy is kept.
    images = BATCH * 3 * 32 * 32 * 4 if precision == "float32" else 0
    assert cost.activations == pytest.approx(alive["ACT"] + images, rel=0.1)


@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("identities", [1000, 50_000])
def test_costs_are_the_formulas(processes, identities, config):
    (cost,) = dry_run(config([{"name": "plain", "method": {"name": "classify"}, "epochs": 1}]), processes, identities)
    rows, images = identities // processes, BATCH // processes
    assert (cost.identities, cost.images) == (rows, images)
    assert cost.head == 4 * rows * (DIM + 1)
    assert cost.memory == 0
    assert cost.momentum == cost.gradients
    trained = cost.gradients - cost.head
    step = 8 * BATCH * DIM + 8 * BATCH + 12 * BATCH + 8 * processes
    assert cost.exchanged == (0 if processes == 1 else step + trained)


def test_micro_batches_share_the_activations_but_not_the_exchange(config):
    plain = [{"name": "plain", "method": {"name": "classify"}, "epochs": 1}]
    whole, halves = (dry_run(config(plain, optim={"accumulate": k}), 2, 100)[0] for k in (1, 2))
    assert halves.images == whole.images / 2
    assert halves.activations < 0.6 * whole.activations
    assert replace(halves, images=0, activations=0, exchanged=0) == replace(whole, images=0, activations=0, exchanged=0)
    assert halves.exchanged - whole.exchanged == 8 * 2


def test_ms1m_lt_at_a_million_identities_on_eight_processes(root):
    chosen = load_config(root / "configs/ms1m_lt.yaml", TrainConfig)
    chosen = chosen.model_copy(update={"stages": (chosen.stages[0], chosen.stages[2])})
    for identities in (74_500, 1_000_000):
        plain, oltr = dry_run(chosen, 8, identities)
        rows = -(-identities // 8)
        assert (oltr.identities, oltr.images) == (rows, 64)
        assert plain.head == 4 * rows * 513
        assert oltr.memory == rows * (4 * 512 + 1)
        # Two tensors of logits instead of one.
        assert oltr.activations > plain.activations + 4 * 512 * rows
        # docs/scaling.md; without the gradients of the network, 4 bytes a parameter.
        expected = 28 * 512 * 512 + 32 * 512 + 12 * 8 * 512 + 28 * 512 + 64 + 4 * 512 + 16 + 4 * 512 * 513
        network = oltr.gradients - 8 * rows * 512 - 4 * rows - 4 * 512 * 513
        assert oltr.exchanged == expected + network


def test_the_command_prints_a_table_and_writes_nothing(cli, recipe, tmp_path):
    values = recipe(tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    code, output, error = cli("train", "--config", tmp_path / "recipe.yaml", "--dry-run", "--processes", 2)
    assert code == 0, error
    assert "Megabytes on the first of 2 processes" in output
    assert all(f" {stage['name']} " in output for stage in values["stages"])
    assert not (tmp_path / "run").exists()


def test_mistakes_are_answered_in_one_line(cli, config, recipe, tmp_path):
    for words, message in (
        (["--processes", "2"], "only allowed with --dry-run"),
        (["--identities", "9"], "only allowed with --dry-run"),
        (["--dry-run", "--resume"], "trains nothing, so there is nothing to resume"),
        (["--dry-run", "--identities", "1"], "greater than or equal to 2"),
    ):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "run")))
        code, _, error = cli("train", "--config", tmp_path / "recipe.yaml", *words)
        assert code == 2
        assert message in " ".join(error.replace("│", " ").split())
    with pytest.raises(UserError, match=r"absent\.rec.*give their number of identities by --identities$"):
        dry_run(config("classify"))
    with pytest.raises(UserError, match=r"optim\.batch: 16 is too small for 9 processes"):
        dry_run(config("classify"), 9, 40)
    outside = {"name": "ride", "branches": {"count": 3, "split": "layer2"}, "epochs": 1, "teachers": ["other/stage"]}
    with pytest.raises(UserError, match="'other/stage': --dry-run knows only stages of this run"):
        dry_run(config([{**outside, "method": {"name": "ride", "distillation": {}}}]), 1, 40)

"""The schema of a training run, and every recipe in configs/."""

from pathlib import Path

import pytest
import torch
import yaml

from eval_megaface.config import MegafaceConfig
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.inference.model import build_method
from facelt.methods.base import StepContext
from facelt.models.pretrained import load_stage_weights
from facelt.training.optim import learning_rate_factor

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
AUDITS = sorted(path.name for path in CONFIGS.glob("audit_*.yaml"))
MEASUREMENTS = sorted(path.name for path in CONFIGS.glob("*megaface*.yaml") if path.name not in AUDITS)
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name not in (*MEASUREMENTS, *AUDITS))
# Of features, where it is not the 512 of the papers on faces and of OLTR.
DIMS = {
    "faces_mobilefacenet.yaml": 128,
    "faces_mobilefacenet_frozen.yaml": 128,
    "demo.yaml": 128,
    "inaturalist18.yaml": 2048,
    "cifar100_tinyimagenet.yaml": 342,
}


def test_the_recipes_that_are_promised_are_there():
    assert {"ms1m_lt.yaml", "faces_small.yaml", "demo.yaml", "imagenet_lt.yaml", "places_lt.yaml"} <= set(RECIPES)
    assert {"inaturalist18.yaml", "sun_lt.yaml", "cifar100_tinyimagenet.yaml"} <= set(RECIPES)
    assert "megaface.yaml" in MEASUREMENTS


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_loads(name):
    load_config(CONFIGS / name, MegafaceConfig)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_its_stages_fit_each_other(name):
    config = load_config(CONFIGS / name, TrainConfig)
    classes = getattr(config.data, "num_classes", None) or 74_500
    methods = {}
    with torch.device("meta"):
        for stage in config.stages:
            method = methods[stage.name] = build_method(config, stage, classes)
            assert method.network.dim == DIMS.get(name, 512)
            if stage.init_from in methods:
                earlier = methods[stage.init_from].network.state_dict()
                load_stage_weights(method.network, {key: torch.empty_like(value) for key, value in earlier.items()})


# The released settings: epochs, StepLR, learning rates of backbone, head and centroids, what is new and what is frozen.
TABLE = {
    ("imagenet_lt", 0): (30, 10, (0.1, 0.1, None), "instance", "none", False, ()),
    ("imagenet_lt", 1): (60, 20, (0.01, 0.1, 0.01), "class_aware", "fc_relu", True, ()),
    ("places_lt", 0): (30, 10, (0.001, 0.1, None), "instance", "fc_relu", False, ()),
    ("places_lt", 1): (30, 10, (0.0001, 0.01, 0.01), "class_aware", "fc_relu", True, ("backbone",)),
}
# SUN-LT has no published settings; it uses those of Places-LT, which are scenes as well.
TABLE |= {("sun_lt", number): TABLE["places_lt", number] for number in (0, 1)}


@pytest.mark.parametrize(("name", "number"), TABLE)
def test_the_recipes_of_the_lists_are_oltrs(name, number):
    config = load_config(CONFIGS / f"{name}.yaml", TrainConfig)
    stage = config.stages[number]
    epochs, every, rates, sampler, embedding, attention, frozen = TABLE[name, number]
    assert (stage.epochs, stage.schedule.name, stage.schedule.step_size, stage.schedule.gamma) == (
        epochs,
        "step",
        every,
        0.1,
    )
    shares = (stage.lr_mult.network, stage.lr_mult.head, stage.lr_mult.memory)
    for share, rate in zip(shares, rates, strict=True):
        assert rate is None or config.optim.lr * share == pytest.approx(rate)
    assert (stage.method.sampler, stage.embedding, stage.attention, stage.freeze) == (
        sampler,
        embedding,
        attention,
        frozen,
    )
    assert (config.optim.batch, config.optim.weight_decay, config.optim.momentum) == (128, 5e-4, 0.9)
    assert (config.data.crop, config.data.resize, config.model.dim) == (224, 256, 512)
    assert config.model.backbone == ("resnet10" if name == "imagenet_lt" else "resnet152")
    assert (config.model.pretrained is None) == (name == "imagenet_lt")
    if number == 1:
        assert (stage.method.centroid_update, stage.method.variant) == ("released", "released")
        assert stage.init_from == config.stages[0].name


def test_the_recipe_of_inaturalist_is_the_one_that_its_classifiers_were_decoupled_from():
    config = load_config(CONFIGS / "inaturalist18.yaml", TrainConfig)
    stage, oltr = config.stages
    assert (oltr.method.name, oltr.init_from) == ("dynamic_meta", "plain")
    assert (config.data.num_classes, config.data.jitter, config.model.backbone) == (8142, (0, 0, 0, 0), "resnet50")
    assert (config.data.mean, config.data.std) == ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))
    assert (stage.epochs, stage.schedule.name, stage.keep) == (90, "cosine", "last")
    assert (config.optim.batch, config.optim.lr, config.optim.weight_decay) == (512, 0.2, 1e-4)


def test_the_recipe_for_detection_is_odins_row():
    data = load_config(CONFIGS / "cifar100_tinyimagenet.yaml", TrainConfig).data
    assert (data.classes, data.imbalance, data.tuning, data.pad, data.flip) == (100, 1, 1000, 4, True)
    assert data.mean == pytest.approx([125.3 / 255, 123 / 255, 113.9 / 255], abs=1e-5)
    assert data.std == pytest.approx([63 / 255, 62.1 / 255, 66.7 / 255], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "margin", "batch", "decay", "epochs", "milestones"),
    [
        ("arcface", {"m": 0.5}, 1024, 1e-4, 20, None),
        ("adaface", {"m": 0.4, "h": 0.333, "ema": 0.99}, 256, 5e-4, 26, (12, 20, 24)),
    ],
)
def test_the_margin_recipes_have_the_published_settings(name, margin, batch, decay, epochs, milestones):
    config = load_config(CONFIGS / f"ms1m_{name}.yaml", TrainConfig)
    (stage,) = config.stages
    assert (stage.name, stage.epochs, stage.keep, stage.method.head) == (name, epochs, "last", "margin")
    assert (stage.method.margin.name, stage.method.margin.options, stage.method.sample_rate) == (name, margin, 1)
    assert (config.optim.batch, config.optim.weight_decay) == (batch, decay)
    assert (config.optim.lr, config.optim.momentum) == (0.1, 0.9)
    assert (config.model.backbone, config.data.image_size, config.data.flip) == ("iresnet50", (112, 112), True)
    if milestones:
        factors = [learning_rate_factor(stage.schedule, StepContext(epoch, epochs, 0, 10)) for epoch in range(epochs)]
        assert tuple(epoch for epoch in range(1, epochs) if factors[epoch] < factors[epoch - 1]) == milestones


def test_the_faces_recipe_is_for_the_long_tail_of_ms1m():
    config = load_config(CONFIGS / "ms1m_lt.yaml", TrainConfig)
    plain, _, oltr = config.stages
    assert (config.model.backbone, config.model.dim, config.data.image_size) == ("resnet50", 512, (112, 112))
    assert (config.device, config.precision) == ("cuda", "bf16")
    assert (plain.method.name, oltr.method.name, oltr.init_from) == ("classify", "dynamic_meta", plain.name)
    assert {stage.embedding for stage in config.stages} == {"linear_bn"}
    assert (oltr.method.centroid_update, oltr.method.sampler, oltr.attention) == ("tracking", "instance", True)


@pytest.mark.parametrize("name", ["ms1m_lt.yaml", "faces_small.yaml", "demo.yaml"])
def test_oltr_on_faces_starts_at_class_means_and_is_compared_with_as_many_plain_epochs(name):
    plain, plain_long, oltr = load_config(CONFIGS / name, TrainConfig).stages
    assert (oltr.method.classifier_init, oltr.method.sampler, oltr.freeze) == ("class_means", "instance", ())
    assert (plain_long.name, plain_long.method.keep_head, plain_long.init_from) == ("plain_long", True, plain.name)
    assert (plain_long.epochs, plain_long.lr_mult, plain_long.schedule) == (oltr.epochs, oltr.lr_mult, oltr.schedule)
    assert plain_long.method.model_copy(update={"keep_head": False}) == plain.method


def test_the_measurement_of_ms1m_reads_the_stores_of_its_stages():
    config = load_config(CONFIGS / "ms1m_lt.yaml", TrainConfig)
    measured = load_config(CONFIGS / "megaface.yaml", MegafaceConfig)
    assert {str(model.probes.parent) for model in measured.models.values()} == {
        str(config.out / stage.name) for stage in config.stages
    }


@pytest.fixture
def refusal(recipe, tmp_path):
    """refusal(*overrides) -> the message with which the recipe is refused."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run")))

    def refuse(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load_config(path, TrainConfig, overrides)
        return str(caught.value)

    return refuse


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "optim.learning_rate=1",
            "optim.learning_rate: unknown key; allowed: accumulate, batch, fused, lr, momentum, nesterov, weight_decay",
        ),
        ("optim.lrr=1", "did you mean 'lr'?"),
        ("optim.lr=0", "optim.lr: 0: input should be greater than 0"),
        ("optim.lr=.inf", "optim.lr"),
        ("optim.batch=1", "optim.batch: 1: input should be greater than or equal to 2"),
        ("optim.accumulate=5", "optim: batch: 8 is too small for accumulate: 5; a micro-batch needs 2 images"),
        ("model.backbone=resnet51", "did you mean 'resnet50'?"),
        ("data.kind=records", "did you mean 'record'?"),
        ("data.root=x", "data.root: unknown key; allowed: augment, cache_on_device, drop_last, flip, fused"),
        ("data.validation_fraction=1", "data.validation_fraction: 1: input should be less than 1"),
        ("device=gpu", "device: 'gpu' is not allowed; allowed: cpu, cuda"),
        ("stages=[]", "stages"),
        ("stages.1.init_from=plane", "'oltr' starts from 'plane'; allowed: plain"),
        ("stages.0.init_from=oltr", "'plain' starts from 'oltr'"),
        ("stages.1.name=plain", "the name 'plain' occurs twice"),
        ("stages.1.name=../x", "stages.1.name"),
        (
            "stages.0.freeze=[heads]",
            "stages.0.freeze.0: 'heads' is not allowed; allowed: backbone, attention, embedding, head",
        ),
        (
            "stages.1.method.centroid_update=follow",
            "stages.1.method.centroid_update: 'follow' is not allowed; allowed: rele",
        ),
        ("stages.1.method.name=dynamic", "did you mean 'dynamic_meta'?"),
        ("stages.1.lr_mult.networks=1", "did you mean 'network'?"),
        ("timeout_minutes=0", "timeout_minutes: 0: input should be greater than 0"),
        ("max_nonfinite_steps=-1", "max_nonfinite_steps: -1: input should be greater than or equal to 0"),
        ("seed=-1", "seed: -1"),
        ("seed=1.5", "seed: 1.5"),
    ],
)
def test_a_mistake_names_its_key_and_what_is_allowed(refusal, override, expected):
    message = refusal(override)
    assert expected in message
    assert "\n" not in message
    assert "recipe.yaml" in message


def test_several_mistakes_are_reported_at_once(refusal):
    assert len(refusal("optim.lr=0", "seed=-1", "devise=cpu").splitlines()) == 3


def test_a_recorded_configuration_loads_again(recipe, tmp_path):
    config = TrainConfig.model_validate(recipe(tmp_path / "run"))
    again = TrainConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config

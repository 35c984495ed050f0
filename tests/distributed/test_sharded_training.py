"""Training on 2 and 3 ranks equals training in one process: losses and weights after 20 steps."""

import re

import pytest
import torch
import torch.distributed as dist
from torch import nn

from facelt.config.registry import METHODS
from facelt.config.train import MethodSettings
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import is_distributed, rank, world_size
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.lfme import LfmeSettings
from facelt.methods.multi_expert import IndependentSettings, RideRouterSettings, RideSettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.methods.reslt import ResltSettings
from tests.distributed.ranks import run_ranks

IDENTITIES, DIM, PIXELS = 11, 6, 3 * 2 * 2
STEPS, BATCH = 20, 10
COUNTS = torch.tensor([40, 30, 20, 12, 9, 7, 5, 4, 3, 2, 0])
RECIPES = {
    "linear": ClassifySettings(name="classify", head="linear"),
    "cosine": ClassifySettings(name="classify", head="cosine"),
    "arcface": ClassifySettings(name="classify", head="margin", scale=8.0),
    "cosface": ClassifySettings(name="classify", head="margin", margin={"name": "cosface"}, scale=8.0),
    "combined": ClassifySettings(
        name="classify",
        head="margin",
        margin={"name": "combined", "angular": 1.1, "additive": 0.3, "cosine": 0.1},
        scale=8.0,
    ),
    "adaface": ClassifySettings(name="classify", head="margin", margin={"name": "adaface", "ema": 0.9}, scale=8.0),
    "mv_softmax": ClassifySettings(name="classify", head="margin", margin={"name": "mv_softmax"}, scale=8.0),
    "circle": ClassifySettings(name="classify", head="margin", margin={"name": "circle"}, scale=8.0),
    "weighted draws": ClassifySettings(
        name="classify", loss={"name": "seql", "threshold": 0.1}, weights={"name": "class_balanced", "beta": 0.9}
    ),
    "metric": ClassifySettings(
        name="classify",
        head="cosine",
        scale=8.0,
        loss={"name": "ldam", "scale": 8.0},
        metric_loss={"name": "lifted", "weight": 0.1},
    ),
    "released": DynamicMetaSettings(name="dynamic_meta"),
    "paper": DynamicMetaSettings(name="dynamic_meta", variant="paper", margin=200.0, margin_form="per_image"),
    "tracking": DynamicMetaSettings(name="dynamic_meta", centroid_update="tracking"),
    "ride": RideSettings(name="ride", scale=8.0, loss={"name": "ldam", "scale": 8.0}, temperature_start=0.0),
    "router": RideRouterSettings(name="ride_router", scale=8.0, pos_weight=2.0),
    "independent": IndependentSettings(name="independent", head="linear", loss={"name": "balanced_softmax"}),
    "mean probabilities": IndependentSettings(
        name="independent", head="linear", loss={"name": "softmax"}, weights=None, average="probabilities"
    ),
    "bbn": MethodSettings(name="bbn"),
    "reslt": ResltSettings(name="reslt", starts=(3, 6), alpha=0.8),
    "lfme": LfmeSettings(name="lfme"),
}


class TinyNetwork(nn.Module):
    dim = DIM
    branches = 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(PIXELS, DIM)

    def forward(self, image):
        return torch.tanh(self.linear(image.flatten(1)))


class TinyBranches(TinyNetwork):
    """A shared layer and one more per branch, each with a separate input if there are several."""

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.tails = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(branches))

    def forward(self, *images):
        maps = [super(TinyBranches, self).forward(image) for image in images]
        return torch.stack([tail(maps[index % len(maps)]) for index, tail in enumerate(self.tails)], dim=1)


def full_state(method) -> dict[str, torch.Tensor]:
    """The state with the rows of all ranks concatenated."""
    state = {}
    for name, value in method.state_dict().items():
        if is_distributed() and is_class_row(name):
            sizes = [len(ClassRange.of_rank(IDENTITIES, r, world_size())) for r in range(world_size())]
            padded = value.new_zeros((max(sizes), *value.shape[1:]))
            padded[: len(value)] = value
            rows = [torch.empty_like(padded) for _ in sizes]
            dist.all_gather(rows, padded)
            value = torch.cat([part[:size] for part, size in zip(rows, sizes, strict=True)])
        state[name] = value.clone()
    return state


def is_class_row(name: str) -> bool:
    # Per-class buffers of the method itself are replicated.
    return "." in name and not name.startswith(("network.", "router.")) and not re.search("selector|margin", name)


def expert(shots: str) -> nn.Module:
    config = ClassifySettings(name="classify", shots=shots)
    return METHODS["classify"](config, TinyNetwork(), IDENTITIES).double().eval().requires_grad_(False)


def train(recipe: str) -> dict:
    """20 steps of SGD with an unequal number of images per rank: rank r of W starts at 10 r / W."""
    torch.manual_seed(0)
    kind = METHODS[RECIPES[recipe].name]
    network = TinyBranches(2 if recipe == "bbn" else 3) if kind.is_branched else TinyNetwork()
    method = kind(RECIPES[recipe], network, IDENTITIES, COUNTS).double()
    if recipe == "lfme":
        method.set_teachers([expert("medium"), expert("few")])
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, BATCH, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, IDENTITIES - 1, (STEPS, BATCH), generator=generator)
    own = slice(BATCH * rank() // world_size(), BATCH * (rank() + 1) // world_size())
    if method.needs_dataset_pass:
        with torch.no_grad():
            for image, label in zip(images[:5], labels[:5], strict=True):
                method.observe(TrainBatch(image[own], label[own]))
        method.end_dataset_pass()
    start = full_state(method)
    parameters = [p for group in method.parameter_groups().values() for p in group if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    for image, label in zip(images, labels, strict=True):
        optimiser.zero_grad()
        # Further samplers return the images in another order.
        batches = [
            TrainBatch(image.roll(shift, 0)[own], label.roll(shift)[own])
            for shift in range(len(method.sampler_specs()))
        ]
        output = method.step(batches, StepContext(1, 4, 0, STEPS))
        output.loss.backward()
        if is_distributed():
            for parameter in method.network.parameters():
                if parameter.requires_grad:
                    dist.all_reduce(parameter.grad)
        optimiser.step()
        output.after(torch.tensor(True))
        losses.append(output.loss.detach())
    predicted = method.logits(images[0][own]).argmax()
    embedding = method.embed(images[0][own])
    return {
        "losses": torch.stack(losses),
        "start": start,
        "end": full_state(method),
        "predicted": predicted,
        "embedding": dict(embedding.by_kind),
    }


def train_all() -> dict[str, dict]:
    """Trains every recipe, with one launch of the processes for all."""
    return {recipe: train(recipe) for recipe in RECIPES}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    return train_all()


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def together(request, tmp_path_factory) -> list[dict]:
    return run_ranks(train_all, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_ranks_train_as_one_process(recipe, alone, together):
    expected = alone[recipe]
    results = [result[recipe] for result in together]
    for result in results:
        torch.testing.assert_close(result["losses"], expected["losses"], rtol=0, atol=1e-8)
        for moment in ("start", "end"):
            assert result[moment].keys() == expected[moment].keys()
            for name, value in expected[moment].items():
                torch.testing.assert_close(result[moment][name], value, rtol=0, atol=1e-8, msg=f"{moment} {name}")
    assert torch.equal(torch.cat([result["predicted"] for result in results]), expected["predicted"])
    for kind, value in expected["embedding"].items():
        torch.testing.assert_close(torch.cat([result["embedding"][kind] for result in results]), value)
    assert expected["losses"][-1] < expected["losses"][0]

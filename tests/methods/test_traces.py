"""Training steps of the authors' released code against the project's methods, optimisers and update, in float64.

Each trace has initial weights, batches, the loss of every step and checksums of the final state. All traces of a folder
are compared: FACELT_TRACES, by default those of the reference outputs. Its README says how they were made.

B batch, C classes, D feature.
"""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from facelt.config.loading import load_config
from facelt.config.registry import METHODS, OPENSET_SCORERS, SAMPLERS
from facelt.config.train import StageConfig, TrainConfig
from facelt.methods.base import Method, StepContext, TrainBatch
from facelt.methods.decoupling import NcmSettings, TauNormSettings
from facelt.methods.mixing import Blend
from facelt.models.branched import BranchSpec
from facelt.models.network import Network, build_network
from facelt.openset.rejection import ModelOutputs
from facelt.training.optim import Optimisers, as_teacher, freeze, learning_rate_factor
from tests.conftest import ROOT, shared_folder

DEFAULT = shared_folder() / "golden" / "traces"
FOLDER = Path(os.environ.get("FACELT_TRACES", DEFAULT)).resolve()
TOLERANCE = 1e-8
BANDS = ("many", "medium", "few")
BASE_CLASSES, NOVEL_CLASSES = 14, 6


class Source(NamedTuple):
    """A stage of a recipe, and what differs from it in the trace."""

    recipe: str
    stage: int = 0
    changes: Mapping[str, Any] = {}


CONSTANT = {"name": "constant", "at": [], "warmup_epochs": 0}
DECOUPLING = {"optim": {"lr": 0.2, "nesterov": False}, "schedule": CONSTANT}
FYP_LR = {"schedule": CONSTANT}
SOURCES = {
    "ldam_softmax": Source("cifar100_lt/softmax"),
    "ldam_focal": Source("cifar100_lt/focal"),
    "ldam_ce_drw": Source(
        "cifar100_lt/softmax", changes={"method": {"weights": {"name": "class_balanced", "beta": 0.9999, "start": 0.8}}}
    ),
    "ldam_ldam": Source("cifar100_lt/ldam"),
    "ldam_ldam_drw": Source("cifar100_lt/ldam_drw"),
    "bot_softmax": Source("cifar100_lt/cost_sensitive", changes={"method": {"weights": None}}),
    "bot_bsce": Source("cifar100_lt/balanced_softmax"),
    "bot_cbce": Source("cifar100_lt/class_balanced"),
    "bot_cbfocal": Source("cifar100_lt/class_balanced_focal"),
    "bot_focal": Source(
        "cifar100_lt/class_balanced_focal",
        changes={"method": {"loss": {"name": "sigmoid_focal", "gamma": 2}, "weights": None}},
    ),
    "bot_csce": Source("cifar100_lt/cost_sensitive"),
    "bot_seql": Source("cifar100_lt/seql"),
    "bot_ldam_drw": Source("cifar100_lt/ldam_drw", changes={"optim": {"nesterov": True}}),
    "bot_mixup": Source("cifar100_lt/mixup"),
    "bot_manifold": Source("cifar100_lt/manifold_mixup"),
    "bot_crt": Source("cifar100_lt/crt", 1),
    "bot_lws": Source("cifar100_lt/lws", 1),
    "bbn": Source("cifar100_lt/bbn"),
    "ride2": Source("cifar100_lt/ride"),
    "ride3": Source("cifar100_lt/ride"),
    "ride_collab": Source("cifar100_lt/ride", changes={"method": {"collaborative": True}}),
    "ride_distill_train": Source("cifar100_lt/ride_distilled", 1, {"method": {"diversity": -0.2}}),
    "ride_distill_eval": Source(
        "cifar100_lt/ride_distilled", 1, {"method": {"diversity": -0.2, "distillation": {"teacher_mode": "eval"}}}
    ),
    "ride_ea": Source("cifar100_lt/ride_router", 1),
    "reslt": Source("cifar100_lt/reslt"),
    "oltr_stage1": Source("imagenet_lt"),
    "oltr_stage2": Source("imagenet_lt", 1),
    "dec_crt": Source("cifar100_lt/crt", 1, DECOUPLING),
    "dec_lws": Source("cifar100_lt/lws", 1, DECOUPLING),
    "lfme": Source("cifar100_lt/lfme", 3),
    "fslwf": Source("cifar100_lt/fslwf", 1, {"method": {"dropout": 0.0}, "schedule": CONSTANT}),
    "fyp_kt": Source("cifar100_lt/fusion_kt", changes=FYP_LR),
    "fyp_llw": Source("cifar100_lt/fusion_llw", 1),
    "fyp_asm": Source("cifar100_lt/fusion_asm", 1, {"method": {"balance": False}}),
}


def traces_in(folder: Path) -> list[str]:
    """The names of the files with the losses of steps; other files have no steps."""
    names = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            if "loss" in file:
                names.append(path.stem)
    return names


def skip_without(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"reference outputs are absent: {path} (set FACELT_SHARED or FACELT_TRACES)")
    return path


def file_of(name: str) -> Path:
    """A file of the folder, or the default one's if the folder has none."""
    return skip_without(FOLDER / name if (FOLDER / name).exists() else DEFAULT / name)


@pytest.fixture(scope="module")
def inputs() -> ModuleType:
    """The reader in the folder of the traces, or the default one for those of the folder."""
    spec = importlib.util.spec_from_file_location("trace_inputs", file_of("inputs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HERE = FOLDER
    return module


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(file_of("batches.npz")) as file:
        return dict(file)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, which apply key by key to sections."""
    return {
        **values,
        **{
            key: merged(values[key], change)
            if isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
            else change
            for key, change in changes.items()
        },
    }


class Run:
    """One trace: its method with the trace's initial weights, its optimisers, and the batches of its steps."""

    def __init__(self, name: str, inputs: ModuleType, images: Mapping[str, np.ndarray]) -> None:
        self.trace, self.inputs, self.images = inputs.Trace(name), inputs, images
        self.file, self.meta = self.trace.file, self.trace.meta
        self.state = {key: torch.from_numpy(np.array(value)) for key, value in self.trace.initial().items()}
        # The small set: 60 images of 20 classes, 224 pixels for ResNet-10.
        self.is_small = "order" in self.file
        self.side = 224 if "network.backbone.conv1.weight" in self.state and self._first_kernel() == 7 else 32
        self.counts_C = torch.from_numpy(images["small_counts" if self.is_small else "counts"])
        if "feats" in self.file:
            self.counts_C = torch.tensor([100] * BASE_CLASSES + [5] * NOVEL_CLASSES)
        config, self.stage = self._stage(SOURCES[name])
        self.method = self._build(self.stage, "")
        self.method.load_state_dict(self._entries(""), strict=False)
        self.method.set_teachers(self._teachers())
        if self.stage.method.name == "lfme":
            weights = next(value for key, value in self.meta.items() if "weight" in key)
            weights = [weights[band] for band in BANDS] if isinstance(weights, Mapping) else weights
            self.method.weight_E.copy_(torch.tensor(weights))
        freeze(self.method, self.stage.freeze)
        self.optimisers = Optimisers(self.method, self.stage.optim or config.optim, self.stage)

    def _first_kernel(self) -> int:
        return self.state["network.backbone.conv1.weight"].shape[-1]

    def _stage(self, source: Source) -> tuple[TrainConfig, StageConfig]:
        config = load_config(ROOT / "configs" / f"{source.recipe}.yaml", TrainConfig)
        stage = config.stages[source.stage]
        changes = dict(source.changes)
        if "experts" in self.meta:
            changes["branches"] = {"count": self.meta["experts"]}
        if self.side == 224 and not any(key.startswith("network.embedding") for key in self.state):
            changes["embedding"] = "none"
        values = {**stage.model_dump(), "optim": (stage.optim or config.optim).model_dump()}
        return config, StageConfig.model_validate(merged(values, changes))

    def _build(self, stage: StageConfig, prefix: str) -> Method:
        """The method of a stage on the network that the trace's entries with this prefix are of."""
        if "feats" in self.file:
            network = Network(nn.Identity(), None, PassThrough(self.file["feats"].shape[-1]))
        else:
            kernel = f"{prefix}network.embedding."
            dims = [len(value) for key, value in self.state.items() if key.startswith(kernel)]
            branches = stage.branches
            if branches is not None:
                heads = {key.split(".")[-2] for key in self.state if key.startswith(f"{prefix}heads.")}
                count = len(heads) or branches.count
                branches = BranchSpec(**{**branches.model_dump(), "count": count})
            network = build_network(
                "resnet10" if self.side == 224 else "resnet32",
                image_size=(self.side, self.side),
                attention=stage.attention,
                embedding=stage.embedding,
                dim=dims[0] if dims else 512,
                branches=branches,
            )
        return METHODS[stage.method.name](stage.method, network, len(self.counts_C), self.counts_C)

    def _entries(self, prefix: str) -> dict[str, torch.Tensor]:
        """The initial state of the method whose entries have this prefix, as the project orders it."""
        state = {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}
        if "selector.decide.weight" in state:
            state["selector.decide.weight"] = self._turned(state["selector.decide.weight"])
        return state

    def _turned(self, weight_1K: torch.Tensor) -> torch.Tensor:
        """The weights of the selector with the hidden units first, which the authors' code reads last, or back."""
        hidden, classes = self.stage.method.hidden, len(self.counts_C)
        first = classes if weight_1K is self.state["selector.decide.weight"] else hidden
        return torch.cat([weight_1K[:, first:], weight_1K[:, :first]], dim=1)

    def _teachers(self) -> list[Method]:
        prefixes = dict.fromkeys(
            match[1] for key in self.state if (match := re.match(r"(.+?\.)(?:network|heads?)\.", key)) and match[1]
        )
        teachers = []
        for number, prefix in enumerate(prefixes):
            stage = self.stage
            if stage.method.name == "lfme":
                named = [band for band in BANDS if band in prefix]
                method = {"name": "classify", "shots": (named or [BANDS[number]])[0]}
                stage = StageConfig.model_validate({**stage.model_dump(), "method": method, "teachers": []})
            else:
                values = merged(stage.model_dump(), {"method": {"distillation": None}, "teachers": []})
                stage = StageConfig.model_validate(values)
            teacher = self._build(stage, prefix)
            teacher.load_state_dict(self._entries(prefix), strict=False)
            teachers.append(as_teacher(teacher))
        return teachers

    @property
    def steps(self) -> int:
        return 3 if "mid_sums" in self.file else len(self.trace.loss)

    def context(self, step: int) -> StepContext:
        epoch = self.meta.get("epochs", [0] * self.steps)[step]
        # The authors' instance weights of LFME are 1 in these steps; the project's are in the end.
        epochs = epoch if self.stage.method.name == "lfme" else self.stage.epochs
        return StepContext(epoch, epochs, 0, 84)

    def batches(self, step: int) -> list[TrainBatch]:
        if "feats" in self.file:
            return [TrainBatch(torch.from_numpy(self.file["feats"][step]), torch.from_numpy(self.file["labels"][step]))]
        if self.is_small:
            return [self.small_batch(self.file["order"][step])]
        label_B = self.file["label"][step] if "label" in self.file else self.images["label"][step]
        first = self._batch(self.images["image"][step], label_B)
        if len(self.method.sampler_specs()) == 1:
            return [first]
        return [first, self._batch(self.images["image2"][step], self.images["label2"][step])]

    def small_batch(self, rows: np.ndarray | slice) -> TrainBatch:
        return self._batch(self.images["small_image"][rows], self.images["small_label"][rows])

    def _batch(self, image_BHW3: np.ndarray, label_B: np.ndarray) -> TrainBatch:
        image_B3HW = self.inputs.network_input(image_BHW3, self.side // 32)
        return TrainBatch(torch.from_numpy(image_B3HW), torch.from_numpy(np.asarray(label_B)))

    def test_images(self) -> torch.Tensor:
        if self.is_small:
            return self.small_batch(self.file["order"][-1]).image_B3HW
        return self._batch(self.images["image"][9], self.images["label"][9]).image_B3HW

    def begin(self, step: int) -> None:
        """Begins an epoch as the trainer does; a pass over the training set reads the small one."""
        context = self.context(step)
        if not step or context.epoch != self.context(step - 1).epoch:
            self.method.begin_epoch(context, {})
        with torch.no_grad():
            while self.is_small and self.method.needs_dataset_pass:
                self.method.eval()
                for rows in np.array_split(np.arange(len(self.images["small_label"])), 5):
                    self.method.observe(self.small_batch(rows))
                self.method.end_dataset_pass()
                self._check_memory("centers0")
        self.method.train()

    def step(self, step: int) -> float:
        """One update as the trainer makes it; returns the loss."""
        self.optimisers.zero_grad()
        output = self.method.step(self.batches(step), self.context(step))
        output.loss.backward()
        self.optimisers.step(self.context(step))
        output.after(torch.tensor(True))
        return output.loss.item()

    def rates(self) -> set[float]:
        return {group["lr"] for groups in self.optimisers.groups() for group in groups}

    def final(self) -> dict[str, np.ndarray]:
        state = {key: value.detach() for key, value in self.method.state_dict().items()}
        if "selector.decide.weight" in state:
            state["selector.decide.weight"] = self._turned(state["selector.decide.weight"])
        return {key: value.numpy() for key, value in state.items()}

    def _check_memory(self, name: str) -> None:
        if name in self.file:
            difference_CD = self.method.ncm.memory.centroid_CD.numpy() - self.file[name]
            assert np.abs(difference_CD).max() < TOLERANCE, name

    def check_end(self) -> None:
        """Compares the checksums of the state, the class means and the logits after the last step."""
        if "mid_sums" in self.file:
            names = self.file["mid_names" if "mid_names" in self.file else "final_names"].tolist()
            self.trace.final = dict(zip(names, self.file["mid_sums"], strict=True))
        final, turned = self.final(), self.trace.transposed()
        for name, (total, norm, wave) in self.trace.final.items():
            base, _, row = name.partition("[")
            if base == "(none: left out)":
                continue
            value = final[base][int(row[:-1])] if row else final[base]
            value = np.asarray(value.T if base in turned else value, np.float64).ravel()
            index = np.arange(value.size)
            sums = value.sum(), np.linalg.norm(value), (value * np.cos(0.7 * index + 0.3)).sum()
            scale = max(norm, 1e-300) * np.array([value.size**0.5, 1, value.size**0.5])
            assert (np.abs(np.array(sums) - (total, norm, wave)) / scale).max() < TOLERANCE, name
        self._check_memory("centers")
        if "eval_logits" in self.file and "mid_sums" not in self.file:
            self.method.eval()
            with torch.no_grad():
                logit_BC = self.method.logits(self.test_images()).full_BC.numpy()
            assert difference(logit_BC, self.file["eval_logits"]) < TOLERANCE


class PassThrough(nn.Module):
    """An embedding that returns its input: the trace holds features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, feature_BD: torch.Tensor) -> torch.Tensor:
        return feature_BD


def difference(value: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected value."""
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def drawn_by_the_authors(run: Run, name: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the random draws of the method by those of the step of a trace."""
    if "lam" in run.file:
        share, partner_b = run.file["lam"][step].item(), torch.from_numpy(run.file["perm"][step])

        def draw(label_b: torch.Tensor, *_: object) -> Blend:
            labels = run.method.mixing.labels(share, label_b, label_b[partner_b])
            return Blend(share, partner_b, *labels)

        monkeypatch.setattr(run.method.mixing, "draw", draw)
    if "pre" in run.file:
        pretended_C = torch.zeros(len(run.counts_C), dtype=torch.bool)
        pretended_C[torch.from_numpy(run.file["pre"][step])] = True
        monkeypatch.setattr(run.method, "_sample_pseudo_novel", lambda *_: pretended_C)
    if name == "bot_seql":
        with np.load(file_of("bot_seql_draws.npz")) as file:
            shape = file["shape"].tolist()
            drawn = np.unpackbits(file["drawn"])[: np.prod(shape)].reshape(shape)[step]
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.from_numpy(1.0 - drawn))


ABSENT = pytest.mark.skip(reason=f"no traces of training steps in {FOLDER} (set FACELT_TRACES)")


@pytest.mark.parametrize("name", traces_in(FOLDER) or [pytest.param("none", marks=ABSENT)])
def test_the_steps_of_a_trace_are_those_of_the_authors_code(name, inputs, images, monkeypatch):
    assert name in SOURCES, f"{FOLDER / name}.npz: no recipe is known for this trace; add it to SOURCES"
    run = Run(name, inputs, images)
    for step in range(run.steps):
        run.begin(step)
        drawn_by_the_authors(run, name, step, monkeypatch)
        assert difference(run.step(step), run.trace.loss[step]) < TOLERANCE, step
        assert difference(np.sort([*run.rates()]), np.unique(run.trace.lr[step])) < TOLERANCE, step
    run.check_end()
    if "novel_feats" in run.file:
        check_generated_weights(run)
    if "ncm_logits" in run.file:
        check_classifiers(run)


def check_generated_weights(run: Run) -> None:
    """Compares the weights that FSLwF generates for novel classes, which have equally many features."""
    feature_ND = torch.from_numpy(run.file["novel_feats"])
    label_N = torch.arange(BASE_CLASSES, BASE_CLASSES + NOVEL_CLASSES).repeat_interleave(
        len(feature_ND) // NOVEL_CLASSES
    )
    run.method.observe(TrainBatch(feature_ND, label_N))
    run.method.end_dataset_pass()
    weight_CD = run.method.generated_CD[BASE_CLASSES:].numpy()
    assert difference(weight_CD, run.file["novel_weights"]) < TOLERANCE


def check_classifiers(run: Run) -> None:
    """Compares nearest class means and tau-normalisation on the trained classifier."""
    network, classes = run.method.network, len(run.counts_C)
    run.method.eval()
    ncm = METHODS["ncm"](NcmSettings(name="ncm"), network, classes, run.counts_C)
    tau_norm = METHODS["tau_norm"](TauNormSettings(name="tau_norm"), network, classes, run.counts_C)
    tau_norm.load_stage(run.method.state_dict())
    with torch.no_grad():
        while ncm.needs_dataset_pass:
            ncm.observe(run.small_batch(slice(None)))
            ncm.end_dataset_pass()
        image_B3HW = run.test_images()
        # The squared distance is that of unit features.
        assert difference(ncm.logits(image_B3HW).full_BC.numpy() - 1, run.file["ncm_logits"]) < TOLERANCE
        for name in (key for key in run.file if key.startswith("tau_")):
            tau_norm.set_value(float(name.removeprefix("tau_")))
            assert difference(tau_norm.logits(image_B3HW).full_BC.numpy(), run.file[name]) < TOLERANCE, name


# Trace of the learning rates -> the recipe, its stage, and the epochs of warm-up, whose rates rise step by step in the
# project and epoch by epoch in the authors' code.
RATES = {
    "ldam": ("cifar100_lt/ldam_drw", 0, 5),
    "bot200": ("cifar100_lt/class_balanced", 0, 5),
    "bot400": ("cifar100_lt/mixup", 0, 5),
    "bot_cls": ("cifar100_lt/crt", 1, 5),
    "bot_cam2": ("cifar100_lt/drs_cam", 1, 5),
    "bbn": ("cifar100_lt/bbn", 0, 5),
    "ride": ("cifar100_lt/ride", 0, 5),
    "ride_distill": ("cifar100_lt/ride_distilled", 1, 20),
    "ride_ea": ("cifar100_lt/ride_router", 1, 0),
    "reslt": ("cifar100_lt/reslt", 0, 5),
    "oltr": ("imagenet_lt", 1, 0),
}


@pytest.mark.parametrize("name", RATES)
def test_the_rate_of_every_epoch_is_that_of_the_authors_schedule(name):
    recipe, number, warmed_up = RATES[name]
    config = load_config(ROOT / "configs" / f"{recipe}.yaml", TrainConfig)
    stage = config.stages[number]
    with np.load(file_of("learning_rates.npz")) as file:
        expected_T = file[name]
    assert len(expected_T) == stage.epochs
    lr = (stage.optim or config.optim).lr
    rate_T = [
        lr * learning_rate_factor(stage.schedule, StepContext(epoch, stage.epochs, 0, 84))
        for epoch in range(stage.epochs)
    ]
    assert rate_T[warmed_up:] == pytest.approx(expected_T[warmed_up:], rel=1e-9)
    assert stage.schedule.warmup_epochs == warmed_up


# Drawn class shares -> the sampler, its epoch, and its epochs. Decoupling's code is balanced in its last epoch.
SHARES = {
    "balanced": ("class_balanced", 0, 200),
    "square_root": ("square_root", 0, 200),
    "reversed": ("reversed", 0, 200),
    "bot_square": ("square_root", 0, 200),
    "bot_progressive_161": ("progressive", 161, 200),
    **{f"progressive_90[{epoch}]": ("progressive", epoch, 89) for epoch in (0, 1, 44, 89)},
}


@pytest.mark.parametrize("name", SHARES)
def test_the_class_shares_are_those_of_the_authors_samplers(name, images):
    sampler, epoch, epochs = SHARES[name]
    label_N = np.repeat(np.arange(100), images["counts"])
    key, _, row = name.partition("[")
    with np.load(file_of("sampler_shares.npz")) as file:
        expected_C = file[key][int(row[:-1])] if row else file[key]
    share_C = SAMPLERS[sampler](label_N, 128, seed=0, epochs=epochs).class_prior(epoch)
    np.testing.assert_allclose(share_C, expected_C, rtol=1e-9)


def test_class_aware_sampling_shows_each_class_as_often_as_the_authors(images):
    label_N = np.repeat(np.arange(100), images["counts"])
    with np.load(file_of("sampler_shares.npz")) as file:
        expected_C = file["class_aware_counts"]
    drawn_T = label_N[SAMPLERS["class_aware"](label_N, 128, seed=0).epoch_indices(0)]
    assert sorted(np.bincount(drawn_T)) == sorted(expected_C)


def test_odin_scores_are_those_of_the_authors_code(inputs, images):
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 100),
    ).eval()
    with np.load(file_of("odin_scores.npz")) as file:
        network.load_state_dict({key[4:]: torch.from_numpy(file[key]) for key in file if key.startswith("net/")})
        expected = {"odin": file["odin"], "threshold": file["msp"]}
    mean, std = np.array([125.3, 123.0, 113.9]) / 255, (63 / 255, 62.1 / 255, 66.7 / 255)
    image_N3HW = ((images["image"].reshape(-1, 32, 32, 3)[:64] / 255 - mean) / std).transpose(0, 3, 1, 2)
    image_N3HW = torch.from_numpy(image_N3HW.copy())
    outputs = ModelOutputs(network(image_N3HW).detach(), None, image_N3HW, std, network)
    for name, score_N in expected.items():
        scorer = OPENSET_SCORERS[name]()
        assert difference(scorer.score(outputs).score_N.numpy(), score_N) < TOLERANCE, name

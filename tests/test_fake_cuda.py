"""Forward steps on fake CUDA tensors: one device, no value read by the host, no copy to the device that it waits for.

Fake tensors have a device and a shape but no values. They refuse tensors of two devices, and whatever needs a value:
`.item()`, boolean indexing, nonzero, unique. The autograd engine needs a real device, so there is no backward pass
here, and the update has made-up gradients; tests/training/test_synchronisation.py counts what whole steps read.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facelt.config.registry import (
    BACKBONES,
    CLASS_WEIGHTS,
    EMBEDDINGS,
    HEADS,
    LOSSES,
    MARGINS,
    METHODS,
    METRIC_LOSSES,
    MIXINGS,
    SAMPLERS,
)
from facelt.config.train import OptimConfig, StageConfig
from facelt.data import transforms
from facelt.data.batch import BadImageTracker, Batch
from facelt.data.transforms import PadCropRotate, Preprocessing
from facelt.distributed.comm import BatchSplit
from facelt.inference.predict import EvalLoaderConfig, Predictor, _forward
from facelt.methods.base import Method, PostHocMethod, StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.multi_expert import MultiExpertMethod
from facelt.models.layers import ATTENTIONS
from facelt.models.network import build_network
from facelt.training.loaders import split_micro_batches
from facelt.training.optim import Optimisers
from facelt.training.step_check import BufferSnapshot, StepReport, find_inf
from tests.methods.minimal import BRANCHES, OPTIONS
from tests.methods.small import DIM, small_network
from tests.methods.small_branches import branched_network

CUDA = torch.device("cuda", 0)
COUNTS, BATCH = (200, 60, 30, 9, 3), 4
# Late in a stage, when deferred weights and temperatures apply.
CONTEXT = StepContext(epoch=9, epochs=10, step=1, steps=2)
STAGE = StageConfig(name="tested", method=ClassifySettings(name="classify"), epochs=1)
PREPROCESSING = Preprocessing((0.5,) * 3, (0.5,) * 3, fused=False, flip=True, augment=PadCropRotate(4, 15.0))
READS = (DataDependentOutputException, DynamicOutputShapeException)


class FakeCuda(TorchDispatchMode):
    """Runs what touches a CUDA device on fake tensors, and everything else on the host as usual.

    A copy between host and device that is not `non_blocking` fails, since the host waits for it; with `may_fetch`
    results may be copied to the host.
    """

    def __init__(self, *, may_fetch: bool = False) -> None:
        super().__init__()
        self.may_fetch = may_fetch
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> "FakeCuda":
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        """Returns a fake CUDA tensor of this shape and type."""
        return FakeTensor(self.fake, torch.empty_like(value, device="meta"), CUDA)

    def move(self, module: nn.Module) -> nn.Module:
        """Replaces the tensors of a module by fake ones."""
        for child in module.modules():
            for name, value in child._parameters.items():
                if value is not None:
                    child._parameters[name] = nn.Parameter(self.tensor(value), value.requires_grad)
            for name, value in child._buffers.items():
                if value is not None:
                    child._buffers[name] = self.tensor(value)
        return module

    def batch(self, size: int) -> TrainBatch:
        return TrainBatch(self.tensor(torch.empty(BATCH, 3, size, size)), self.tensor(torch.arange(BATCH)))

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        device = torch.device(options.get("device") or "cpu")
        inputs = [value for value in tree_leaves((arguments, options)) if isinstance(value, torch.Tensor)]
        if device.type != "cuda" and not any(isinstance(value, FakeTensor) for value in inputs):
            with unset_fake_temporarily():
                return function(*arguments, **options)
        name = function.overloadpacket.__name__
        if name == "_fused_sgd_":  # torch has no fake kernel for it
            assert {value.device for value in inputs} == {CUDA}
            return None
        result = function(*arguments, **options)
        if name in ("_to_copy", "copy_"):
            is_copied = arguments[name == "copy_"].device.type != result.device.type
            is_fetched = self.may_fetch and result.device.type == "cpu"
            is_asynchronous = options.get("non_blocking") or arguments[2:] == (True,)
            assert not is_copied or is_fetched or is_asynchronous, f"the host waits for a copy ({function})"
        return result


@pytest.fixture(autouse=True)
def _host_generators(monkeypatch) -> Iterator[None]:
    """Generators of a device that is not there are replaced by those of the host; cached constants are forgotten."""
    list(METHODS)  # annotations of modules that are imported later would read the replacement
    create = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": create("cpu"))
    # The engine needs a real device; the slopes have the shape of the values.
    gradient = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd,
        "grad",
        lambda output, value, *rest: (
            (torch.empty_like(value),) if isinstance(value, FakeTensor) else gradient(output, value, *rest)
        ),
    )
    transforms._scale_and_shift.cache_clear()
    yield
    transforms._scale_and_shift.cache_clear()


def classify(**options: Any) -> tuple[str, dict[str, Any]]:
    return "classify", options


CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, OPTIONS.get(name, {})) for name in METHODS}
CASES |= {f"head {name}": classify(head=name) for name in HEADS}
CASES |= {f"margin {name}": classify(head="margin", margin={"name": name}) for name in MARGINS}
CASES |= {f"loss {name}": classify(loss={"name": name}) for name in LOSSES}
CASES |= {
    "loss ldam": classify(loss={"name": "ldam"}, head="cosine", scale=30.0),
    "loss seql": classify(loss={"name": "seql", "threshold": 0.1}),
}
CASES |= {f"weights {name}": classify(weights={"name": name}) for name in CLASS_WEIGHTS}
CASES |= {f"metric {name}": classify(metric_loss={"name": name}) for name in METRIC_LOSSES}
CASES |= {f"mixing {name}": classify(mix={"name": name}) for name in MIXINGS}
CASES |= {
    "sampled": classify(head="margin", sample_rate=0.5),
    "learned scale": classify(head="cosine", learn_scale=True),
    "prior": classify(prior_weight=1.0),
    "class means": classify(head="cosine", classifier_init="class_means"),
    "foreground": classify(move_foreground={}),
    "sade with remix": ("sade", {"mix": {"name": "remix"}}),
    "ride with a teacher": ("ride", {"distillation": {}}),
    "dynamic_meta, paper": ("dynamic_meta", {"variant": "paper", "margin_form": "per_image", "direct_loss": 1.0}),
    "dynamic_meta, tracking": ("dynamic_meta", {"centroid_update": "tracking", "classifier_init": "class_means"}),
}
# Steps that the host takes part in, with the reason.
LINE_SEARCH = "each step fits classifiers by L-BFGS, whose line search decides on the host"
STEPS_THAT_READ = {"model_regression": LINE_SEARCH, "meta_model_net": LINE_SEARCH}
# Ends of the pass over the training set, once a stage.
PASSES_THAT_READ = {
    "model_regression": LINE_SEARCH,
    "meta_model_net": LINE_SEARCH,
    "fslwf": "only the images of novel classes are kept",
    "class means": "the number of classes without images is logged",
    "dynamic_meta, tracking": "the number of classes without images is returned",
    "semi_siamese": "torch's AveragedModel reads its counter",
}
PREDICTIONS_THAT_READ = {"ride_router": "the number of experts used is reported"}


def image_size(case: str) -> int:
    return 32 if case == "foreground" else 2


def build(case: str, cuda: FakeCuda) -> Method:
    """Returns the method of a case on fake CUDA tensors, in training mode."""
    method = build_with_teachers(case)
    for moved in (method, *method.teachers):
        cuda.move(moved)
    return method


def build_with_teachers(case: str) -> Method:
    """Returns the method of a case in training mode, with teachers if it needs some."""
    name, options = CASES[case]
    method = build_real(name, options, image_size(case))
    teachers = []
    if name == "lfme":
        teachers = [build_real("classify", {"shots": shots}) for shots in ("many", "medium", "few")]
    elif case in ("foreground", "ride with a teacher"):
        teachers = [build_real("classify", {}, image_size(case))]
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
    method.set_teachers(teachers)
    return method.train()


def build_real(name: str, options: dict[str, Any], size: int = 2) -> Method:
    if size > 2:
        network = build_network("resnet10", image_size=(size, size), attention=False, embedding="none")
    elif name in BRANCHES:
        network = branched_network(BRANCHES[name]["count"], DIM)
    else:
        network = small_network()
    return METHODS[name](METHODS.settings(name)(name=name, **options), network, len(COUNTS), torch.tensor(COUNTS))


def takes_steps(case: str) -> bool:
    return not issubclass(METHODS[CASES[case][0]], PostHocMethod)


def has_pass(case: str) -> bool:
    name, _ = CASES[case]
    return METHODS[name].observe is not Method.observe and (name != "classify" or case == "class means")


@pytest.mark.parametrize("case", filter(takes_steps, CASES))
def test_a_step_reads_nothing_on_the_host(case, monkeypatch):
    cuda = FakeCuda()
    method, batch = build(case, cuda), cuda.batch(image_size(case))
    snapshot, optimisers = BufferSnapshot(method.network), Optimisers(method, OptimConfig(), STAGE)
    # An event needs a real device.
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    with cuda:
        method.begin_epoch(CONTEXT, {})
        if case in STEPS_THAT_READ:
            with torch.no_grad():
                method.observe(batch)
            method._bank.close()
            with pytest.raises(READS):
                method.step([batch], CONTEXT)
            return
        snapshot.take()
        output = method.step([batch for _ in method.sampler_specs()], CONTEXT)
        for parameter in optimisers.parameters():
            parameter.grad = torch.empty_like(parameter)
        found_inf = find_inf(output.loss, optimisers.gradient_norm())
        snapshot.restore(found_inf == 0)
        optimisers.step(CONTEXT, found_inf)
        output.after(found_inf == 0)
        report = StepReport.send(CONTEXT, [], 0.1, (found_inf, output.loss), output.parts)
    assert report.parts == tuple(output.parts)
    assert output.loss.device == CUDA
    assert output.loss.shape == ()
    assert {value.device for value in output.parts.values()} <= {CUDA}


@pytest.mark.parametrize("case", filter(has_pass, CASES))
@torch.no_grad()
def test_a_pass_over_the_training_set_stays_on_the_device(case):
    cuda = FakeCuda()
    method, batch = build(case, cuda).eval(), cuda.batch(image_size(case))
    with cuda:
        if case in PASSES_THAT_READ:
            with pytest.raises(READS):
                run_pass(method, batch)
            return
        for _ in range(2 if case == "ncm" else 1):
            run_pass(method, batch)


def run_pass(method: Method, batch: TrainBatch) -> None:
    method.observe(batch)
    method.end_dataset_pass()


@pytest.mark.parametrize("case", [*METHODS, "head cosine", "head margin", "dynamic_meta, paper"])
def test_a_prediction_brings_only_its_results_to_the_host(case):
    cuda = FakeCuda(may_fetch=True)
    method = build(case, cuda).eval()
    fields = ["label", "index", "features", "logits", "prediction", "reachability", "embedding_reachability"]
    fields += [*method.kinds, *["expert_predictions"] * isinstance(method, MultiExpertMethod)]
    column_B = torch.arange(BATCH)
    batch = Batch(*map(cuda.tensor, (torch.empty(BATCH, 2, 2, 3, dtype=torch.uint8), column_B, column_B, column_B)))
    loader = EvalLoaderConfig(BATCH, 0, CUDA, BadImageTracker(0))
    with cuda:
        predictor = Predictor(method, PREPROCESSING, loader)
        if case in PREDICTIONS_THAT_READ:
            with pytest.raises(READS):
                _forward(predictor, batch, BatchSplit((BATCH,)), fields, True)
            return
        result = _forward(predictor, batch, BatchSplit((BATCH,)), fields, True)
    assert result.logit_NC.shape == (BATCH, len(COUNTS))
    assert result.prediction_N.device.type == "cpu"
    shapes = {kind: tuple(value.shape) for kind, value in result.embeddings.items()}
    assert shapes == dict.fromkeys(method.kinds, (BATCH, method.dim))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_samplers_batch_is_prepared_on_the_device_without_waiting(name):
    label_N = np.repeat(np.arange(len(COUNTS)), 6)
    sampler = SAMPLERS[name](label_N, BATCH, 0, np.arange(len(label_N)), epochs=1)
    index_B, seed_B = (torch.from_numpy(column[:BATCH]) for column in sampler.epoch_requests(0))
    batch = Batch(torch.zeros(BATCH, 8, 8, 3, dtype=torch.uint8), torch.from_numpy(label_N)[index_B], index_B, seed_B)
    with FakeCuda():
        micro_batches = split_micro_batches([batch], [[BATCH]], 2, CUDA)
        for _, (micro_batch,) in micro_batches:
            image_B3HW = PREPROCESSING.for_training(micro_batch)
            assert image_B3HW.device == micro_batch.label_B.device == CUDA
            assert image_B3HW.shape[1:] == (3, 8, 8)
    assert len(micro_batches) == 2


def forward(module: nn.Module, *shape: int) -> torch.Tensor:
    """Returns the output in training mode for inputs of this shape."""
    cuda = FakeCuda()
    cuda.move(module.train())
    with cuda:
        output = module(cuda.tensor(torch.empty(shape)))
    assert output.device == CUDA
    return output


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_stays_on_the_device(name):
    backbone = BACKBONES[name]
    with torch.device("meta"):
        module = backbone.build()
    assert forward(module, 2, 3, 32, 32).shape == (2, backbone.channels, *backbone.map_size((32, 32)))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_an_embedding_stays_on_the_device(name):
    layer = EMBEDDINGS[name](8, 4, (3, 3))
    assert forward(layer, 2, 8, 3, 3).shape == (2, layer.dim)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_stays_on_the_device(name):
    assert forward(ATTENTIONS[name](8, 3, 3), 2, 8, 3, 3).shape == (2, 8, 3, 3)

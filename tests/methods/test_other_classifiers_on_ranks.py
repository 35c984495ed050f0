"""Classifiers on a trained feature: dataset pass, loss, gradients and predictions on two ranks equal those on one."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from facelt.config.registry import METHODS
from facelt.config.train import SecondStageSettings
from facelt.distributed.class_shards import sharded_entries
from facelt.distributed.comm import rank, world_size
from facelt.methods.base import Method, StepContext, TrainBatch
from facelt.methods.decoupling import LogitAdjustmentSettings, NcmSettings, TauNormSettings
from facelt.methods.few_shot import FslwfSettings, MetaModelNetSettings, ModelRegressionSettings
from facelt.methods.fusion import FusionAsmSettings, FusionKtSettings, FusionSettings, LinearAndNcmSettings
from tests.distributed.ranks import run_ranks
from tests.methods.minimal import WITHOUT_STEPS
from tests.methods.small import CLASSES, COUNTS, linear_head, small_network, training_set

CONFIGS = [
    NcmSettings(name="ncm"),
    TauNormSettings(name="tau_norm"),
    LogitAdjustmentSettings(name="logit_adjustment"),
    SecondStageSettings(name="lws"),
    FusionSettings(name="fusion", rule="softmax_sum"),
    LinearAndNcmSettings(name="fusion_llw"),
    FusionAsmSettings(name="fusion_asm"),
    FusionKtSettings(name="fusion_kt"),
    FslwfSettings(name="fslwf", novel_below=4),
    ModelRegressionSettings(name="model_regression", levels=3),
    MetaModelNetSettings(name="meta_model_net", levels=3),
]


def share(data: TrainBatch) -> TrainBatch:
    """Returns this rank's images; the first rank has more."""
    places = torch.arange(len(data.label_B)).tensor_split([17])[rank()] if world_size() > 1 else slice(None)
    return TrainBatch(data.image_B3HW[places].double(), data.label_B[places])


def run_method(config: Any) -> tuple[Method, dict[str, Any]]:
    """Runs a method through the dataset pass, one step in the middle of a stage, and inference on the same images."""
    torch.manual_seed(3)
    # In float64: L-BFGS amplifies float32's rounding, which differs with the number of threads.
    method = METHODS[config.name](config, small_network(), CLASSES, torch.tensor(COUNTS)).double()
    head = {name: value.double() for name, value in linear_head().items()}
    method.load_stage({"head.weight": head["head.weight"]} if config.name == "fslwf" else head)
    own, progress = share(training_set()), StepContext(1, 2, 0, 2)
    method.begin_epoch(progress, {})
    # Without a GPU, batch norm is not synchronized between ranks, so it is frozen.
    method.eval()
    with torch.no_grad():
        while method.needs_dataset_pass:
            method.observe(own)
            method.end_dataset_pass()
    result: dict[str, Any] = {"split": sharded_entries(method)}
    if config.name not in WITHOUT_STEPS:
        output = method.step([own], progress)
        output.loss.backward()
        output.after(torch.tensor(True))
        result |= {"loss": output.loss.item(), "diagnostics": dict(method.diagnostics())}
        result["gradients"] = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    logits = method.logits(own.image_B3HW)
    result |= {"answers": logits.argmax(), "logits": logits.full_BC.detach()}
    return method, result


def on_a_rank() -> dict[str, dict[str, Any]]:
    return {config.name: run_method(config)[1] for config in CONFIGS}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_ranks(on_a_rank, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_two_ranks_do_as_one(config, two_ranks):
    assert not dist.is_initialized()
    _, alone = run_method(config)
    parts = [result[config.name] for result in two_ranks]
    assert torch.equal(torch.cat([part["answers"] for part in parts]), alone["answers"])
    for part in parts:
        assert torch.allclose(part["logits"], alone["logits"], rtol=1e-6, atol=1e-6)
        if "loss" in alone:
            assert part["loss"] == pytest.approx(alone["loss"], rel=1e-6)
            assert part["diagnostics"] == pytest.approx(alone["diagnostics"])
    for name, gradient in alone.get("gradients", {}).items():
        theirs = [part["gradients"][name] for part in parts]
        if name in alone["split"]:
            theirs = [torch.cat(theirs)]
        elif name.startswith("network."):
            theirs = [sum(theirs)]
        for result in theirs:
            assert torch.allclose(result, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item()), name

"""Models to export, with statistics, memory and attention that differ from their initial values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from facelt.config.train import TrainConfig
from facelt.inference.model import TrainedModel, build_card, build_method
from facelt.methods.oltr import DynamicMeta
from facelt.models.layers import ModulatedAttention


@pytest.fixture(scope="session")
def build_model(recipe) -> Callable[..., TrainedModel]:
    """build_model(method={...}, classes=5, data={...}, model={...}, **stage) -> one-stage model, random values."""

    def build(
        method: dict, classes: int = 5, data: dict | None = None, model: dict | None = None, **stage: Any
    ) -> TrainedModel:
        values = recipe(Path("unused"))
        values["data"] |= data or {}
        values["model"] |= model or {}
        values["stages"] = [{"name": "only", "method": method, "epochs": 1, **stage}]
        config = TrainConfig.model_validate(values)
        torch.manual_seed(0)
        trained = build_method(config, config.stages[0], classes)
        _give_values(trained)
        card = build_card(config, config.stages[0], trained)
        return TrainedModel(trained.eval(), config, card, Path("model.safetensors"), "0" * 64)

    return build


@torch.no_grad()
def _give_values(method) -> None:
    for module in method.network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    if isinstance(method.network.attention, ModulatedAttention):
        method.network.attention.conv_mask.weight.normal_(std=0.1)
    if isinstance(method, DynamicMeta):
        method.memory.centroid_CD.normal_()
        method.memory.filled_C.fill_(True)
        # An identity without an image, nearer to any feature than all others if it counted.
        method.memory.filled_C[-1] = False
        method.memory.centroid_CD[-1] = 0
        if method.head.hallucinator is not None:
            method.head.hallucinator.weight.normal_()
            method.head.hallucinator.bias.normal_()


@pytest.fixture(scope="session")
def pixels() -> Callable[..., torch.Tensor]:
    """pixels(count, side=32) -> uint8 images [N,H,W,3], equal at every call."""

    def draw(count: int, side: int = 32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)

    return draw

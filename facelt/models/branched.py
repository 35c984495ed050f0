"""Branches that share a whole backbone and add one light layer each, as ResLT's do (Cui et al., TPAMI 2022).

Shapes: B batch, C channels, h w map.

Networks with several branches: layers they share, and from some place on each branch's own.

Shapes: B batch, K branches, H W image, C channels, h w map, D feature.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facelt.errors import UserError
from facelt.models.backbones import Backbone


def pointwise(channels: int) -> nn.Conv2d:
    """A 1x1 convolution, C -> C: three of them are what the released code writes as one to 3 C channels."""
    return nn.Conv2d(channels, channels, kernel_size=1, bias=False)


# Each takes the channels of the backbone's last map and returns a layer [B,C,h,w] -> [B,C,h,w].
LIGHT_BRANCHES = {"batch_norm": nn.BatchNorm2d, "conv": pointwise}


# The first layers of a backbone are its stem: convolution, batch norm, activation and pooling.
LAYER = "layer"


@dataclass(frozen=True)
class Branches:
    """`count` branches that share a backbone up to and including the place `split`.

    `none`: nothing, so that each branch is a whole network; `layer1`, `layer2`, `layer3`: the stem and the layers up
    to this one; `last_block`: all but the last residual block; a row of LIGHT_BRANCHES: all, and a branch is that one
    layer on the last map. The layers behind a layer have `width` times their channels.
    """

    count: int
    split: str
    width: float = 1.0


class BranchedBackbone(nn.Module):
    """A shared trunk and K branches behind it: images [B,3,H,W] -> K maps [B,C,h,w].

    Given one batch of images, every branch reads the trunk's map of it. Given K batches, which may be of different
    sizes, the trunk runs once on each, with batch statistics of its own, and branch k reads the k-th map.
    """

    def __init__(self, trunk: nn.Module, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)

    def forward(self, *image_B3HW: Tensor) -> list[Tensor]:
        """Raises ValueError for a number of inputs that is neither 1 nor K."""
        count = len(self.branches)
        if len(image_B3HW) not in (1, count):
            raise ValueError(f"{len(image_B3HW)} inputs for {count} branches: give one for all, or each its own")
        maps = [self.trunk(image) for image in image_B3HW]
        return [branch(maps[place % len(maps)]) for place, branch in enumerate(self.branches)]


class PerBranch(nn.ModuleList):
    """A layer for each branch: K maps -> K maps."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [layer(map_BChw) for layer, map_BChw in zip(self, maps, strict=True)]


class BranchedEmbedding(PerBranch):
    """An embedding layer for each branch: K maps -> feature [B,K,D], which takes equal batches."""

    @property
    def dim(self) -> int:
        """D, the length of one branch's feature."""
        return self[0].dim

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack(super().forward(maps), dim=1)


def build_branched(name: str, spec: Backbone, branches: Branches) -> tuple[BranchedBackbone, int]:
    """The backbone `name`, branched, and the channels of a branch's map; fresh weights from torch's random state.

    Every part bears its usual name, so that trunk and branch together have the entries of the plain backbone. Raises
    UserError where the backbone cannot be divided there.
    """
    if branches.split in LIGHT_BRANCHES:
        light = [LIGHT_BRANCHES[branches.split](spec.channels) for _ in range(branches.count)]
        return BranchedBackbone(spec.build(), light), spec.channels
    narrow = branches.width != 1
    first = int(branches.split.removeprefix(LAYER)) if branches.split.startswith(LAYER) else len(spec.widths)
    widths = tuple(
        int(channels * branches.width) if place >= first else channels for place, channels in enumerate(spec.widths)
    )
    wholes = [spec.build(widths) if narrow else spec.build() for _ in range(branches.count)]
    try:
        pairs = [_cut(whole, branches.split) for whole in wholes]
    except ValueError as error:
        raise UserError(f"branches.split: {branches.split} is no place to divide {name}; choose {error}") from None
    channels = spec.channels * widths[-1] // spec.widths[-1]
    return BranchedBackbone(pairs[0][0], [tail for _, tail in pairs]), channels


def _cut(backbone: nn.Module, split: str) -> tuple[nn.Sequential, nn.Sequential]:
    """A backbone's layers before and behind the place; ValueError with the allowed places where it is none.

    Every backbone is the sequence of its children, in the order of their names.
    """
    layers = OrderedDict(backbone.named_children())
    deep = [name for name in layers if name.startswith(LAYER)]
    allowed = ("none", *deep[:-1], *(["last_block"] if deep else []))
    if split not in allowed:
        raise ValueError(", ".join(allowed))
    if split == "none":
        return nn.Sequential(), nn.Sequential(layers)
    names = list(layers)
    last = deep[-1] if split == "last_block" else split
    place = names.index(last)
    before = OrderedDict((name, layers[name]) for name in names[: place + 1])
    behind = OrderedDict((name, layers[name]) for name in names[place + 1 :])
    if split == "last_block":
        before[last] = layers[last][:-1]
        behind = OrderedDict([(last, layers[last][-1:]), *behind.items()])
    return nn.Sequential(before), nn.Sequential(behind)

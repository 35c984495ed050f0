"""Multi-branch networks: a shared trunk and one copy of the later layers, or one light layer, per branch.

Shapes: B batch, K branches, H W image, C channels, h w map, D feature.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelt.errors import UserError
from facelt.models.backbones import Backbone

# Layers [B,C,h,w] -> [B,C,h,w] behind a fully shared backbone, built from C (ResLT, Cui et al., TPAMI 2022).
LIGHT_BRANCHES = {
    "batch_norm": nn.BatchNorm2d,
    "conv": lambda channels: nn.Conv2d(channels, channels, kernel_size=1, bias=False),
}

# Children of a backbone before the first layer are its stem: convolution, batch norm, activation and pooling.
_LAYER = re.compile(r"layer(\d)")


@dataclass(frozen=True)
class BranchSpec:
    """`count` branches that share a backbone up to and including `split`.

    `none`: nothing is shared, each branch is a whole network. `layer1`, `layer2`, `layer3`: the stem and the layers up
    to this one. `last_block`: all but the last residual block. A name of LIGHT_BRANCHES: everything, and a branch is
    that layer on the last map. The layers after the split have `width` times their channels. With `regions`, one box
    (left, top, right, bottom) in pixels for each branch, a branch sees its box alone, resized to `region_size` (height,
    width).
    """

    count: int
    split: str
    width: float = 1.0
    regions: Sequence[tuple[int, int, int, int]] = ()
    region_size: tuple[int, int] | None = None


class Region(nn.Module):
    """A box of each image, resized bilinearly with antialiasing: [B,3,H,W] -> [B,3,h,w].

    `box` is left, top, right, bottom in pixels, right and bottom excluded.
    """

    def __init__(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.box, self.size = box, size

    def forward(self, image_B3HW: Tensor) -> Tensor:
        left, top, right, bottom = self.box
        region_B3HW = image_B3HW[:, :, top:bottom, left:right]
        return F.interpolate(region_B3HW, size=self.size, mode="bilinear", antialias=True)


class BranchedBackbone(nn.Module):
    """A shared trunk and K branches: images [B,3,H,W] -> K maps [B,C,h,w].

    Given one batch of images, every branch reads the trunk's map of it. Given K batches, which may differ in size, the
    trunk runs once on each, with separate batch statistics, and branch k reads the k-th map. With `regions`, one for
    each branch, a branch reads its region of that map.
    """

    def __init__(self, trunk: nn.Module, branches: Sequence[nn.Module], regions: Sequence[Region] = ()) -> None:
        super().__init__()
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.regions = nn.ModuleList(regions)

    def forward(self, *image_B3HW: Tensor) -> list[Tensor]:
        """Raises ValueError unless there are 1 or K inputs."""
        count = len(self.branches)
        if len(image_B3HW) not in (1, count):
            raise ValueError(f"{len(image_B3HW)} inputs for {count} branches: pass one for all, or one for each")
        maps = [self.trunk(image) for image in image_B3HW]
        views = [maps[index % len(maps)] for index in range(count)]
        if self.regions:
            views = [region(view) for region, view in zip(self.regions, views, strict=True)]
        return [branch(view) for branch, view in zip(self.branches, views, strict=True)]


class PerBranch(nn.ModuleList):
    """One layer per branch: K maps -> K maps."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [layer(map_BChw) for layer, map_BChw in zip(self, maps, strict=True)]


class BranchedEmbedding(PerBranch):
    """One embedding layer per branch: K maps of equal batches -> feature [B,K,D]."""

    @property
    def dim(self) -> int:
        """D, the length of one branch's feature."""
        return self[0].dim

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack(super().forward(maps), dim=1)


def build_branched(name: str, backbone: Backbone, branches: BranchSpec) -> tuple[BranchedBackbone, int]:
    """Returns the backbone `name` with branches, and the channels of a branch's map.

    The weights are fresh, from torch's random state. All parts keep their names: trunk and branch together have the
    entries of the plain backbone. Raises UserError if the backbone cannot be split there.
    """
    if branches.split in LIGHT_BRANCHES:
        layers = [LIGHT_BRANCHES[branches.split](backbone.channels) for _ in range(branches.count)]
        return BranchedBackbone(backbone.build(), layers), backbone.channels
    build, channels = backbone.build, backbone.channels
    if branches.width != 1:
        if not backbone.widths:
            raise UserError(f"the channels of {name} cannot be changed; remove branches.width")
        widths = backbone.branch_widths(branches.split, branches.width)
        build, channels = partial(build, widths), channels * widths[-1] // backbone.widths[-1]
    networks = [build() for _ in range(branches.count)]
    try:
        pairs = [_split(network, branches.split) for network in networks]
    except ValueError as error:
        raise UserError(f"branches.split: {name} cannot be split at {branches.split}; choose {error}") from None
    regions = [Region(box, branches.region_size) for box in branches.regions]
    return BranchedBackbone(pairs[0][0], [branch for _, branch in pairs], regions), channels


def _split(backbone: nn.Module, split: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Splits a backbone, which is the sequence of its children; raises ValueError listing the allowed names."""
    children = OrderedDict(backbone.named_children())
    layers = [name for name in children if _LAYER.fullmatch(name)]
    allowed = ("none", *layers[:-1], *(["last_block"] if layers else []))
    if split not in allowed:
        raise ValueError(", ".join(allowed))
    if split == "none":
        return nn.Sequential(), nn.Sequential(children)
    names = list(children)
    last = layers[-1] if split == "last_block" else split
    stop = names.index(last) + 1
    trunk = OrderedDict((name, children[name]) for name in names[:stop])
    branch = OrderedDict((name, children[name]) for name in names[stop:])
    if split == "last_block":
        trunk[last] = children[last][:-1]
        branch = OrderedDict([(last, children[last][-1:]), *branch.items()])
    return nn.Sequential(trunk), nn.Sequential(branch)

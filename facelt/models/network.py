"""Network from image to feature: backbone, attention, embedding; its parameters by depth.

Freezing and loading use these three names.

Shapes: B batch, H W image, C channels, h w map, K branches, D feature.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from facelt.config.registry import BACKBONES, EMBEDDINGS
from facelt.errors import UserError
from facelt.models.branched import BranchedBackbone, BranchedEmbedding, BranchSpec, PerBranch, build_branched
from facelt.models.layers import ATTENTIONS


class Network(nn.Module):
    """image [B,3,H,W] -> feature [B,D]; without attention, an identity without parameters replaces it.

    A network of K branches returns [B,K,D]. It takes one batch of images, seen by every branch, or K batches of equal
    size, one for each branch; batches that are trained together go through one call.
    """

    def __init__(
        self, backbone: nn.Module, attention: nn.Module | None, embedding: nn.Module, branches: int = 1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.attention = nn.Identity() if attention is None else attention
        self.embedding = embedding
        self.branches = branches

    @property
    def dim(self) -> int:
        """D, the length of a feature; of one branch if there are several."""
        return self.embedding.dim

    def forward(self, *image_B3HW: Tensor) -> Tensor:
        return self.embedding(self.attention(self.backbone(*image_B3HW)))


def build_network(
    backbone: str,
    *,
    image_size: tuple[int, int],
    attention: bool | str,
    embedding: str,
    dim: int = 512,
    width: int | None = None,
    branches: BranchSpec | None = None,
) -> Network:
    """Returns a network for images of (height, width), with fresh weights from torch's random state.

    `attention` is a name in ATTENTIONS, True the modulated one; `embedding` is a registered name. The embedding "none"
    ignores `dim`: its features have the channels of the map. `width` is one of the backbone's, None its default. With
    `branches` each branch has its own attention and embedding. Raises UserError for an unknown name, an image size or
    `dim` below 1, a width that the backbone does not have, or a backbone that cannot be split as required.
    """
    spec, build_embedding = BACKBONES.find(backbone).at_width(width), EMBEDDINGS.find(embedding)
    if min(image_size) < 1 or dim < 1:
        raise UserError(f"image size {image_size[0]}x{image_size[1]} and dim {dim} must be 1 or more")
    input_size = image_size
    if branches and branches.regions:
        input_size = branches.region_size
        for left, top, right, bottom in branches.regions:
            if right > image_size[1] or bottom > image_size[0]:
                raise UserError(
                    f"branches.regions: [{left}, {top}, {right}, {bottom}] exceeds the image of {image_size[0]} x "
                    f"{image_size[1]} pixels; regions are left, top, right, bottom"
                )
    map_size = spec.map_size(input_size)

    def new_embedding(channels: int) -> nn.Module:
        return build_embedding(channels, dim, map_size if spec.flattened else None)

    def new_attention(channels: int) -> nn.Module:
        return ATTENTIONS["modulated" if attention is True else attention](channels, *map_size)

    if branches is None:
        # The order of construction decides the random weights: another order would change the network of a seed.
        embedding_layer, trunk = new_embedding(spec.channels), spec.build()
        return Network(trunk, new_attention(spec.channels) if attention else None, embedding_layer)
    trunk, channels = build_branched(backbone, spec, branches)
    count = range(branches.count)
    attentions = PerBranch(new_attention(channels) for _ in count) if attention else None
    return Network(trunk, attentions, BranchedEmbedding(new_embedding(channels) for _ in count), branches.count)


def parameters_by_depth(network: Network) -> list[list[nn.Parameter]]:
    """Returns the network's parameters in groups from the input to the feature: the stem, then each block.

    A block is a module at the top level of the backbone, or in its list `layers`, that itself consists of modules with
    layers: layer1 to layer4 of a ResNet, a dense block, a bottleneck of MobileFaceNet. Single layers before the first
    block are the stem; those after a block, such as a transition, belong to it, and so do attention and embedding to
    the last block. Blocks of different branches have the same depth. No group is empty.
    """
    is_branched = isinstance(network.backbone, BranchedBackbone)
    groups = _groups_of(network.backbone.trunk if is_branched else network.backbone)
    last = len(groups) - 1
    for branch in network.backbone.branches if is_branched else ():
        for depth, parameters in enumerate(_groups_of(branch), start=last):
            if depth == len(groups):
                groups.append([])
            groups[depth].extend(parameters)
    groups[-1].extend([*network.attention.parameters(), *network.embedding.parameters()])
    return [parameters for parameters in groups if parameters]


def _groups_of(module: nn.Module) -> list[list[nn.Parameter]]:
    """Returns the parameters of the stem, which may be none, and of each block with the layers after it."""
    groups = [list(module.parameters(recurse=False))]
    for layer in _layers_of(module):
        if any(next(part.children(), None) is not None for part in _layers_of(layer)):
            groups.append([])
        groups[-1].extend(layer.parameters())
    return groups


def _layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the children in order, and the members of a list named `layers` in its place."""
    for name, child in module.named_children():
        if name == "layers":
            yield from _layers_of(child)
        else:
            yield child

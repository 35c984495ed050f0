"""From image to feature: backbone, attention, embedding. Freezing and loading go by these three names.

Shapes: B batch, H W image, C channels, h w map, K branches, D feature.
"""

from torch import Tensor, nn

from facelt.config.registry import BACKBONES
from facelt.errors import UserError
from facelt.models.branched import BranchedEmbedding, Branches, PerBranch, build_branched
from facelt.models.layers import ATTENTIONS, build_embedding


class Network(nn.Module):
    """image [B,3,H,W] -> feature [B,dim]. Without attention its place is taken by an identity with no parameters.

    A network of K branches returns [B,K,dim]. It takes one batch of images, which every branch sees, or K batches of
    equal size, one for each branch; what is learnt of them together is one call.
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
        """D, the length of a feature, of one branch where there are several."""
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
    branches: Branches | None = None,
) -> Network:
    """A network with fresh weights from torch's random state, built for images of (height, width) pixels.

    `attention` names a row of ATTENTIONS, True is the modulated one; `embedding` is a registered name. `dim` is
    not used by "none", whose features are as long as the map is deep.
    With `branches` every branch has attention and embedding of its own.
    Raises UserError on an unknown name, an image size below 1, a dim below 1 or a place that divides no backbone.
    """
    spec = BACKBONES.find(backbone)
    if min(image_size) < 1 or dim < 1:
        raise UserError(f"image size {image_size[0]}x{image_size[1]} and dim {dim} must be 1 or more")
    map_size = spec.map_size(image_size)

    def tail(channels: int) -> nn.Module:
        return build_embedding(embedding, channels, dim, map_size if spec.flattened else None)

    def focus(channels: int) -> nn.Module:
        return ATTENTIONS["modulated" if attention is True else attention](channels, *map_size)

    if branches is None:
        # Weights are drawn in this order: with another, a seed would give another network.
        end, trunk = tail(spec.channels), spec.build()
        return Network(trunk, focus(spec.channels) if attention else None, end)
    trunk, channels = build_branched(backbone, spec, branches)
    count = range(branches.count)
    focused = PerBranch(focus(channels) for _ in count) if attention else None
    return Network(trunk, focused, BranchedEmbedding(tail(channels) for _ in count), branches.count)

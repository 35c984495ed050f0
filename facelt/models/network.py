"""From image to feature: backbone, attention, embedding. Freezing and loading go by these three names.

Shapes: B batch, H W image, C channels, h w map, D feature.
"""

from torch import Tensor, nn

from facelt.errors import UserError
from facelt.models import BACKBONES
from facelt.models.attention import ModulatedAttention
from facelt.models.embedding import build_embedding


class Network(nn.Module):
    """image [B,3,H,W] -> feature [B,dim]. Without attention its place is taken by an identity with no parameters."""

    def __init__(self, backbone: nn.Module, attention: nn.Module | None, embedding: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.attention = nn.Identity() if attention is None else attention
        self.embedding = embedding

    @property
    def dim(self) -> int:
        """D, the length of a feature."""
        return self.embedding.dim

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.embedding(self.attention(self.backbone(image_B3HW)))


def build_network(
    backbone: str, *, image_size: tuple[int, int], attention: bool, embedding: str, dim: int = 512
) -> Network:
    """A network with fresh weights from torch's random state, built for images of (height, width) pixels.

    `embedding` names a row of EMBEDDINGS; `dim` is not used by "none", whose features are as long as the map is deep.
    Raises UserError on an unknown name, an image size below 1 or a dim below 1.
    """
    if backbone not in BACKBONES:
        raise UserError(f"unknown backbone {backbone!r}: choose one of {', '.join(BACKBONES)}")
    if min(image_size) < 1 or dim < 1:
        raise UserError(f"image size {image_size[0]}x{image_size[1]} and dim {dim} must be 1 or more")
    spec = BACKBONES[backbone]
    map_size = spec.map_size(image_size)
    tail = build_embedding(embedding, spec.channels, dim, map_size if spec.flattened else None)
    return Network(spec.build(), ModulatedAttention(spec.channels, *map_size) if attention else None, tail)

"""Where in an image a class is seen: class activation maps of a linear classifier on the averaged map.

Shapes: B batch, C channels, h w map, H W image.
"""

import torch
import torch.nn.functional as F

# Of the map's mean: what lies above it is foreground.
SHARE = 0.75


def class_activation(map_BChw: torch.Tensor, weight_BC: torch.Tensor) -> torch.Tensor:
    """The map weighted by the classifier's row of a class, one each image, [B,h,w]: the logit is its mean and a bias.

    Source: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016.
    """
    return torch.einsum("bchw,bc->bhw", map_BChw, weight_BC)


def foreground(activation_Bhw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Which pixels of an image of (height, width) show the class, bool [B,H,W]; never none of them.

    The activation from its minimum up, in the image's size, is at least 0.75 of its mean there: Zhang et al., Bag of
    Tricks for Long-Tailed Visual Recognition, AAAI 2021, as their code reads it.
    """
    raised_Bhw = activation_Bhw - activation_Bhw.amin(dim=(1, 2), keepdim=True)
    raised_BHW = F.interpolate(raised_Bhw[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return raised_BHW >= SHARE * raised_BHW.mean(dim=(1, 2), keepdim=True)

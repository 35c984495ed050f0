"""From the images of a batch to the network's input, on the device.

Shapes: B images of a batch, H height, W width.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch._dynamo.exc import TorchDynamoException

from facelt.errors import UserError


def flip_mask(seed_B: torch.Tensor) -> torch.Tensor:
    """Which images to mirror, bool [B]: one bit of each draw's seed, which is a hash, so one half of all draws."""
    return (seed_B & 1).bool()


@torch.no_grad()
def to_float(
    image_BHW3: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    seed_B: torch.Tensor | None = None,
    *,
    fused: bool = False,
) -> torch.Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in channels-last memory: (pixel / 255 - mean) / std for each channel.

    `mean` and `std` are in units of the full range 1; 0.5 and 0.5 give the (x - 127.5) / 127.5 of face models. With the
    draws' seeds images are mirrored left to right as `flip_mask` says.

    `fused` compiles all of it to one kernel that reads a byte and writes a float for each value, where torch writes a
    mirrored copy and a product in between; the two agree to float32's rounding. It is for GPUs: on a CPU the compiled
    kernel measures seven times slower, for it vectorises over the three channels alone.

    Raises UserError where `fused` is asked for and the kernel cannot be compiled.
    """
    constants = _scale_and_shift(tuple(mean), tuple(std), image_BHW3.device)
    # torch would compile once more for no image and once more for a single one.
    if not fused or len(image_BHW3) < 2:
        return _normalise(image_BHW3, *constants, seed_B)
    try:
        return _compiled()(image_BHW3, *constants, seed_B)
    except TorchDynamoException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        raise UserError(
            f"data.fused: the kernel for {image_BHW3.device} cannot be compiled here ({reason}); install what is "
            "missing (Triton and a C compiler), or set data.fused=false to run without it"
        ) from None


def _normalise(
    image_BHW3: torch.Tensor, scale_3: torch.Tensor, shift_3: torch.Tensor, seed_B: torch.Tensor | None
) -> torch.Tensor:
    if seed_B is not None:
        image_BHW3 = torch.where(flip_mask(seed_B)[:, None, None, None], image_BHW3.flip(2), image_BHW3)
    return (image_BHW3 * scale_3).sub_(shift_3).permute(0, 3, 1, 2)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    """One kernel for batches and images of any size."""
    return torch.compile(_normalise, dynamic=True, fullgraph=True)


@lru_cache(maxsize=8)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and mean / std, float32 [3]; kept, because a copy to the device at each step would wait for it."""
    mean_3, std_3 = torch.tensor(mean), torch.tensor(std)
    return (1 / (255 * std_3)).to(device), (mean_3 / std_3).to(device)

"""The device a configuration asks for, without a silent fallback."""

import torch

from facelt.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Raises UserError on another name than cpu or cuda, and when a GPU is asked for and there is none."""
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is not allowed; allowed: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but no GPU is available here; set device=cpu to run without one")
    return torch.device(name)

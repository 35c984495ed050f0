"""The device a configuration asks for, without a silent fallback."""

import os

import torch

from facelt.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device of this process; under torchrun each process of a machine takes a GPU of its own.

    Raises UserError on another name than cpu or cuda, and when a GPU is asked for and there is none.
    """
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is not allowed; allowed: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but no GPU is available here; set device=cpu to run without one")
    place = os.environ.get("LOCAL_RANK")
    if name == "cpu" or place is None:
        return torch.device(name)
    if int(place) >= torch.cuda.device_count():
        raise UserError(
            f"device: this machine has {torch.cuda.device_count()} GPUs, too few for the process numbered {place} from "
            "0; give torchrun --nproc_per_node as many as there are"
        )
    device = torch.device(name, int(place))
    torch.cuda.set_device(device)
    return device

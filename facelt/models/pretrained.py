"""From one stage's network to the next, whose attention or embedding may be new.

Weights from elsewhere: torchvision's, arcface_torch's or a facelt network's, all or nothing.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from facelt.errors import UserError
from facelt.models.backbones import IResNet
from facelt.models.layers import LinearBatchNorm
from facelt.models.network import Network

PARTS = ("backbone", "attention", "embedding")


def load_stage(network: Network, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copies an earlier stage's `Network.state_dict()` where name and shape agree; returns the names that stay initial.

    Stage 2 of OLTR adds attention and a fully connected layer: these stay, the backbone must match whole.
    Raises UserError, with nothing changed, when the backbone differs.
    """
    own = network.state_dict()
    wrong = difference(*({k: v for k, v in state.items() if part_of(k) == "backbone"} for state in (own, state_dict)))
    if wrong:
        raise UserError(f"the earlier stage has another backbone: {wrong}; name the same backbone in both stages")
    matching = {name: value for name, value in state_dict.items() if name in own and fits(own[name], value)}
    network.load_state_dict(matching, strict=False)
    return tuple(name for name in own if name not in matching)


def part_of(name: str) -> str:
    """The first component of an entry's name: "backbone" of "backbone.conv1.weight"."""
    return name.partition(".")[0]


def fits(own: Tensor, given: Tensor) -> bool:
    """Whether the values can be copied: same shape, and both fractional or both whole numbers."""
    return own.shape == given.shape and own.is_floating_point() == given.is_floating_point()


def difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """One phrase on the first entry that is missing, of another shape or superfluous; empty when all fit.

    `num_batches_tracked` may be missing: files older than PyTorch 0.4.1 have none and nothing here reads it.
    """
    fitting = sum(name in given and fits(value, given[name]) for name, value in own.items())
    total = f"({fitting} of {len(own)} entries fit)"
    for name, value in own.items():
        if name not in given:
            if not name.endswith(".num_batches_tracked"):
                return f"{name} is missing {total}"
        elif not fits(value, given[name]):
            return f"{name} is {_describe(given[name])} there and {_describe(value)} here {total}"
    extra = next((name for name in given if name not in own), None)
    return "" if extra is None else f"{extra[:80]!r} has no place here {total}"


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


WRAPPERS = ("state_dict", "state_dict_backbone", "model")
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32}


@dataclass(frozen=True)
class LoadSummary:
    """Entry names: `loaded` and `initial` (kept as they were) of the network, `ignored` of the file."""

    loaded: tuple[str, ...]
    initial: tuple[str, ...]
    ignored: tuple[str, ...]


def load_pretrained(network: Network, path: str | Path) -> LoadSummary:
    """Copies a .pth, .pt or .safetensors state dict into the network, in place.

    The backbone must match whole, in names and shapes; the attention and the embedding each match whole or, when the
    file holds none of the network's kind, keep their values. torchvision's classifier is ignored; arcface_torch's
    `fc` and `features` become the embedding. Nothing is changed when anything is wrong.
    Raises UserError naming the file and the first entry at fault.
    """
    ours, ignored = fitting_state(network, path)
    network.load_state_dict(ours, strict=False)
    own = network.state_dict()
    return LoadSummary(
        loaded=tuple(name for name in own if name in ours),
        initial=tuple(name for name in own if name not in ours),
        ignored=ignored,
    )


def fitting_state(network: Network, path: str | Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file's tensors under the network's names, and the names in the file of those that it has no place for.

    Of the network only names and shapes are asked: it may be on the meta device. Raises UserError as `load_pretrained`.
    """
    path = Path(path)
    state = read_state(path)
    source = dict(zip(_own_names(list(state)), state, strict=True))
    own = network.state_dict()
    given = {name: state[source[name]] for name in source if part_of(name) in PARTS}
    ours = {name: value for name, value in given.items() if name in own}
    present = {"backbone", *map(part_of, ours)}
    for part in filter(present.__contains__, PARTS):
        wrong = difference(*({k: v for k, v in side.items() if part_of(k) == part} for side in (own, given)))
        if wrong:
            raise UserError(
                f"{path}: its weights do not fit this network: {wrong}; choose the model they were made for"
            )
    for name, value in ours.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: entry {source[name]!r} holds values that are not finite; the file is unusable")
    return ours, tuple(source[name] for name in source if name not in ours)


def arcface_state(network: Network) -> dict[str, Tensor] | None:
    """A plain IResNet's tensors under arcface_torch's names; None of another network, which it has no names for."""
    plain = isinstance(network.backbone, IResNet) and isinstance(network.embedding, LinearBatchNorm)
    if not plain or not isinstance(network.attention, nn.Identity):
        return None
    return {name.partition(".")[2]: value for name, value in network.state_dict().items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict file by name, on the CPU, without wrapper and without a `module.` prefix.

    No pickle beyond plain tensors is ever executed. Raises UserError naming the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a .pth, .pt or .safetensors state dict")
    state = _read_file(path)
    wrapper = next((key for key in WRAPPERS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper:
        state = state[wrapper]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict (names with tensors); save network.state_dict()")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in DTYPES
        if not isinstance(name, str) or not plain or value.device.type != "cpu":
            raise UserError(f"{path}: entry {str(name)[:80]!r} is no plain tensor; save network.state_dict() alone")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _read_file(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a damaged file may break the parser anywhere
            raise UserError(f"{path}: not a readable safetensors file ({_line(error)})") from error
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path}: unknown kind of weights file; it must end in .pth, .pt or .safetensors")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not read, because it is damaged or holds more than tensors and could run code; "
            "save its state dict alone, as .safetensors or with torch.save"
        ) from error
    except Exception as error:  # as above
        raise UserError(f"{path}: not a readable PyTorch file ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _own_names(names: list[str]) -> list[str]:
    """The network's names of a file's entries; what belongs to no part of a network (a classifier) keeps its own."""
    if any(part_of(name) == "backbone" for name in names):
        return names
    arcface = "features.weight" in names  # otherwise `fc` is torchvision's classifier
    tail = {"fc": "embedding.", "features": "embedding."} if arcface else {"fc": ""}
    return [tail.get(part_of(name), "backbone.") + name for name in names]

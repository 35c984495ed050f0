"""Network weights from an earlier stage, and pretrained weights of torchvision, arcface_torch or facelt."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from facelt.config.train import NetworkPart
from facelt.errors import UserError
from facelt.models.backbones import IResNet
from facelt.models.layers import LinearBatchNorm
from facelt.models.mobilefacenet import GlobalDepthwiseConvolution, MobileFaceNet
from facelt.models.network import Network

NETWORK_PARTS = get_args(NetworkPart)
_WRAPPER_KEYS = ("state_dict", "state_dict_backbone", "model")
# Backbones and embeddings whose entries have arcface_torch's names.
_ARCFACE_NETWORKS = {(IResNet, LinearBatchNorm), (MobileFaceNet, GlobalDepthwiseConvolution)}
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32}


def load_pretrained(network: Network, path: str | Path) -> None:
    """Copies a .pth, .pt or .safetensors state dict into the network, in place.

    The backbone must match completely, in names and shapes. The attention and the embedding each match completely or,
    if the file has none of the network's kind, keep their values. torchvision's classifier is ignored; arcface_torch's
    `fc` and `features` become the embedding. Raises UserError, with nothing changed, naming the file and the first
    wrong entry.
    """
    network.load_state_dict(matching_state(network, path), strict=False)


def matching_state(network: Network, path: str | Path) -> dict[str, Tensor]:
    """Returns the file's tensors that `load_pretrained` copies, under the network's names.

    Only the network's names and shapes are read: it may be on the meta device. Raises UserError as `load_pretrained`.
    """
    path = Path(path)
    state = read_state_dict(path)
    source = dict(zip(_network_names(list(state)), state, strict=True))
    expected = network.state_dict()
    loaded = {name: state[source[name]] for name in source if _part_of(name) in NETWORK_PARTS}
    matching = {name: value for name, value in loaded.items() if name in expected}
    present = {"backbone", *map(_part_of, matching)}
    for part in filter(present.__contains__, NETWORK_PARTS):
        mismatch = state_mismatch(_entries_of(part, expected), _entries_of(part, loaded))
        if mismatch:
            raise UserError(
                f"{path}: the weights do not fit this network: {mismatch}; set model.backbone, model.width and "
                "model.dim to those of the file"
            )
    for name, value in matching.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: entry {source[name]!r} has values that are not finite; the file cannot be used")
    return matching


def load_stage_weights(network: Network, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copies an earlier stage's `Network.state_dict()` where names and shapes match; returns the names left unchanged.

    Stage 2 of OLTR adds attention and a fully connected layer, which keep their initial weights; the backbone must
    match completely. Raises UserError, with nothing changed, if the backbone differs.
    """
    expected = network.state_dict()
    mismatch = state_mismatch(_entries_of("backbone", expected), _entries_of("backbone", state_dict))
    if mismatch:
        raise UserError(
            f"the earlier stage has a different backbone: {mismatch}; configure the same backbone for both stages"
        )
    matching = {name: value for name, value in state_dict.items() if name in expected and _fits(expected[name], value)}
    network.load_state_dict(matching, strict=False)
    return tuple(name for name in expected if name not in matching)


def state_mismatch(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> str:
    """Returns a phrase on the first entry that is missing, of another shape or unexpected; "" if all entries match.

    `num_batches_tracked` may be missing: files older than PyTorch 0.4.1 do not have it, and it is not used.
    """
    fitting = sum(name in loaded and _fits(value, loaded[name]) for name, value in expected.items())
    total = f"({fitting} of {len(expected)} entries match)"
    for name, value in expected.items():
        if name not in loaded:
            if not name.endswith(".num_batches_tracked"):
                return f"{name} is missing {total}"
        elif not _fits(value, loaded[name]):
            return f"{name} is {_describe(loaded[name])}, expected {_describe(value)} {total}"
    extra = next((name for name in loaded if name not in expected), None)
    return "" if extra is None else f"unexpected entry {extra[:80]!r} {total}"


def arcface_state_dict(network: Network) -> dict[str, Tensor] | None:
    """Returns the tensors of a plain IResNet or MobileFaceNet under arcface_torch's names, None for other networks."""
    parts = type(network.backbone), type(network.embedding)
    if parts not in _ARCFACE_NETWORKS or not isinstance(network.attention, nn.Identity):
        return None
    return {name.partition(".")[2]: value for name, value in network.state_dict().items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a state dict file by name, on the CPU, without wrapper and without a `module.` prefix.

    Never unpickles anything but plain tensors. Raises UserError naming the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a .pth, .pt or .safetensors state dict")
    state = _read_file(path)
    wrapper = next((key for key in _WRAPPER_KEYS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    if wrapper:
        state = state[wrapper]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: not a state dict (names with tensors); save network.state_dict()")
    for name, value in state.items():
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in _DTYPES
        if not isinstance(name, str) or not is_plain or value.device.type != "cpu":
            raise UserError(f"{path}: entry {str(name)[:80]!r} is not a plain tensor; save network.state_dict() only")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _read_file(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a damaged file may break the parser anywhere
            raise UserError(f"{path}: not a readable safetensors file ({_one_line(error)})") from error
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path}: unknown kind of weights file; it must end in .pth, .pt or .safetensors")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not read, because it is damaged or contains more than tensors and could run code; "
            "save only its state dict, as .safetensors or with torch.save"
        ) from error
    except Exception as error:  # as above
        raise UserError(f"{path}: not a readable PyTorch file ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _network_names(names: list[str]) -> list[str]:
    """Returns the network's names of a file's entries; entries of no part, such as a classifier, keep theirs."""
    if any(_part_of(name) == "backbone" for name in names):
        return names
    # IResNet's batch norm or MobileFaceNet's block; otherwise `fc` is torchvision's classifier.
    is_arcface = any(name.startswith(("features.weight", "features.layers.")) for name in names)
    prefixes = {"fc": "embedding.", "features": "embedding."} if is_arcface else {"fc": ""}
    return [prefixes.get(_part_of(name), "backbone.") + name for name in names]


def _part_of(name: str) -> str:
    """Returns the first component of an entry's name: "backbone" of "backbone.conv1.weight"."""
    return name.partition(".")[0]


def _entries_of(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if _part_of(name) == part}


def _fits(expected: Tensor, loaded: Tensor) -> bool:
    """Returns whether the values can be copied: same shape, and both floating-point or both integer."""
    return expected.shape == loaded.shape and expected.is_floating_point() == loaded.is_floating_point()


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

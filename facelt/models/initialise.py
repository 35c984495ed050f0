"""From one stage's network to the next, whose attention or embedding may be new."""

from collections.abc import Mapping

from torch import Tensor

from facelt.errors import UserError
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

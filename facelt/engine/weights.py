"""Weights as safetensors: whole in the file, a range of the classes on each rank.

C classes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from facelt.engine.ranks import on_first_rank
from facelt.errors import UserError
from facelt.methods import Method
from facelt.models.initialise import difference
from facelt.parallel import ClassRange, rank, split_entries, world
from facelt.whole_files import replacing


class Entry:
    """A tensor in an open file; its rows are read when they are asked for."""

    def __init__(self, stored) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.get_shape())

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self._stored[rows]

    def whole(self) -> torch.Tensor:
        return self._stored[...]

    def outline(self) -> torch.Tensor:
        """Shape and type without values."""
        sample = self._stored[:0] if self.shape else self.whole()
        return torch.empty(self.shape, dtype=sample.dtype, device="meta")


def save_weights(method: Method, path: Path) -> None:
    """The method's tensors, whole or not at all.

    Rank 0 puts the rows of all classes together, range by range; no other rank holds them.
    """
    split = split_entries(method)
    tensors = {}
    for name, value in method.state_dict().items():
        whole = _put_together(value, split[name]) if name in split else value
        if whole is not None:
            tensors[name] = whole.contiguous()

    def write() -> None:
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary)
        except safetensors.SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from None

    on_first_rank(write)


def _put_together(value: torch.Tensor, classes: ClassRange) -> torch.Tensor | None:
    """All rows on rank 0; None elsewhere."""
    if world() == 1:
        return value
    # gloo sends no truth values.
    own = value.to("cpu", torch.uint8 if value.dtype == torch.bool else value.dtype).contiguous()
    if rank():
        if len(classes):
            dist.send(own, 0)
        return None
    whole = own.new_empty((classes.total, *own.shape[1:]))
    whole[: len(classes)] = own
    for other in range(1, world()):
        theirs = ClassRange.of(classes.total, other, world())
        if len(theirs):
            dist.recv(whole[theirs.first : theirs.stop], other)
    return whole.to(value.dtype)


@contextmanager
def open_weights(path: Path) -> Iterator[dict[str, Entry]]:
    """The entries of a file by name. Raises UserError on a missing or damaged one, also while it is read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield {name: Entry(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot read the weights ({error})") from None


def refuse_other_shapes(path: Path, method: Method) -> None:
    """Raises UserError unless the file holds this method's tensors; reads none of them.

    The method may be one without memory, on the device meta.
    """
    split = split_entries(method)
    own = {
        name: torch.empty((split[name].total, *value.shape[1:]), dtype=value.dtype, device="meta")
        if name in split
        else value
        for name, value in method.state_dict().items()
    }
    with open_weights(path) as entries:
        given = {name: entry.outline() for name, entry in entries.items()}
    wrong = difference(own, given)
    if wrong:
        raise UserError(f"{path}: the weights do not belong to this model: {wrong}")


def load_weights(path: Path, method: Method) -> None:
    """Fills the method from a file of its tensors, reading of the classes' rows only those this rank holds."""
    split = split_entries(method)
    with open_weights(path) as entries:
        method.load_state_dict({name: _own_rows(entry, split.get(name)) for name, entry in entries.items()})


def network_state(
    entries: Mapping[str, Entry], value: Callable[[Entry], torch.Tensor] = Entry.whole
) -> dict[str, torch.Tensor]:
    """The network's tensors, which every rank holds whole; with Entry.outline, without values."""
    prefix = "network."
    return {name.removeprefix(prefix): value(entry) for name, entry in entries.items() if name.startswith(prefix)}


def _own_rows(entry: Entry, classes: ClassRange | None) -> torch.Tensor:
    return entry.whole() if classes is None else entry[classes.first : classes.stop]

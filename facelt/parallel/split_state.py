"""Which entries of a module's state are split over the ranks."""

from itertools import chain

from torch import nn

from facelt.parallel.class_range import ClassRange


def split_entries(module: nn.Module) -> dict[str, ClassRange]:
    """The range of each state entry whose rows are classes, by the entry's name.

    A module whose `classes` is a ClassRange holds nothing but such rows.
    """
    found = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        classes = getattr(part, "classes", None)
        if isinstance(classes, ClassRange):
            own = chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
            found |= {f"{prefix}.{name}" if prefix else name: classes for name, _ in own}
    return found

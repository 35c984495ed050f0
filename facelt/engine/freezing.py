"""Parts that keep their weights."""

from collections.abc import Iterable

from facelt.methods import Method


def freeze(method: Method, parts: Iterable[str]) -> None:
    """No gradients into these parts: the network's by their names, and `head`."""
    for part in parts:
        parameters = method.parameter_groups()["head"] if part == "head" else getattr(method.network, part).parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)


def frozen(method: Method) -> Method:
    """The whole method as a teacher: in evaluation mode, no weight of it moves."""
    return method.eval().requires_grad_(False)

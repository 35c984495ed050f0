"""Losses and gradients of the authors' code, and the comparison with them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def reference(golden) -> dict[str, np.ndarray]:
    """Inputs, losses and gradients of the released code."""
    with np.load(golden / "losses.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def equals(reference) -> Callable[..., None]:
    """equals(name, input_name, loss) asserts that the loss and its gradient equal the named reference within 1e-5."""

    def check(name: str, input_name: str, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        value = torch.from_numpy(reference[input_name]).requires_grad_()
        result = loss(value)
        result.backward()
        expected = reference[f"{name}/grad"]
        assert abs(result.item() - reference[f"{name}/loss"]) <= 1e-5 * abs(reference[f"{name}/loss"])
        assert np.abs(value.grad.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()

    return check

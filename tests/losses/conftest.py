"""The authors' figures for the losses, and how close to them one has to come."""

from collections.abc import Callable

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def reference(golden) -> dict[str, np.ndarray]:
    """Inputs, losses and gradients of the released codes."""
    with np.load(golden / "losses.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def equals(reference) -> Callable[..., None]:
    """equals(name, input_name, loss) asserts loss(input) and its gradient to be the named reference's, within 1e-5."""

    def check(name: str, input_name: str, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        value = torch.from_numpy(reference[input_name]).requires_grad_()
        found = loss(value)
        found.backward()
        expected = reference[f"{name}/grad"]
        assert abs(found.item() - reference[f"{name}/loss"]) <= 1e-5 * abs(reference[f"{name}/loss"])
        assert np.abs(value.grad.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()

    return check

"""Interruption of a training run in the middle, for tests of resumed runs."""

from collections.abc import Callable

import pytest

from facelt.methods.base import Method


def run_interrupted(monkeypatch, method: type[Method], train: Callable[[], object]) -> None:
    """Calls `train` and interrupts it in the fourth step of the method."""
    original, calls = method.step, iter(range(100))

    def stopped(self, batches, context):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(self, batches, context)

    with monkeypatch.context() as patch:
        patch.setattr(method, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train()

"""Fixtures of the search tests: every engine on the CPU."""

import pytest


def _engines():
    from facelt.search.faiss_engine import FaissEngine
    from facelt.search.torch_engine import TorchEngine

    return {
        "faiss": FaissEngine(),
        "torch float32": TorchEngine("cpu", bfloat16=False),
        "torch bfloat16": TorchEngine("cpu", bfloat16=True),
    }


@pytest.fixture(scope="session")
def engines():
    """The engines by name."""
    return _engines()

"""Search engine by name: faiss, torch, or whichever is installed."""

import importlib.util
from typing import Literal

from facelt.errors import UserError
from facelt.search.engine import Engine

EngineName = Literal["auto", "faiss", "torch"]

# Number of scored pairs above which the time to import torch pays off: a search of a million rows by two thousand.
WORTH_TORCH = 1 << 31


def open_engine(name: EngineName = "auto", pairs: int = 0) -> Engine:
    """Returns the engine of that name; `auto` is faiss if it is installed, else torch.

    For many scored `pairs`, `auto` is torch if the device has fast bfloat16 products (several times faster). Raises
    UserError if the engine is not installed; with `auto`, if neither is.
    """
    installed = [package for package in ("faiss", "torch") if importlib.util.find_spec(package)]
    chosen = name if name != "auto" else next(iter(installed), None)
    if name == "auto" and "torch" in installed and pairs >= WORTH_TORCH:
        from facelt.search.torch_engine import TorchEngine

        if "faiss" not in installed or (engine := TorchEngine()).bfloat16:
            return engine
    if chosen not in installed:
        what = f"{name!r} is not installed" if chosen else "neither faiss nor torch is installed"
        raise UserError(f"search.engine: {what}; pip install 'facelt[cpu]' brings faiss and 'facelt[train]' torch")
    if chosen == "faiss":
        from facelt.search.faiss_engine import FaissEngine

        return FaissEngine()
    from facelt.search.torch_engine import TorchEngine

    return TorchEngine()

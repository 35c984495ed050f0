"""Search engine by name: faiss, torch, or whichever is installed."""

import importlib.util
from typing import Literal

from facelt.errors import UserError
from facelt.search.engine import Engine

EngineName = Literal["auto", "faiss", "torch"]

# From so many pairs on the time that importing torch takes is made up for: a search of a million by two thousand.
WORTH_TORCH = 1 << 31


def open_engine(name: EngineName = "auto", pairs: int = 0) -> Engine:
    """The engine of that name; `auto` is faiss where it is installed, else torch.

    With many `pairs` to score `auto` is torch where that has bfloat16 products, which are several times as fast. Raises
    UserError where the engine, or with `auto` either, is not installed.
    """
    installed = [package for package in ("faiss", "torch") if importlib.util.find_spec(package)]
    chosen = name if name != "auto" else next(iter(installed), None)
    if name == "auto" and "torch" in installed and pairs >= WORTH_TORCH:
        from facelt.search.torch_engine import TorchEngine

        if "faiss" not in installed or (engine := TorchEngine()).bfloat16:
            return engine
    if chosen not in installed:
        what = f"{name!r} is not installed" if chosen else "neither faiss nor torch is installed"
        raise UserError(
            f"search.engine: {what}; in facelt's folder, pip install '.[cpu]' brings faiss and '.[train]' torch"
        )
    if chosen == "faiss":
        from facelt.search.faiss_engine import FaissEngine

        return FaissEngine()
    from facelt.search.torch_engine import TorchEngine

    return TorchEngine()

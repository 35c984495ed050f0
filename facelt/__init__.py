"""Face recognition on long-tailed data: training, measurement, audit, galleries.

`load`, `audit` and `Gallery` are imported when they are first used, so that `import facelt` loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facelt.audit.arrays import audit_arrays as audit
    from facelt.gallery.gallery import Gallery
    from facelt.inference.embed import load_embedder as load

__version__ = "0.1.0"
__all__ = ["Gallery", "audit", "load"]

_ATTRIBUTES = {"Gallery": ("facelt.gallery.gallery", "Gallery"), "load": ("facelt.inference.embed", "load_embedder")}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'facelt' has no attribute {name!r}")
    try:
        if name == "audit":  # a package that can be called
            return import_module("facelt.audit")
        module, attribute = _ATTRIBUTES[name]
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        from facelt.utils.cli import missing_package_hint

        hint = missing_package_hint(error)
        if hint is None:
            raise
        raise ModuleNotFoundError(f"facelt.{name} {hint}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

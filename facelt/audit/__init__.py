"""Audit of identification and verification errors by subgroup.

The package itself is a function, as `facelt.audit(embeddings, attributes, by=...)`: see facelt.audit.arrays.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Audits arrays in memory, as facelt.audit.arrays.audit_arrays does."""
        from facelt.audit.arrays import audit_arrays

        return audit_arrays(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage

"""dqlab: the lab bench for diffusion-model quantization.

pipe = dqlab.load("pixel-unet")
q = dqlab.quantize(pipe, "rtn", weights=4, activations=8)
dqlab.compare(pipe, q)

Names are resolved when first used, so that `import dqlab` costs no more than its parts.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "load": "dqlab.methods",
    "quantize": "dqlab.methods",
    "recipe": "dqlab.methods",
    "describe": "dqlab.methods",
    "ask": "dqlab.models.families",
    "wrap_module": "dqlab.models.families",
    "compare": "dqlab.api",
    "methods_table": "dqlab.api",
    "models_table": "dqlab.api",
    "train": "dqlab.api",
    "setup": "dqlab.api",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'dqlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `dqlab.compare` the function once the module of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what the import system sets for a submodule that shares a public name."""
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

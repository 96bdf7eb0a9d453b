"""dqlab: the lab bench for diffusion-model quantization.

pipe = dqlab.load("pixel-unet")
q = dqlab.quantize(pipe, "rtn", weights=4, activations=8)
dqlab.compare(pipe, q)

Names are resolved when first used, so that `import dqlab` costs no more than its parts.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "load": "dqlab.methods",
    "quantize": "dqlab.methods",
    "recipe": "dqlab.methods",
    "describe": "dqlab.methods",
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

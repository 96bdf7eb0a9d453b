"""Triton low-bit kernels, installed as `dqlab.kernels`.

One folder per family of operations. Each operation has a schema with a shape-only fake, a
reference in plain torch that runs everywhere, and faster implementations that say which calls
they take. Importing this package imports torch and never Triton.
"""

from dqlab.kernels.quantize import quantize_affine
from dqlab.kernels.registry import Implementation, NoImplementationError, explain, named

__all__ = ["Implementation", "NoImplementationError", "explain", "named", "quantize_affine"]

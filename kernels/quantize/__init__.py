"""From real numbers to integer codes. The README in this folder explains the physics first."""

from dqlab.kernels.quantize import reference, triton_launch
from dqlab.kernels.quantize.op import quantize_affine
from dqlab.kernels.registry import implements

implements("quantize_affine", "triton", refuses=triton_launch.refuses)(triton_launch.run)
implements("quantize_affine", "reference", refuses=reference.refuses)(reference.run)

__all__ = ["quantize_affine"]

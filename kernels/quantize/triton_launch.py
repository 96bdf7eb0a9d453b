"""When the Triton kernel may run, and how it is launched. Triton is imported on first use."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

# Elements per program: four per thread at the default four warps, so that loads are 16 bytes wide.
BLOCK = 512


def refuses(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> str | None:
    """Say why a call is not for Triton, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed (it exists for Linux only)"
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"x is on {x.device}; Triton needs a GPU (or TRITON_INTERPRET=1 to emulate one)"
    return None


def run(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Compute the codes in one pass; arguments as in `quantize_affine`."""
    from dqlab.kernels.quantize.triton_kernel import quantize_affine_kernel

    x = x.contiguous()
    codes = torch.empty_like(x, dtype=torch.uint8)
    if x.numel():
        blocks = -(-x.numel() // BLOCK)
        with torch.cuda.device_of(x):
            quantize_affine_kernel[(blocks,)](
                x, scale, zero_point, codes, x.numel(), TOP=2**bits - 1, BLOCK=BLOCK
            )
    return codes

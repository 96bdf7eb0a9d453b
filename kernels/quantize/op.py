"""Schema, argument checks and shape-only fake of `dqlab::quantize_affine`."""

import torch
from torch import Tensor

from dqlab.kernels.registry import select


@torch.library.custom_op("dqlab::quantize_affine", mutates_args=())
def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    """Affine codes of a tensor: `clamp(round(x / scale) + zero_point, 0, 2**bits - 1)`.

    Rounds halves to even, as `torch.round`. Jacob et al., arXiv 1712.05877, equation 1, solved
    for the code. Infinities saturate; NaN takes the code of zero.

    Args:
        x: any shape, float32.
        scale: one float32 number above 0, on the device of `x`, in units of `x` per code. Its
            value is not read here, because that would make the host wait for the device.
        zero_point: one int32 number, the code of 0.0, of magnitude below 2**21.
        bits: 1 to 8.

    Returns:
        uint8 codes of the same shape, contiguous.

    Raises:
        ValueError: a dtype, size, device or bit width outside the above.
    """
    problem = _problem(x, scale, zero_point, bits)
    if problem:
        raise ValueError(f"quantize_affine: {problem}")
    return select("quantize_affine", x, scale, zero_point, bits).run(x, scale, zero_point, bits)


@quantize_affine.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


def _problem(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> str | None:
    """Name the first argument that breaks the schema, or None."""
    if not 1 <= bits <= 8:
        return f"bits is {bits}; codes are stored in uint8, so use 1 to 8."
    if x.dtype != torch.float32:
        return f"x is {x.dtype}; convert it with x.float()."
    for name, value, dtype in (
        ("scale", scale, torch.float32),
        ("zero_point", zero_point, torch.int32),
    ):
        if value.dtype != dtype or value.numel() != 1 or value.device != x.device:
            return (
                f"{name} is {value.dtype}, shape {tuple(value.shape)}, on {value.device}; "
                f"it must be one {dtype} number on {x.device} (per-tensor quantization)."
            )
    return None

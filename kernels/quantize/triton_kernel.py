"""One pass over memory: read four bytes per element, write one."""

import triton
import triton.language as tl

# Adding and taking away 1.5 * 2**23 leaves a float32 no bits after the point, so the addition
# itself rounds, half to even. Exact below 2**22, hence the clamp before it.
ROUNDER: tl.constexpr = tl.constexpr(12582912.0)


@triton.jit
def quantize_affine_kernel(
    x_pointer,
    scale_pointer,
    zero_pointer,
    codes_pointer,
    count,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the codes of one block of `BLOCK` elements; `TOP` is the largest code."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_pointer + at, mask=inside, other=0.0)
    zero = tl.load(zero_pointer).to(tl.float32)
    # div_rn is the IEEE quotient; the plain `/` may be off by two units in the last place,
    # which would move values that lie near a rounding boundary.
    steps = tl.div_rn(x, tl.load(scale_pointer))
    steps = tl.where(steps == steps, steps, 0.0)
    steps = tl.minimum(tl.maximum(steps, -zero), TOP - zero)
    codes = (steps + ROUNDER) - ROUNDER + zero
    tl.store(codes_pointer + at, codes.to(tl.int32).to(tl.uint8), mask=inside)

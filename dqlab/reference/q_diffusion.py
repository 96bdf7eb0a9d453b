"""Q-Diffusion's formulas (Li et al., ICCV 2023, arXiv 2302.04304)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError

Quantize = Callable[[Tensor], Tensor]


def calibration_steps(S: int, m: int) -> list[int]:
    """Indices of m out of S sampler steps, every floor(S / m)-th from the first.

    S = 100, m = 20 gives 0, 5, ..., 95. Where m does not divide S the last ones are left out, so
    that there are always m.

    Raises:
        InvalidInputError: if m is not in 1..S.

    """
    if not 1 <= m <= S:
        raise InvalidInputError(
            f"{m} calibration steps asked of a sampler with {S} steps; choose 1 to {S}."
        )
    return [(S // m) * i for i in range(m)]


def split_product(
    X1: Tensor,
    X2: Tensor,
    W1: Tensor,
    W2: Tensor,
    b: Tensor | None,
    Q_X: tuple[Quantize, Quantize],
    Q_W: tuple[Quantize, Quantize],
) -> Tensor:
    """Q_X1(X1) Q_W1(W1) + Q_X2(X2) Q_W2(W2) + b, the split shortcut.

    `X1` [N, C1, H, W] and `X2` [N, C2, H, W]; `W1` [Co, C1, 1, 1] and `W2` [Co, C2, 1, 1].
    """
    parts = [
        torch.nn.functional.conv2d(q_x(x), q_w(w))
        for x, w, q_x, q_w in zip((X1, X2), (W1, W2), Q_X, Q_W, strict=True)
    ]
    total = parts[0] + parts[1]
    return total if b is None else total + b[:, None, None]


def split_gain_db(width: float, shared_width: float) -> float:
    """What a range of its own gains on one part, dB: 20 log10(shared width / its width).

    A uniform quantizer's noise is s^2 / 12 and its step s is proportional to the range.
    """
    return 20 * math.log10(shared_width / width)

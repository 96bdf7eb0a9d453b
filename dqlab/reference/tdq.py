"""TDQ's formulas (So et al., NeurIPS 2023, arXiv 2306.02316).

An activation's step size is a function of the timestep alone, s(t) = softplus(G(e(t))) > 0, with
a small network G on a sinusoidal encoding e. Shapes: x any; s broadcasts against x; t `[B]`;
b bits, Q = 2^(b-1) - 1.
"""

import torch
from torch import Tensor

SILU_MINIMUM = -0.27846454276107379
"""The lowest value of x sigmoid(x): where the grid of a SiLU output begins."""


def encoding(t: Tensor, d: int) -> Tensor:
    """e(t) = [cos(t w_0), .., sin(t w_0), ..], w_i = 10000^(-i / (d / 2)); `[B]` -> `[B, d]`."""
    half = d // 2
    omega = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angle = t.double()[:, None] * omega
    return torch.cat([angle.cos(), angle.sin()], 1)


def inverse_softplus(s: Tensor) -> Tensor:
    """Z with log(1 + e^z) = s, without overflow at large s or cancellation at small."""
    return s + (-torch.expm1(-s)).log()


def step_size(e: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """S = softplus(W_n ReLU(.. ReLU(W_1 e + b_1) ..) + b_n); weights `[out, in]`, result `[B]`."""
    h = e
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        h = torch.relu(h @ W.T + b)
    return torch.nn.functional.softplus(h @ weights[-1].T + biases[-1]).squeeze(1)


def quantize_signed(x: Tensor, s: Tensor, b: int) -> Tensor:
    """S round(clip(x / s, -Q, Q))."""
    Q = 2 ** (b - 1) - 1
    return s * (x / s).clamp(-Q, Q).round()


def quantize_silu(x: Tensor, s: Tensor, b: int) -> Tensor:
    """S round(clip((x - m) / s, 0, 2^b - 1)) + m, with m the lowest value of SiLU."""
    return s * ((x - SILU_MINIMUM) / s).clamp(0, 2**b - 1).round() + SILU_MINIMUM


def step_gradient(x: Tensor, s: Tensor, Q: int) -> Tensor:
    """D xhat / d s: round(x / s) - x / s inside, -Q or Q where x is clipped (LSQ)."""
    u = x / s
    return torch.where(u.abs() <= Q, u.round() - u, Q * u.sign())


def time_correlation(t: Tensor, A: Tensor) -> tuple[float, bool]:
    """Pearson's r of timesteps `[T]` and a range A(t) `[T]`, and whether A moves at all.

    A range that does not move has no correlation; its r is given as 0.
    """
    dt, dA = t.double() - t.double().mean(), A.double() - A.double().mean()
    norm = (dt.square().sum() * dA.square().sum()).sqrt()
    moves = bool(dA.abs().max() > 1e-12 * A.double().abs().max().clamp(min=1e-300))
    return (float((dt * dA).sum() / norm), True) if moves and norm > 0 else (0.0, False)


def normalized_error(x: Tensor, x_hat: Tensor, floor: float = 1e-12) -> Tensor:
    """Mean (x - xhat)^2 / (mean x^2 + floor) over the last dimension: one number per step."""
    return (x - x_hat).square().mean(-1) / (x.square().mean(-1) + floor)

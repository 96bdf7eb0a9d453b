"""AdaRound: learned rounding of weights (Nagel et al., ICML 2020, arXiv 2004.10568).

    h(alpha) = clip(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1)                    equation 23
    W_hat    = s (clip(floor(W / s) + h(alpha) + z, q_min, q_max) - z)              equation 22
    f_reg    = lambda sum (1 - |2 h(alpha) - 1|^beta)                               equation 24

with zeta = 1.1, gamma = -0.1. Training is over when every h is 0 or 1; the hard weight takes
1[alpha >= 0] in place of h.
"""

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """h(alpha) in [0, 1], elementwise; reaches both ends with zero slope beyond them."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def initial_alpha(W: Tensor, s: Tensor) -> Tensor:
    """The alpha with h(alpha) = W / s - floor(W / s), so that training starts at W itself.

    `W` any shape, `s` broadcasts against it.
    """
    r = W / s - (W / s).floor()
    return -torch.log((ZETA - GAMMA) / (r - GAMMA) - 1)


def soft_weight(
    W: Tensor, s: Tensor, z: Tensor, alpha: Tensor, q_min: float, q_max: float
) -> Tensor:
    """W_hat with soft rounding h(alpha); W itself at the initial alpha, unless clipped."""
    return _on_grid(W, s, z, rectified_sigmoid(alpha), q_min, q_max)


def hard_weight(
    W: Tensor, s: Tensor, z: Tensor, alpha: Tensor, q_min: float, q_max: float
) -> Tensor:
    """W_hat with rounding up where alpha >= 0 and down elsewhere."""
    return _on_grid(W, s, z, (alpha >= 0).to(W.dtype), q_min, q_max)


def _on_grid(W: Tensor, s: Tensor, z: Tensor, up: Tensor, q_min: float, q_max: float) -> Tensor:
    return s * (((W / s).floor() + up + z).clamp(q_min, q_max) - z)


def rounding_regularizer(h: Tensor, beta: float, lam: float = 0.01) -> Tensor:
    """f_reg, a scalar: 0 where every h is 0 or 1, lam * numel where every h is 1/2."""
    return lam * (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(
    k: int, K: int, warmup: float = 0.2, start: float = 20.0, end: float = 2.0
) -> float | None:
    """Beta at iteration k = 1..K, or None while the regulariser is off (k < warmup K).

    Falls linearly from `start` to `end` after the warm-up.
    """
    if k < warmup * K:
        return None
    return end + (start - end) * (1 - (k - warmup * K) / (K - warmup * K))

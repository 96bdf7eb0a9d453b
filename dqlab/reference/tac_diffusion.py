"""TAC-Diffusion's formulas (Yao et al., ECCV 2024, arXiv 2407.03917).

r is the full-precision and q the quantized prediction at one timestep. Per channel, over M
elements (samples and pixels), noise estimation reconstruction minimises

    L(K) = (1 - lambda1) mean (K q - r)^2
         + lambda1 mean m ((K q - r) / r)^2 + lambda2 (K - 1)^2

Shapes: r, q, m `[N, C, ...]`; K `[C]`; x `[N, C, H, W]`; a_t, a_p scalars, the cumulative alphas
of this and the next sampling step. The masked relative error is the paper's; the threshold of the
mask and the last term are reconstructions.
"""

import warnings

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError


def _rows(x: Tensor) -> Tensor:
    return x.double().transpose(0, 1).flatten(1)


def relative_mask(r: Tensor, tau: float = 1.0) -> Tensor:
    """Mask m, 1 where |r| > tau mean |r| of its channel; there the relative term is defined."""
    size = _rows(r).abs().mean(1)
    return r.abs() > tau * size.reshape(-1, *[1] * (r.ndim - 2)).to(r)


def reconstruction_loss(
    K: Tensor, q: Tensor, r: Tensor, m: Tensor, lambda1: float = 0.5, lambda2: float = 0.1
) -> Tensor:
    """L(K) per channel, `[C]`."""
    q, r, m = _rows(q), _rows(r), _rows(m)
    error = K[:, None] * q - r
    relative = torch.where(m > 0, error / torch.where(m > 0, r, 1.0), 0.0)
    mean = (1 - lambda1) * error.square().mean(1) + lambda1 * relative.square().mean(1)
    return mean + lambda2 * (K - 1) ** 2


def reconstruction_sums(q: Tensor, r: Tensor, m: Tensor) -> Tensor:
    """The five sums K is made of: q r, q^2, m q / r, m q^2 / r^2, count; `[5, C]`, float64.

    Sums of parts of a set add up to those of the set, if m is that of the set.
    """
    q, r, m = _rows(q), _rows(r), _rows(m)
    ratio = torch.where(m > 0, q / torch.where(m > 0, r, 1.0), 0.0)
    return torch.stack([q * r, q * q, ratio, ratio * ratio, torch.ones_like(q)]).sum(2)


def reconstruction_coefficient(sums: Tensor, lambda1: float = 0.5, lambda2: float = 0.1) -> Tensor:
    """The K `[C]` that minimises L, from `reconstruction_sums`; 1, with a warning, if any does.

    Raises:
        InvalidInputError: for a weight of the relative term outside [0, 1] or a negative lambda2.

    """
    if not 0 <= lambda1 <= 1 or lambda2 < 0:
        raise InvalidInputError(
            f"lambda1={lambda1}, lambda2={lambda2}; choose lambda1 in [0, 1] and lambda2 >= 0."
        )
    qr, qq, ratio, squared, M = sums
    above = (1 - lambda1) * qr + lambda1 * ratio + lambda2 * M
    below = (1 - lambda1) * qq + lambda1 * squared + lambda2 * M
    if bool((below == 0).any()):
        warnings.warn(
            "Nothing decides a reconstruction coefficient: the quantized prediction is 0, or "
            "lambda1 = 1 with an empty mask. It stays 1.",
            stacklevel=2,
        )
    return torch.where(below == 0, 1.0, above / torch.where(below == 0, 1.0, below))


def input_bias(xq: Tensor, x: Tensor, granularity: str = "element") -> Tensor:
    """B = mean over samples of xq - x; `[C, H, W]`, or `[C, 1, 1]` for "channel"."""
    mean = (xq - x).mean(0)
    if granularity == "element":
        return mean
    return mean.mean(tuple(range(1, mean.ndim)), keepdim=True)


def ddim_coefficients(a_t: Tensor, a_p: Tensor) -> tuple[Tensor, Tensor]:
    """(A, C) of the deterministic DDIM step x_p = A x_t + C e; C is negative."""
    A = (a_p / a_t).sqrt()
    return A, (1 - a_p).sqrt() - (a_p * (1 - a_t) / a_t).sqrt()


def propagated(n: Tensor, alphas: Tensor) -> Tensor:
    """Deviation of the final sample for prediction errors n `[T, ...]`, if x itself reacts not.

    d_p = A_t d_t + C_t n_t from d = 0 on, without clipping of x_0. `alphas` `[T + 1]` are the
    cumulative alphas of the visited steps in sampling order, the final one included.
    """
    d = torch.zeros_like(n[0])
    for n_t, a_t, a_p in zip(n, alphas[:-1], alphas[1:], strict=True):
        A, C = ddim_coefficients(a_t, a_p)
        d = A * d + C * n_t
    return d

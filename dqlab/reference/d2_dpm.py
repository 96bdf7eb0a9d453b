"""D2-DPM's formulas (Zeng et al., AAAI 2025, arXiv 2501.08180).

At every timestep the quantized prediction Eq and its error D = Eq - E are taken to be jointly
normal, each element on its own:

    (Eq, D) ~ N((mu_q, mu_D), [[v_qq, v_qD], [v_qD, v_DD]])

Shapes: Eq, D `[B, C, ...]`; the statistics are scalars or, per channel, `[C]`; a_t, a_p, sigma_t
scalars. a_t and a_p are the cumulative alphas of this and the next sampling step.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Joint(NamedTuple):
    """The five numbers of one timestep, each a scalar or `[C]`."""

    mu_q: Tensor
    mu_D: Tensor
    v_qq: Tensor
    v_qD: Tensor
    v_DD: Tensor


def kept(D: Tensor, trim: float = 4.0) -> Tensor:
    """Which pairs count: |D - mean D| <= trim std(D), over all elements, once (released code).

    A D without variance is kept whole.
    """
    d = D.double()
    return (d - d.mean()).abs() <= trim * d.std(correction=0)


def joint(Eq: Tensor, D: Tensor, keep: Tensor | None = None) -> Joint:
    """Means and sample covariance (n - 1) of the pairs in the last dimension.

    Args:
        Eq: `[n]` for one joint law, `[C, n]` for one per channel.
        D: like Eq.
        keep: which of them count; default all.

    """
    w = torch.ones_like(Eq, dtype=torch.float64) if keep is None else keep.double()
    n = w.sum(-1)
    mu_q, mu_D = (w * Eq).sum(-1) / n, (w * D).sum(-1) / n
    q, d = w * (Eq.double() - mu_q[..., None]), w * (D.double() - mu_D[..., None])
    v_qq, v_qD, v_DD = ((a * b).sum(-1) / (n - 1) for a, b in ((q, q), (q, d), (d, d)))
    return Joint(mu_q, mu_D, v_qq, v_qD, v_DD)


def slope(v_qq: Tensor, v_qD: Tensor) -> Tensor:
    """B = v_qD / v_qq: how much of the prediction is error."""
    return v_qD / v_qq


def conditional_mean(Eq: Tensor, mu_q: Tensor, mu_D: Tensor, b: Tensor) -> Tensor:
    """mu_c = mu_D + b (Eq - mu_q); statistics shaped to broadcast against Eq."""
    return mu_D + b * (Eq - mu_q)


def conditional_variance(v_qq: Tensor, v_qD: Tensor, v_DD: Tensor) -> Tensor:
    """v_c = v_DD - v_qD^2 / v_qq = v_DD (1 - rho^2), never below 0."""
    return (v_DD - v_qD.square() / v_qq).clamp(min=0)


def ddim_weight(
    a_t: Tensor, a_p: Tensor, sigma_t: Tensor, clipped: Tensor | None = None
) -> Tensor:
    """K = sqrt(1 - a_p - sigma^2) - sqrt(a_p (1 - a_t) / a_t): D's weight in the next sample.

    Where the sampler cuts x_0 (`clipped`, of every element) the second root is 0. (The paper's
    models do not clip.)
    """
    direction = (1 - a_p - sigma_t**2).clamp(min=0).sqrt()
    by_x0 = (a_p * (1 - a_t) / a_t).sqrt()
    return direction - (by_x0 if clipped is None else torch.where(clipped, 0.0, by_x0))


def ddim_sigma(
    a_t: Tensor, a_p: Tensor, sigma_t: Tensor, v_c: Tensor, clipped: Tensor | None = None
) -> Tensor:
    """Sigma' = sqrt(max(sigma^2 - k^2 v_c, 0)), shaped like v_c (deterministic form)."""
    taken = ddim_weight(a_t, a_p, sigma_t, clipped) ** 2 * v_c
    return (sigma_t**2 - taken).clamp(min=0).sqrt()


def slope_with_correlated_error(k: Tensor, s2_E: Tensor, s2: Tensor) -> Tensor:
    """B for D = k E + D', with variances s2_E of E and s2 of D'; above PTQD's k / (1 + k)."""
    return (k * (1 + k) * s2_E + s2) / ((1 + k) ** 2 * s2_E + s2)

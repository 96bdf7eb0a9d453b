"""PTQD's formulas (He et al., NeurIPS 2023, arXiv 2305.10657).

The error of the quantized prediction, D = eps_q - eps, is split at every timestep into a part
that follows eps and a residual:

    D = k eps + D',   D' ~ N(mu, s2)

Shapes: eps, eps_q, D `[B, C, H, W]` (any rank >= 2 with channels second); a_t, a_p, sigma_t, k_t
and s2_t scalars; mu_t `[C]`. a_t and a_p are the cumulative alphas of this and the next sampling
step.
"""

import torch
from torch import Tensor


def correlation_slope(D: Tensor, eps: Tensor, clip: bool = True) -> Tensor:
    """K = Cov(D, eps) / Var(eps) over all elements; not below 0 if `clip` (section 3.2).

    A constant eps has no slope: 0.
    """
    d, e = D.double() - D.double().mean(), eps.double() - eps.double().mean()
    power = e.square().mean()
    k_t = torch.where(power > 0, (d * e).mean() / power, 0.0)
    return k_t.clamp(min=0) if clip else k_t


def residual_statistics(D: Tensor, eps: Tensor, k_t: Tensor) -> tuple[Tensor, Tensor]:
    """Bias mu `[C]` and pooled variance s2 of D' = D - k eps (section 3.2)."""
    residual = (D.double() - k_t * eps.double()).transpose(0, 1).flatten(1)
    mu_t = residual.mean(1)
    return mu_t, (residual - mu_t[:, None]).square().mean()


def corrected_prediction(eps_q: Tensor, k_t: Tensor, mu_t: Tensor) -> Tensor:
    """(eps_q - mu) / (1 + k): correlated noise and bias correction (equations 7 and 8)."""
    return (eps_q - mu_t.reshape(-1, *[1] * (eps_q.ndim - 2))) / (1 + k_t)


def ddim_weight(
    a_t: Tensor, a_p: Tensor, sigma_t: Tensor, k_t: Tensor, clipped: Tensor | None = None
) -> Tensor:
    """Lambda: how strongly the residual D' enters the next sample of a DDIM step.

    `clipped` says of every element whether the sampler cuts its x_0. There the residual enters by
    the direction term alone. (The paper's models do not clip.)
    """
    direction = (1 - a_p - sigma_t**2).clamp(min=0).sqrt()
    by_x0 = (a_p * (1 - a_t) / a_t).sqrt()
    if clipped is not None:
        by_x0 = torch.where(clipped, 0.0, by_x0)
    return (direction - by_x0) / (1 + k_t)


def ddim_sigma(
    a_t: Tensor,
    a_p: Tensor,
    sigma_t: Tensor,
    k_t: Tensor,
    s2_t: Tensor,
    clipped: Tensor | None = None,
) -> Tensor:
    """Sigma' = sqrt(max(sigma^2 - lambda^2 s2, 0)): variance schedule calibration for DDIM."""
    if not sigma_t > 0:
        return sigma_t
    share = ddim_weight(a_t, a_p, sigma_t, k_t, clipped) ** 2 * s2_t / sigma_t**2
    return sigma_t * (1 - share).clamp(min=0).sqrt()


def ddpm_sigma(
    beta_t: Tensor, alpha_t: Tensor, a_t: Tensor, sigma_t: Tensor, k_t: Tensor, s2_t: Tensor
) -> Tensor:
    """Sigma' of an ancestral step: sigma^2 less beta^2 s2 / (alpha (1 - a) (1 + k)^2)."""
    taken = beta_t**2 * s2_t / (alpha_t * (1 - a_t) * (1 + k_t) ** 2)
    return (sigma_t**2 - taken).clamp(min=0).sqrt()


def snr_quantized(eps: Tensor, D: Tensor) -> Tensor:
    """SNR^Q = |eps|_2 / |D|_2, a ratio of norms (section 3.3)."""
    return eps.double().norm() / D.double().norm()


def snr_forward(a_t: Tensor) -> Tensor:
    """SNR^F = a / (1 - a) of the forward process."""
    return a_t / (1 - a_t)


def step_aware_bits(snr_q: dict[int, Tensor], snr_f: Tensor) -> list[int]:
    """For every step the smallest bit-width whose SNR^Q exceeds SNR^F, or else the largest.

    `snr_q` maps bits to `[T]`; `snr_f` is `[T]`.
    """
    ordered = sorted(snr_q)
    return [
        next((b for b in ordered if snr_q[b][step] > snr_f[step]), ordered[-1])
        for step in range(len(snr_f))
    ]

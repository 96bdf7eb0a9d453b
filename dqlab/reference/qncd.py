"""QNCD's formulas (Chu et al., ACM MM 2024, arXiv 2403.19140).

Intra noise: smoothing factors S `[C]` from a block's projected timestep embeddings alone, over T
timesteps (and conditions): emb `[T, C]`, or scale `[T, C]` where the embedding scales. gamma
`[C]` is the weight of the block's second GroupNorm.

Inter noise: a_t, a_p are the cumulative alphas of this and the next sampling step; x, e, z1
`[B, C, H, W]`; m is one number.
"""

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError


def smoothing_scale_shift(scale: Tensor) -> Tensor:
    """S = mean_t |1 + scale_t|, where u = SiLU((gamma GN(h) + beta)(1 + scale_t) + shift_t)."""
    return (1 + scale).abs().mean(0)


def smoothing_additive(emb: Tensor, gamma: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """S = mean_t |gamma (emb_t - mu_g) / sigma_g|, where u = SiLU(gamma GN(h + emb_t) + beta).

    mu_g and sigma_g are over the channels of the GroupNorm group, with the norm's eps.
    """
    return (gamma * _normalized(emb, groups, eps)).abs().mean(0)


def smoothing_additive_code(emb: Tensor, gamma: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """The released code's: gamma max(mean_t max((emb_t - mu_g) / sigma_g, 1), 1).

    With |gamma|, because the code's sign would turn channels over.
    """
    return gamma.abs() * _normalized(emb, groups, eps).clamp(min=1).mean(0).clamp(min=1)


def _normalized(emb: Tensor, groups: int, eps: float) -> Tensor:
    return torch.nn.functional.group_norm(emb[:, :, None, None], groups, eps=eps)[:, :, 0, 0]


def fires(i: int, steps: int, interval: int = 10, offset: int | None = None) -> bool:
    """Whether step i (0 is the noisiest) estimates: i mod I == offset, and it is not the last.

    By default as in the released code, where n = i + 1 steps done and (n - 2) mod I == I // 2.
    """
    if interval < 1:
        raise InvalidInputError(f"interval={interval}; estimate every 1 or more steps.")
    offset = (interval // 2 + 1) % interval if offset is None else offset
    return i % interval == offset and i < steps - 1


def renoise(x: Tensor, a_t: Tensor, a_p: Tensor, z1: Tensor) -> Tensor:
    """A sample of the next step back at this one: sqrt(a_t / a_p) x + sqrt(1 - a_t / a_p) z1.

    Raises:
        InvalidInputError: if the next step is noisier than this one.

    """
    if a_p < a_t:
        raise InvalidInputError(
            f"The next step's cumulative alpha {float(a_p):.4g} is below this step's "
            f"{float(a_t):.4g}: timesteps must go from noise to image."
        )
    return (a_t / a_p).sqrt() * x + (1 - a_t / a_p).sqrt() * z1


def composite_noise(e: Tensor, a_t: Tensor, a_p: Tensor, z1: Tensor) -> Tensor:
    """The noise that `renoise` leaves relative to x_0: what an ideal network would answer.

    [sqrt(a_t (1 - a_p) / a_p) e + sqrt(1 - a_t / a_p) z1] / sqrt(1 - a_t), for x with noise e.
    """
    kept = (a_t * (1 - a_p) / a_p).sqrt() * e
    return (kept + (1 - a_t / a_p).sqrt() * z1) / (1 - a_t).sqrt()


def estimated_bias(eps_hat: Tensor, z1: Tensor) -> Tensor:
    """M = mean(eps_hat - z1) over all elements."""
    return (eps_hat.double() - z1.double()).mean()

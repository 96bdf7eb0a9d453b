"""PTQ4DM's formulas (Shang et al., CVPR 2023, arXiv 2211.15736, section 3.3).

Which time steps to calibrate on, with index t = 0 for the cleanest of T sampler steps:

    t_i ~ N(mu T, (sigma T)^2),  mu <= 1/2,  then floor, then clamped to [0, T - 1]

Nothing is truncated: what falls outside gathers at both ends. The paper writes T/2 for the spread
and sqrt(T/2) beside it; mu = sigma = 0.4 are the values of its published script.
"""

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError


def time_steps(
    N: int, T: int, mu: float = 0.4, sigma: float = 0.4, generator: torch.Generator | None = None
) -> Tensor:
    """Draw t `[N]`, int64 in [0, T - 1], 0 the cleanest step.

    Args:
        N: calibration samples.
        T: sampler steps.
        mu: mean in units of T.
        sigma: standard deviation in units of T.
        generator: draws them; None takes torch's own.

    Raises:
        InvalidInputError: for N or T below 1, mu outside [0, 1] or a negative sigma.

    """
    _check(mu, sigma, T)
    if N < 1:
        raise InvalidInputError(f"{N} calibration samples asked for; at least 1 is needed.")
    drawn = (mu + sigma * torch.randn(N, dtype=torch.float64, generator=generator)) * T
    return drawn.floor().clamp(0, T - 1).long()


def time_shares(T: int, mu: float = 0.4, sigma: float = 0.4) -> Tensor:
    """Probability of every t `[T]`, float64: what `time_steps` draws from.

    With Phi the standard normal's distribution function and e_t = (t / T - mu) / sigma:
    Phi(e_{t+1}) - Phi(e_t), and all of both tails at t = 0 and T - 1.

    Raises:
        InvalidInputError: as `time_steps`.

    """
    _check(mu, sigma, T)
    if sigma == 0:
        return torch.eye(T, dtype=torch.float64)[min(int(mu * T), T - 1)]
    inner = torch.arange(1, T, dtype=torch.float64) / T
    below = torch.special.ndtr((inner - mu) / sigma)
    ends = below.new_tensor([0.0]), below.new_tensor([1.0])
    return torch.cat([ends[0], below, ends[1]]).diff()


def _check(mu: float, sigma: float, T: int) -> None:
    if not 0 <= mu <= 1:
        raise InvalidInputError(f"mu is {mu}; the mean step is a share of T, from 0 to 1.")
    if not sigma >= 0:
        raise InvalidInputError(f"sigma is {sigma}; a spread is >= 0.")
    if T < 1:
        raise InvalidInputError(f"T is {T}; a sampler has at least 1 step.")

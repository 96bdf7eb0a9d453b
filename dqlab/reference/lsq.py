"""LSQ: gradient of the step size (Esser et al., ICLR 2020, arXiv 1902.08153).

x_hat = s (clip(round(x / s) + z, q_min, q_max) - z)

d x_hat / d s = round(x / s) - x / s   inside,   q_min - z below,   q_max - z above  (eq. 3)
g = 1 / sqrt(N q_max)                                                          (section 2.2)
"""

import math

import torch
from torch import Tensor


def step_gradient(x: Tensor, s: Tensor, z: Tensor, q_min: float, q_max: float) -> Tensor:
    """Slope d x_hat / d s for every element of x, same shape; s and z broadcast against it."""
    u = x / s
    inside = u.round() - u
    return torch.where(u < q_min - z, q_min - z, torch.where(u > q_max - z, q_max - z, inside))


def gradient_scale(N: int, q_max: float) -> float:
    """g: keeps a step's update in proportion to its size, N elements sharing the step."""
    return 1 / math.sqrt(N * q_max)

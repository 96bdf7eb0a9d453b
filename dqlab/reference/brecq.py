"""BRECQ: losses of block reconstruction (Li et al., ICLR 2021, arXiv 2102.05426).

    L_rec  = mean over all dimensions but 1 of sum over dimension 1 of |z_hat - z|^p
    fisher = the same with p = 2, every term weighted by g^2, g = dL / dz at the block's output

The squared gradient stands for the Hessian's diagonal (equation 10 there).
"""

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError


def block_loss(z_hat: Tensor, z: Tensor, p: float = 2.0) -> Tensor:
    """L_rec of two outputs `[N, C, ...]`, a scalar; single precision at least."""
    gap = z_hat - z
    gap = gap.to(torch.promote_types(gap.dtype, torch.float32))
    error = gap.square() if p == 2 else gap.abs().pow(p)
    return error.sum(1).mean()


def fisher_diagonal(z_hat: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """Squared error weighted by g^2, all `[N, C, ...]`; g = 1 gives `block_loss`."""
    return ((z_hat - z).square() * g.square()).sum(1).mean()


def fisher_full(z_hat: Tensor, z: Tensor, g: Tensor) -> Tensor:
    """1/100 mean of (sum_chw a |g|) a |g| with a = |z_hat - z|, all `[N, C, H, W]`.

    Raises:
        InvalidInputError: for tensors that are not 4-dimensional.

    """
    if z.ndim != 4:
        raise InvalidInputError(
            f"fisher_full is defined for [N, C, H, W] outputs, got {z.ndim} dimensions; use "
            "fisher_diagonal."
        )
    a = (z_hat - z).abs() * g.abs()
    return (a.sum((1, 2, 3), keepdim=True) * a).mean() / 100


def damped(g: Tensor) -> Tensor:
    """|g| + 1, the gradient as the authors' code uses it: no element loses all its weight."""
    return g.abs() + 1

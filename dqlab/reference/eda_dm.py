"""EDA-DM's formulas (Liu et al., arXiv 2401.04585).

Which steps to calibrate on, from mid-block features F [T, B, C, ...] of T sampler steps:

    D_i = #{j != i : mean (F_i - F_j)^2 <= r}                          density
    V_i = sum over j != i, rows and pixels of 1 - cos_C(F_i, F_j)      variety
    S_i = norm(D)_i + lambda norm(V)_i                                 norm: min-max over i
    n_i = round(N S_i / sum S), then made to sum to N

and the loss of fine-grained block reconstruction, block output plus weighted layer outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.reference.brecq import block_loss


def pairwise_mse(F: Tensor) -> Tensor:
    """Mean squared difference of every pair of steps, `[T, T]`, float64."""
    flat = F.flatten(1).double()
    return torch.stack([(flat - row).square().mean(1) for row in flat])


def density(F: Tensor, r: float) -> Tensor:
    """D `[T]`: how many other steps lie within mean squared distance r.

    Raises:
        InvalidInputError: for a negative r.

    """
    if r < 0:
        raise InvalidInputError(f"The density radius r is {r}; it is a squared distance, >= 0.")
    return (pairwise_mse(F) <= r).sum(1) - 1


def variety(F: Tensor, eps: float = 1e-6) -> Tensor:
    """V `[T]`, cosine along dimension 2 (channels), summed over rows, pixels and other steps."""
    norm = F.norm(dim=2, keepdim=True).clamp(min=eps)
    flat = (F / norm).flatten(1).double()
    pixels = F[0].numel() // F.shape[2]
    return (pixels - flat @ flat.T).fill_diagonal_(0).sum(1)


def min_max_normalized(v: Tensor) -> Tensor:
    """To [0, 1] over all entries; a constant vector, such as of rounding noise, becomes zeros."""
    v = v.double()
    spread = v.max() - v.min()
    if spread <= 1e-9 * v.abs().max():
        return torch.zeros_like(v)
    return (v - v.min()) / spread


def score(D: Tensor, V: Tensor, lam: float) -> Tensor:
    """S `[T]`; all ones where neither density nor variety tells steps apart.

    Raises:
        InvalidInputError: for a negative lambda.

    """
    if lam < 0:
        raise InvalidInputError(f"lambda is {lam}; the weight of variety must be >= 0.")
    S = min_max_normalized(D) + lam * min_max_normalized(V)
    return S if S.sum() > 0 else torch.ones_like(S)


def allocate(S: Tensor, N: int) -> list[int]:
    """Counts n `[T]`: N samples shared out in proportion to S, always summing to N, none negative.

    Rounds half to even. Missing samples go to the steps with the most, in that order; samples
    too many are taken from the last (cleanest) step backwards.

    Raises:
        InvalidInputError: for N below 1.

    """
    if N < 1:
        raise InvalidInputError(f"{N} calibration samples asked for; at least 1 is needed.")
    n = (N * S.double() / S.double().sum()).round().long()
    most = n.argsort(descending=True, stable=True).tolist()
    last = list(reversed(range(len(n))))
    while (missing := N - int(n.sum())) != 0:
        order = most[:missing] if missing > 0 else [i for i in last if n[i] > 0][:-missing]
        n[order] += 1 if missing > 0 else -1
    return n.tolist()


def fine_grained_loss(
    z_hat: Tensor,
    z: Tensor,
    y_hat: Sequence[Tensor],
    y: Sequence[Tensor],
    lam_m: float,
    p: float = 2.0,
) -> Tensor:
    """L = l(z_hat, z) + lam_m sum over inner layers of l(y_hat_l, y_l), l = `block_loss`.

    `z` is the block's output, `y` the outputs of the layers inside it, full precision.
    """
    block = block_loss(z_hat, z, p)
    if not lam_m:
        return block
    return block + lam_m * sum(block_loss(a, b, p) for a, b in zip(y_hat, y, strict=True))

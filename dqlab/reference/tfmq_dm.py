"""TFMQ-DM's formulas (Huang et al., CVPR 2024, arXiv 2311.16503).

I `[T, d]` sinusoidal embeddings of T steps; h(t) `[T, D]`; temporal features emb_i `[T, C_i]` of
residual block i, E one of them in full precision and E_hat the quantized one; b bits.

`relative_error` and `cache_is_better` stand for the selection of the journal version (arXiv
2407.19547), whose formulas were not at hand: they are reconstructions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.reference.brecq import block_loss

Layer = tuple[Tensor, Tensor]
"""Weight `[out, in]` and bias `[out]`."""


def temporal_features(
    I: Tensor,  # noqa: E741
    L1: Layer,
    L2: Layer,
    projections: Sequence[Layer],
) -> list[Tensor]:
    """emb_i = g_i(h(t)) = W_i SiLU(h(t)) + b_i with h(t) = L2 SiLU(L1 I(t)); `[T, C_i]` each."""
    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
    h = linear(silu(linear(I, *L1)), *L2)
    return [linear(silu(h), *g) for g in projections]


def tiar_loss(features: Sequence[Tensor], features_hat: Sequence[Tensor]) -> Tensor:
    """L_TIAR = sum_i ||g_i(h(t)) - g_i_hat(h_hat(t))||_F^2, mean over steps; a scalar."""
    pairs = zip(features_hat, features, strict=True)
    return sum(block_loss(e_hat, e) for e_hat, e in pairs)


def finite_set_ranges(low: Tensor, high: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """FSC: scale s_t and zero point z_t `[T]` of every step from its own lowest and highest value.

    s_t = (max(x_t, 0) - min(x_t, 0)) / (2^b - 1),  z_t = round(-min(x_t, 0) / s_t)
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    s = ((high - low) / (2**b - 1)).clamp(min=1e-8)
    return s, (-low / s).round().clamp(0, 2**b - 1) + 0.0


def quantize(x: Tensor, s: Tensor, z: Tensor, b: int) -> Tensor:
    """S (clip(round(x / s) + z, 0, 2^b - 1) - z); s and z broadcast against x."""
    return s * (((x / s).round() + z).clamp(0, 2**b - 1) - z)


def cosine(E: Tensor, E_hat: Tensor) -> Tensor:
    """Cosine along the last dimension; 1 where both vectors are zero, 0 where one of them is."""
    a, b = E.double(), E_hat.double()
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    both = (a.norm(dim=-1) == 0) & (b.norm(dim=-1) == 0)
    found = (a * b).sum(-1) / torch.where(norms == 0, 1.0, norms)
    return torch.where(both, 1.0, found)


def perceived_step(E: Tensor, E_hat: Tensor) -> Tensor:
    """t* = argmax_t' cos(emb_t', emb_hat_t) for every row of E_hat `[R, C]`; int64 `[R]`.

    E `[T, C]` holds the full-precision features of all candidates t'. Among equals the first.

    Raises:
        InvalidInputError: if the two have different widths.

    """
    if E.ndim != 2 or E_hat.ndim != 2 or E.shape[1] != E_hat.shape[1]:
        raise InvalidInputError(
            f"Features of one block are [steps, channels]; got {tuple(E.shape)} and "
            f"{tuple(E_hat.shape)}."
        )
    return cosine(E[None], E_hat[:, None]).argmax(1)


def relative_error(E: Tensor, E_hat: Tensor) -> Tensor:
    """epsilon_t = ||emb - emb_hat||^2 / ||emb||^2 per step, `[T]`."""
    tiny = torch.finfo(torch.float64).tiny
    E, E_hat = E.double(), E_hat.double()
    return (E - E_hat).square().sum(-1) / E.square().sum(-1).clamp(min=tiny)


def cache_is_better(E: Tensor, E_hat: Tensor, E_cached: Tensor) -> Tensor:
    """Steps `[T]` at which the cached feature has the smaller relative error (the journal)."""
    return relative_error(E, E_cached) < relative_error(E, E_hat)

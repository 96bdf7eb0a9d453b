"""QVD's parts (Tian et al., ACM MM 2024, arXiv 2407.11585), largely reconstructed.

The paper's text was not at hand. `log2_quantize` follows a public port of its code. `td_score`,
`logtau_quantize` and the channel rewrite (SCRI) are dqlab's own reconstructions of what the
abstract and summaries describe; the measures of coverage and discriminability are too.

u `[T, D]`: temporal features of T steps, M their largest magnitude; X `[N, C, ...]` (or `[..., C]`
of a linear layer), W `[O, C / groups, ...]` and b `[O]`; low, high `[C]` channel ranges.
"""

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError

FLOOR = 1e-4
"""Of SCRI's scales."""


def skewness(u: Tensor) -> Tensor:
    """mean(((u - mean) / std)^3) over all elements; 0 for a constant tensor."""
    u = u.double()
    std = u.std(correction=0)
    return ((u - u.mean()) / std.clamp(min=1e-12)).pow(3).mean()


def log2_quantize(u: Tensor, M: float, b: int) -> Tensor:
    """sign(u) M 2^rho with rho the exponent of |u| / M, rounded at 1.5 2^e; 0 if -rho >= 2^b.

    The sign is extra to the b exponent bits.
    """
    y = u.abs().double() / _largest(M)
    e = y.clamp(min=1e-300).log2().floor()
    q = -(e + (y >= 1.5 * torch.exp2(e)))
    found = u.sign() * torch.exp2(-q.clamp(0, 2**b - 1)) * M
    return torch.where((q >= 2**b) | (u == 0), 0.0, found).to(u.dtype)


def logtau_quantize(u: Tensor, M: float, b: int, octaves: float) -> Tensor:
    """sign(u) M 2^(-q / tau), q = round(-tau log2(|u| / M)), 0 if q > m - 1.

    m = 2^(b-1) - 1 magnitudes and tau = (m - 1) / octaves levels to an octave; b >= 3.
    """
    m = 2 ** (b - 1) - 1
    tau = (m - 1) / octaves
    y = u.abs().double().clamp(max=M) / _largest(M)
    q = (-tau * y.log2()).round()
    return torch.where(q > m - 1, 0.0, u.sign() * M * torch.exp2(-q / tau)).to(u.dtype)


def _largest(M: float) -> float:
    if not 0 < M < float("inf"):
        raise InvalidInputError(
            f"M={M}: the largest magnitude of the features must be positive and finite. Features "
            "that are all zero need no quantizer."
        )
    return float(M)


def discriminability(u: Tensor, of: Tensor | None = None) -> Tensor:
    """D_tt' = 1 - cos between steps, `[T, T]`, after standardising each channel over the steps.

    Mean and standard deviation are those of `u`; `of` are the features compared, u itself by
    default. Small channels so count as much as large ones. Two zero vectors are alike.
    """
    u = u.double()
    mean, std = u.mean(0), u.std(0, correction=0)
    scaled = ((u if of is None else of.double()) - mean) / std.clamp(min=1e-12)
    norm = scaled.norm(dim=1)
    product = norm[:, None] * norm[None]
    zero = (norm[:, None] == 0) & (norm[None] == 0)
    cos = scaled @ scaled.T / torch.where(product == 0, 1.0, product)
    return 1 - torch.where(zero, 1.0, cos)


def td_score(u: Tensor, u_hat: Tensor) -> Tensor:
    """TDScore = 1 - sum_{t != t'} |D_hat - D| / sum_{t != t'} D: 1 if all relations are kept.

    Raises:
        InvalidInputError: for fewer than two steps, or features that do not change over steps.

    """
    if len(u) < 2:
        raise InvalidInputError("A TDScore compares steps; give features of at least two.")
    other = ~torch.eye(len(u), dtype=torch.bool)
    D, D_hat = discriminability(u)[other], discriminability(u, u_hat)[other]
    total = D.sum()
    if not float(total) > 0:
        raise InvalidInputError("The features are the same at all steps; there is no TDScore.")
    return 1 - (D_hat - D).abs().sum() / total


def distinct_codes(u_hat: Tensor) -> Tensor:
    """How many different values each channel takes over the steps, int64 `[D]`."""
    ordered = u_hat.sort(dim=0).values
    return (ordered.diff(dim=0) != 0).sum(0) + 1


def distinct_code_ratio(u_hat: Tensor) -> Tensor:
    """Mean over channels of (distinct values - 1) / (T - 1)."""
    return (distinct_codes(u_hat).double() - 1).mean() / (len(u_hat) - 1)


def identification_margin(u: Tensor, u_hat: Tensor) -> Tensor:
    """Mean over steps of (d_other - d_own) / d_other; 1 if exact, below 0 if taken for another.

    d are distances from a step's quantized features to its own full-precision ones and to the
    nearest other step's, channels standardised as in `discriminability`.
    """
    std = u.double().std(0, correction=0).clamp(min=1e-12)
    d = torch.cdist(u_hat.double() / std, u.double() / std)
    own = d.diagonal()
    other = d.masked_fill(torch.eye(len(u), dtype=torch.bool), torch.inf).amin(1)
    return ((other - own) / other.clamp(min=1e-12)).mean()


def coverage(low: Tensor, high: Tensor) -> Tensor:
    """kappa_c = (high_c - low_c) / (max high - min low): the share of levels a channel reaches."""
    return (high - low) / (high.max() - low.min()).clamp(min=1e-12)


def asymmetry(low: Tensor, high: Tensor) -> Tensor:
    """|high_c + low_c| / (high_c - low_c) per channel: how far its centre lies from zero."""
    return (high + low).abs() / (high - low).clamp(min=1e-12)


def scri_factors(low: Tensor, high: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Shift delta and scale sigma `[C]` that bring scattered channel ranges onto one.

    delta_c = (high_c + low_c) / 2,  a_c = (high_c - low_c) / 2,  sigma_c = (a_c / max a)^alpha

    sigma is at least 1e-4. alpha = 1 gives every channel the same range, 0 only centres it.

    Raises:
        InvalidInputError: unless 0 <= alpha <= 1 and the ranges are finite.

    """
    if not 0 <= alpha <= 1:
        raise InvalidInputError(f"alpha={alpha}; choose 0 (shift only) to 1 (equal ranges).")
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise InvalidInputError("Channel ranges hold NaN or infinity; check the calibration set.")
    a = (high - low) / 2
    widest = a.max()
    share = a / widest if float(widest) > 0 else torch.ones_like(a)
    return (high + low) / 2, share.pow(alpha).clamp(min=FLOOR)


def scri_weight(
    W: Tensor, b: Tensor | None, delta: Tensor, sigma: Tensor, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """W' = W diag(sigma) and b' = b + sum_k W_k delta, over kernel positions k.

    Of a grouped convolution each output sees the channels of its own group.
    """
    rest = [1] * (W.ndim - 2)
    group = torch.arange(groups).repeat_interleave(len(W) // groups)
    delta, sigma = (v.reshape(groups, -1)[group] for v in (delta, sigma))  # [O, C / groups]
    moved = (W.flatten(2).sum(2) if rest else W) * delta
    bias = moved.sum(1) if b is None else b + moved.sum(1)
    return W * sigma.reshape(*sigma.shape, *rest), bias


def scri_input(X: Tensor, delta: Tensor, sigma: Tensor, padding: int = 0) -> Tensor:
    """X' = (X - delta) / sigma by channel; zeros are padded first, so -delta / sigma borders it.

    `padding` is on every side of all dimensions but the first two. A linear layer's channels are
    the last dimension: move it to the second, or pass two-dimensional X.
    """
    spatial = X.ndim - 2
    X = torch.nn.functional.pad(X, [padding] * (2 * spatial))
    delta, sigma = (v.reshape(-1, *[1] * spatial) for v in (delta, sigma))
    return (X - delta) / sigma

"""Softmax bias correction (Pandey et al., ICCV workshop 2023, arXiv 2309.01729).

P `[..., Nq, N]` is a softmax output, Pq what a quantizer of b bits and step s makes of it, V
`[..., N, d]`. With many keys most probabilities lie below s / 2 and become 0, so rows of Pq do not
sum to 1. The paper adds a constant beta to Pq; how it is computed follows from rows of P summing
to 1. No code was published.
"""

import torch
from torch import Tensor


def quantize(P: Tensor, s: Tensor | float, b: int) -> Tensor:
    """Pq = s clip(round(P / s), 0, 2^b - 1); s = 1 / (2^b - 1) covers [0, 1]."""
    return s * (P / s).round().clamp(0, 2**b - 1)


def bias(P: Tensor, Pq: Tensor) -> Tensor:
    """Beta = E[P - Pq] over all elements."""
    return (P - Pq).mean()


def lost_mass(Pq: Tensor) -> Tensor:
    """Delta = 1 - E[sum_j Pq_j], what rounding takes from a row; negative if it adds."""
    return 1 - Pq.sum(-1).mean()


def bias_of_row_sums(Pq: Tensor) -> Tensor:
    """Beta = delta / N: the same as `bias`, from row sums alone."""
    return lost_mass(Pq) / Pq.shape[-1]


def corrected(Pq: Tensor, delta: Tensor, visible: Tensor | None = None) -> Tensor:
    """Pq + delta / N on the keys a row sees, N of them; masked keys stay 0."""
    if visible is None:
        visible = torch.ones_like(Pq, dtype=torch.bool)
    return Pq + visible * delta / visible.sum(-1, keepdim=True).clamp(min=1)


def corrected_attention(Pq: Tensor, V: Tensor, beta: Tensor) -> Tensor:
    """O = Pq V + beta sum_j V_j: the lost mass goes to the average value."""
    return Pq @ V + beta * V.sum(-2, keepdim=True)


def zero_point(beta: Tensor, s: Tensor | float) -> Tensor:
    """Offset z' = -beta / s, so that s (q - z') = Pq + beta: a real number, not a code."""
    return -beta / s


def integer_attention(q: Tensor, v: Tensor, s: float, s_v: float, z_v: float, z: Tensor) -> Tensor:
    """O from codes q of P and v of V = s_v (v - z_v), with z = z' of `zero_point`.

    s s_v [q v - z_v sum_j q_j - z' (sum_j v_j - N z_v)]
    """
    shift = v.sum(-2, keepdim=True) - v.shape[-2] * z_v
    return s * s_v * (q @ v - z_v * q.sum(-1, keepdim=True) - z * shift)

"""Binary Latent Diffusion's formulas (Wang et al., CVPR 2023, arXiv 2304.04820).

A picture is a binary code x_0, `[B, N, C]` in {0, 1}: N cells of C bits. The forward process pulls
every bit towards a fair coin,

    q(x_t = 1 | x_0) = K_t x_0 + b_t,   b_t = (1 - K_t) / 2,   K_0 = 1, K_T = 0,   t = 1..T,

which is flipping it with probability b_t. The network says with which probability each bit of x_t
has been flipped; the posterior over the previous state is a Bernoulli in closed form. K_t, K_s and
b_t are tensors that broadcast with x_t; l are flip logits, p0 is P(x_0 = 1).
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dqlab.errors import InvalidInputError, UnknownNameError

SMALLEST = 1e-6
"""Probabilities inside logarithms are kept this far from 0 and 1."""


def linear(T: int) -> Tensor:
    """K_t = 1 - t/T: one step keeps (T - t) / (T - t + 1). Float64 `[T + 1]`, K_0 first."""
    return 1 - torch.arange(T + 1, dtype=torch.float64) / T


def cosine(T: int) -> Tensor:
    """K_t = (1 + cos(pi t/T)) / 2; `[T + 1]`."""
    return (1 + (math.pi * torch.arange(T + 1, dtype=torch.float64) / T).cos()) / 2


def sigmoid(T: int) -> Tensor:
    """K_t = (s(3/0.8) - s((3 t/T)/0.8)) / (s(3/0.8) - s(0)); s is the logistic; `[T + 1]`."""
    s = torch.sigmoid(3 / 0.8 * torch.arange(T + 1, dtype=torch.float64) / T)
    return (s[-1] - s) / (s[-1] - s[0])


SCHEDULES = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}


def keep(T: int, schedule: str = "linear") -> Tensor:
    """K_0..K_T, float64 `[T + 1]`.

    Raises:
        InvalidInputError: if T < 2.
        UnknownNameError: if there is no such schedule.

    """
    if T < 2:
        raise InvalidInputError(f"T={T}; the process needs at least 2 steps.")
    if schedule not in SCHEDULES:
        raise UnknownNameError(f"No schedule {schedule!r}; there are {', '.join(SCHEDULES)}.")
    return SCHEDULES[schedule](T)


def check_bits(x: Tensor) -> Tensor:
    """The same tensor, if it holds 0 and 1 only.

    Raises:
        InvalidInputError: with the range that was found.

    """
    if not bool(((x == 0) | (x == 1)).all()):
        raise InvalidInputError(
            f"A binary code holds 0 and 1 only; this one reaches from {float(x.min()):g} to "
            f"{float(x.max()):g}. Threshold probabilities at 0.5; map -1 and 1 by (z + 1) / 2."
        )
    return x


def deterministic_code(p: Tensor) -> Tensor:
    """The likelier bits, 1[p > 0.5]; p exactly 0.5 gives 0."""
    return (p > 0.5).to(p.dtype)


def straight_through(z: Tensor, p: Tensor) -> Tensor:
    """Bits z going forward, the gradient of p going backward: dL/dp = dL/dz."""
    return z + p - p.detach()


def embed(z: Tensor, E: Tensor) -> Tensor:
    """z_q = sum over c of z_c E_c: `[B, N, C]`, `[C, D]` -> `[B, N, D]`."""
    return z @ E


def marginal(x_0: Tensor, K_t: Tensor) -> Tensor:
    """P(x_t = 1 | x_0) = K_t x_0 + (1 - K_t)/2; with K_t/K_s and x_s it is any jump s -> t."""
    return K_t * x_0 + (1 - K_t) / 2


def flips(x_0: Tensor, x_t: Tensor) -> Tensor:
    """What the network is to predict: y = x_0 XOR x_t."""
    return (x_0 != x_t).to(x_t.dtype)


def clean_logit(l: Tensor, x_t: Tensor) -> Tensor:  # noqa: E741
    """The logit of x_0 = 1, u = (1 - 2 x_t) l: flip prediction is a change of sign."""
    return (1 - 2 * x_t) * l


def clean_probability(l: Tensor, x_t: Tensor, tau: float = 1.0) -> Tensor:  # noqa: E741
    """p0 = sigmoid(u / tau) = x_t (1 - p_flip) + (1 - x_t) p_flip; tau is the temperature.

    Raises:
        InvalidInputError: unless tau > 0.

    """
    if not tau > 0:
        raise InvalidInputError(f"temperature={tau!r}; choose a number above 0 (1 changes none).")
    return torch.sigmoid(clean_logit(l, x_t) / tau)


def guided(l_cond: Tensor, l_null: Tensor, w: float) -> Tensor:
    """(1 + w) l_cond - w l_null, in flip logits: a guidance scale of 1 + w."""
    return (1 + w) * l_cond - w * l_null


def posterior_plugin(p0: Tensor, x_t: Tensor, K_t: Tensor, K_s: Tensor) -> Tensor:
    """P(x_s = 1 | x_t), s < t, with p0 put where x_0 belongs: the released sampler.

    Biased towards 0.5 unless p0 is 0 or 1. For s = 0 it is p0 itself.
    """
    like = marginal(x_t, K_t / K_s)  # P(x_t | x_s = 1); the kernel is symmetric
    prior = marginal(p0, K_s)
    on, off = prior * like, (1 - prior) * (1 - like)
    return torch.where(K_s == 1, p0, on / (on + off))


def posterior_mixture(p0: Tensor, x_t: Tensor, K_t: Tensor, K_s: Tensor) -> Tensor:
    """The exact P(x_s = 1 | x_t): both values of x_0, each with its probability."""
    one = posterior_plugin(torch.ones_like(p0), x_t, K_t, K_s)
    zero = posterior_plugin(torch.zeros_like(p0), x_t, K_t, K_s)
    return p0 * one + (1 - p0) * zero


POSTERIORS = {"plugin": posterior_plugin, "mixture": posterior_mixture}


def grid(S: int, T: int) -> Tensor:
    """The timesteps a sampler of S steps visits, descending from T to 1, int64 `[S]`.

    Raises:
        InvalidInputError: unless 2 <= S <= T: one step would only ever see t = 1.

    """
    if not 2 <= S <= T:
        raise InvalidInputError(f"num_inference_steps={S}; this process allows 2 to {T}.")
    return torch.arange(S - 1, -1, -1) * (T - 1) // (S - 1) + 1


def time_code(t: Tensor, T: int, width: int) -> Tensor:
    """Sinusoid of 4000 (t - 1)/T: `[B]` -> `[B, width]`, sines then cosines, periods to 10,000.

    T counts training steps. The released code divides by the number of sampling steps, so its
    few-step samplers tell the network a wrong time.
    """
    half = width // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angle = ((t - 1) * (4000 / T))[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def balanced_loss(l: Tensor, y: Tensor, focal: float = 0.0) -> Tensor:  # noqa: E741
    """The released loss: flips weigh 1 - m, other bits m, m the sample's share of flips.

    Every element is also weighted by (1 - p_y)^focal; p_y is the probability of the truth. Below
    0, `focal` means plain cross-entropy. It moves the optimum: see `unbalanced`.
    """
    loss = binary_cross_entropy_with_logits(l, y, reduction="none")
    if focal < 0:
        return loss.mean()
    m = y.flatten(1).mean(1).view(-1, *[1] * (y.ndim - 1))
    if bool(((m == 0) | (m == 1)).any()):
        warnings.warn(
            "A sample has no flipped bit, or no other: its balanced loss is 0.", stacklevel=2
        )
    return ((y * (1 - m) + (1 - y) * m) * (1 - torch.exp(-loss)) ** focal * loss).mean()


def unbalanced(p: Tensor, m_t: Tensor) -> Tensor:
    """The true flip probability behind one learned with the balanced loss; m_t = b_t.

    odds_learned = odds_true (1 - m)/m, so p_true = p / (p + (1 - p)(1 - m)/m).
    """
    return p / (p + (1 - p) * (1 - m_t) / m_t)


def variational_loss(p0: Tensor, x_0: Tensor, x_t: Tensor, K_t: Tensor, K_s: Tensor) -> Tensor:
    """Mean cross-entropy between plug-in posteriors of the predicted and of the true code."""
    said = posterior_plugin(p0, x_t, K_t, K_s).clamp(SMALLEST, 1 - SMALLEST)
    truth = posterior_plugin(x_0, x_t, K_t, K_s)
    return torch.nn.functional.binary_cross_entropy(said, truth)


def pack(z: Tensor) -> Tensor:
    """`[B, N, C]` bits -> uint8 `[B, ceil(N C / 8)]`."""
    packed = np.packbits(check_bits(z).to(torch.uint8).flatten(1).cpu().numpy(), axis=1)
    return torch.from_numpy(packed)


def unpack(packed: Tensor, N: int, C: int) -> Tensor:
    """Inverse of `pack`: float `[B, N, C]`."""
    flat = np.unpackbits(packed.numpy(), axis=1, count=N * C)
    return torch.from_numpy(flat).reshape(len(packed), N, C).float()

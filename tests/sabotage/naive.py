"""What stands in for a method's key step: what one would do without the paper.

Each takes the arguments of what it replaces and returns the same kind of thing, so that whatever
turns red does so by its numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqlab.formats import Affine
from dqlab.ranges import shrink_search
from dqlab.reference.brecq import block_loss


def uniform_steps(N, T, mu=0.4, sigma=0.4, generator=None) -> Tensor:
    """Steps drawn without preference, in place of PTQ4DM's normal distribution."""
    return torch.randint(T, (N,), generator=generator)


def equal_scores(D: Tensor, V: Tensor, lam: float) -> Tensor:
    """The same number of samples of every step, in place of EDA-DM's density and variety."""
    return torch.ones_like(D)


def block_loss_alone(z_hat, z, y_hat, y, lam_m, p=2.0) -> Tensor:
    """Plain block reconstruction, in place of EDA-DM's losses of inner layers."""
    return block_loss(z_hat, z, p)


def whole_shortcuts(job) -> None:
    """One range for all that a shortcut reads, in place of Q-Diffusion's split."""


class StaticSteps(nn.Module):
    """One step size per site for all timesteps."""

    def __init__(self, s: Tensor):
        super().__init__()
        self.s = s

    def forward(self, t: Tensor) -> Tensor:
        """`[sites, T]`, constant along T."""
        return self.s[:, None].expand(-1, len(t))


def static_steps(values, grids, t, d, updates, seed=0, **shape) -> StaticSteps:
    """The step size with the least error over all timesteps together, in place of TDQ's."""
    found = [shrink_search(v.flatten(), g, p=2.0) for v, g in zip(values, grids, strict=True)]
    return StaticSteps(torch.stack([r.scale.reshape(()) for r in found]).double())


def rounded_to_nearest(self, job) -> None:
    """The time path as rounding to nearest left it, in place of TFMQ-DM's reconstruction."""
    loss = self._loss(job)
    job.choices["tiar loss"] = {"nearest": loss, "learned": loss}


def even_grid(bits: int) -> list[Affine]:
    """Evenly spaced levels alone, in place of QVD's choice of a grid by TDScore."""
    return [Affine(bits)]


def no_factors(self, block: nn.Module, emb: Tensor) -> Tensor:
    """Channels as the timestep embedding leaves them, in place of QNCD's smoothing."""
    return torch.ones(block.conv2.in_channels)


def as_predicted(self, eps: Tensor, step) -> Tensor:
    """The prediction with its bias, in place of QNCD's running estimate."""
    return eps


def no_statistics(self, signed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """No slope, no bias, no variance, in place of what PTQD measures."""
    channels = len(self.sums[0])
    return torch.tensor(0.0), torch.zeros(channels), torch.tensor(0.0)


def nothing_lost(self) -> Tensor:
    """Zero points of softmax outputs at 0, in place of the mass that rounding takes."""
    return torch.zeros_like(self.sums[0])


def no_mean(Eq: Tensor, mu_q: Tensor, mu_D: Tensor, b: Tensor) -> Tensor:
    """The quantized prediction as it is, in place of D2-DPM's conditional mean."""
    return torch.zeros_like(Eq)


def no_input_bias(xq: Tensor, x: Tensor, granularity: str = "element") -> Tensor:
    """Inputs as the quantized chain made them, in place of TAC's bias."""
    return torch.zeros_like(xq[0])


def no_coefficient(sums: Tensor, lambda1: float = 0.5, lambda2: float = 0.1) -> Tensor:
    """The prediction unscaled, in place of TAC's reconstruction."""
    return torch.ones_like(sums[0])


def direct_logit(l: Tensor, x_t: Tensor) -> Tensor:  # noqa: E741
    """The network's answer taken for the clean bit's logit, in place of a flip's."""
    return l
